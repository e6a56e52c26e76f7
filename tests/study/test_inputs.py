"""What decides a result and is no setting: a study refuses inputs that change between its runs, or within one."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file

from attndrift.cli.progress import StudyConsole
from attndrift.files import read_json
from attndrift.study.executor import Executor
from attndrift.study.interpolation import interpolate
from attndrift.study.loading import parse_study
from attndrift.study.object_storage import ObjectStorage
from attndrift.study.resources import StudyResources
from attndrift.study.runner import StudyOutcome, run_study
from attndrift.study.storage_url import open_storage

STUDY = """
name: inputs
shared:
  model: {model}
  dataset: mine
  source: {{path: {path}}}
  epochs: 2
  batch_size: 8
  probe_size: 4
  validation_per_class: 1
  evaluations_per_epoch: 1
  map_images: 0
  monitor_zero_shot_images: 0
  transfer: [cifar10]
  threads: 1
runs:
  - {{experiment: A, method: linear_probe}}
  - {{experiment: B, method: none}}
"""

LARGE = 200
"""Pixels of the side of a bitmap of 120 KB, of which a fingerprint could have skipped the middle."""


def _picture(seed: int, side: int = 12) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def _folder(root: Path, classes: tuple[str, ...], seed: int = 0) -> Path:
    for split in ("train", "test"):
        for label, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for number in range(6 if split == "train" else 3):
                _picture(seed + 100 * label + number + (50 if split == "test" else 0)).save(
                    root / split / name / f"{number}.png"
                )
    _picture(seed + 999, LARGE).save(root / "train" / classes[0] / "large.bmp")
    return root


class Place:
    """A study with images, a model and a transfer set of its own, in a folder of its own."""

    def __init__(self, root: Path, model: Path, path: str = "images") -> None:
        self.root = root
        self.images = _folder(root / "images", ("cat", "dog"))
        self.transfer = _folder(root / "data" / "cifar10", ("ant", "bee"), seed=5000)
        self.model = shutil.copytree(model, root / "model")
        self.study = parse_study(STUDY.format(model=self.model, path=path), where="study")

    def run(self, only: str, *, stop_at: int | None = None) -> tuple[StudyOutcome, str]:
        """Run one of the two runs in a new process's memory; its outcome, and what the record says is wrong."""
        study = self.study.select([only])
        with Executor(StudyResources(self.root / "cache")) as execute:

            def work(run: Any, folder: Path, reporter: Any) -> dict[str, Any]:
                saved = reporter.saved

                def stop(step: int) -> None:
                    saved(step)
                    if stop_at is not None and step >= stop_at:
                        raise KeyboardInterrupt

                reporter.saved = stop
                return execute(run, folder, reporter)

            outcome = run_study(study, self.root / "study", work, StudyConsole(console=Console(file=io.StringIO())))
        record = read_json(self.folder(only) / "record.json")
        return outcome, str(record.get("problem") or "")

    def folder(self, only: str) -> Path:
        return self.root / "study" / "runs" / self.study.select([only]).runs[0].run_id


@pytest.fixture
def place(tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATTNDRIFT_DATA", str(tmp_path / "data"))
    return Place(tmp_path, tiny_clip)


def _add(place: Place) -> None:
    _picture(77).save(place.images / "train" / "cat" / "new.png")


def _remove(place: Place) -> None:
    (place.images / "train" / "dog" / "3.png").unlink()


def _replace(place: Place) -> None:
    _picture(78).save(place.images / "test" / "dog" / "1.png")


def _edit_the_middle(place: Place) -> None:
    path = place.images / "train" / "cat" / "large.bmp"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    times = path.stat()
    path.write_bytes(bytes(content))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def _move(place: Place) -> None:
    for split in ("train", "test"):
        one, other = (place.images / split / name / "0.png" for name in ("cat", "dog"))
        content = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(content)


def _rename_a_picture(place: Place) -> None:
    (place.images / "train" / "cat" / "0.png").rename(place.images / "train" / "cat" / "00.png")


def _rename_a_class(place: Place) -> None:
    for split in ("train", "test"):
        (place.images / split / "dog").rename(place.images / split / "hound")


def _another_folder(place: Place) -> None:
    """The relative `path` of the study, from another folder."""
    elsewhere = place.root / "elsewhere"
    _folder(elsewhere / "images", ("cat", "dog"), seed=1)
    os.chdir(elsewhere)


def _transfer_picture(place: Place) -> None:
    _picture(79).save(place.transfer / "test" / "bee" / "new.png")


def _transfer_classes(place: Place) -> None:
    for split in ("train", "test"):
        (place.transfer / split / "bee").rename(place.transfer / split / "wasp")


def _weights(place: Place) -> None:
    path = place.model / "model.safetensors"
    tensors = load_file(path)
    tensors["visual_projection.weight"] = tensors["visual_projection.weight"] * 1.5
    save_file(tensors, path, {"format": "pt"})


def _json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _activation(place: Place) -> None:
    _json(place.model / "config.json", lambda content: content["vision_config"].update(hidden_act="gelu_new"))


def _preprocessing(place: Place) -> None:
    _json(place.model / "preprocessor_config.json", lambda content: content.update(image_mean=[0.1, 0.2, 0.3]))


def _tokenizer(place: Place) -> None:
    def swap(content: dict[str, Any]) -> None:
        words = content["model"]["vocab"]
        words["a"], words["b"] = words["b"], words["a"]

    _json(place.model / "tokenizer.json", swap)


CHANGES = {
    "a picture added": (_add, "dataset mine", "'cat' had 7, now 8"),
    "a picture removed": (_remove, "dataset mine", "'dog' had 6, now 5"),
    "a picture replaced": (_replace, "dataset mine", "split `test` has images of the same names with other content"),
    "a byte in the middle of a bitmap": (_edit_the_middle, "dataset mine", "with other content"),
    "pictures exchanged between classes": (_move, "dataset mine", "with other content"),
    "a picture renamed": (_rename_a_picture, "dataset mine", "other names"),
    "a class renamed": (_rename_a_class, "dataset mine", "without 'dog' and with 'hound'"),
    "a relative path from another folder": (_another_folder, "dataset mine", "elsewhere/images"),
    "a picture added to the transfer set": (_transfer_picture, "dataset cifar10", "'bee' had 3, now 4"),
    "a class of the transfer set renamed": (_transfer_classes, "dataset cifar10", "with 'wasp'"),
    "other weights": (_weights, "model ", "other weights"),
    "another activation": (_activation, "model ", "`vision hidden_act` was 'quick_gelu', now 'gelu_new'"),
    "another normalisation": (_preprocessing, "model ", "`preprocessing image_mean`"),
    "another tokenizer": (_tokenizer, "prompts of cifar10", "other tokens"),
}


@pytest.mark.one_in(4)
@pytest.mark.parametrize("change", CHANGES)
def test_inputs_that_change_between_runs_are_refused(place: Place, change: str) -> None:
    assert place.run("A")[0].count("finished") == 1
    how, what, said = CHANGES[change]
    how(place)
    outcome, problem = place.run("B")
    assert list(outcome.statuses.values()) == ["failed"], change
    assert what in problem
    assert said in problem
    assert "run A_" in problem
    assert "--output" in problem
    assert not (place.folder("B") / "splits.json").exists()


@pytest.mark.one_in(2)
@pytest.mark.parametrize("change", ["a picture added", "a picture replaced", "a class renamed", "other weights"])
def test_inputs_that_change_within_an_interrupted_run_are_refused(place: Place, change: str) -> None:
    with pytest.raises((KeyboardInterrupt, FileNotFoundError)):
        place.run("A", stop_at=1)
    splits = (place.folder("A") / "splits.json").read_bytes()
    kept = place.root / "kept"
    for part in (place.images, place.model):
        shutil.copytree(part, kept / part.name)
    how, what, said = CHANGES[change]
    how(place)
    outcome, problem = place.run("A")
    assert list(outcome.statuses.values()) == ["failed"]
    assert what in problem
    assert said in problem
    assert (place.folder("A") / "splits.json").read_bytes() == splits
    for part in (place.images, place.model):
        shutil.rmtree(part)
        shutil.copytree(kept / part.name, part)
    assert place.run("A")[0].count("finished") == 1, "put back, the run goes on"


def test_a_picture_added_while_a_study_runs_is_seen_by_its_next_run(place: Place) -> None:
    with Executor(StudyResources(place.root / "cache")) as execute:

        def work(run: Any, folder: Path, reporter: Any) -> dict[str, Any]:
            if run.settings.experiment == "B":
                _add(place)
            return execute(run, folder, reporter)

        console = StudyConsole(console=Console(file=io.StringIO()))
        outcome = run_study(place.study, place.root / "study", work, console)
    assert list(outcome.statuses.values()) == ["finished", "failed"]
    assert "'cat' had 7, now 8" in read_json(place.folder("B") / "record.json")["problem"]


def test_runs_of_a_study_in_an_object_store_are_compared(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNDRIFT_CACHE", str(place.root / "cache"))
    storage, console = open_storage("memory://inputs"), StudyConsole(console=Console(file=io.StringIO()))
    for only, change, status in (("A", None, "finished"), ("B", _replace, "failed")):
        if change is not None:
            change(place)
        with Executor(StudyResources(place.root / "cache")) as execute:
            outcome = run_study(place.study.select([only]), storage, execute, console)
        assert outcome.count(status) == 1
    assert isinstance(storage, ObjectStorage)
    record = storage.store.read(storage.store.path("runs", place.study.runs[1].run_id, "record.json"))
    assert record is not None
    assert "with other content" in json.loads(record)["problem"]


def test_a_run_is_interpolated_on_its_own_images_alone(place: Place) -> None:
    place.run("A")
    _remove(place)
    with pytest.raises(ValueError, match="'dog' had 6, now 5"):
        interpolate(place.folder("A"), (0.5,), resources=StudyResources(place.root / "cache"))


def test_what_came_to_no_result_binds_nobody(place: Place) -> None:
    """A picture that cannot be read is replaced after the first run has failed on it."""
    broken = place.images / "train" / "cat" / "0.png"
    broken.write_bytes(b"no picture")
    outcome, problem = place.run("A")
    assert list(outcome.statuses.values()) == ["failed"]
    assert "cat/0.png" in problem
    _picture(3).save(broken)
    assert place.run("A")[0].count("finished") == 1
    assert place.run("B")[0].count("finished") == 1


def test_files_that_are_copied_or_touched_are_the_same_files(place: Place) -> None:
    place.run("A")
    copy = place.root / "copy"
    shutil.copytree(place.images, copy)
    shutil.rmtree(place.images)
    copy.rename(place.images)
    for path in place.images.rglob("*.png"):
        os.utime(path)
    assert place.run("B")[0].count("finished") == 1
