"""Resumable states: whole or absent, and a damaged one is passed over."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from attndrift.files import read_json, sha256, write_json
from attndrift.models.evaluation import random_state, restore_random_state
from attndrift.study.settings import RunSettings
from attndrift.study.training import states as resume
from attndrift.study.training.metric_buffer import Progress

SETTINGS = RunSettings(dataset="digits")


def _publish(root: Path, step: int) -> Path:
    scratch = root / ".scratch"
    scratch.mkdir(parents=True)
    (scratch / resume.WEIGHTS).write_bytes(bytes([step % 256]) * 1000)
    (scratch / resume.TRAINING).write_bytes(b"o" * 500)
    return resume.publish(scratch, root / "resume", step, Progress(best_accuracy=step / 100), SETTINGS)


def test_the_newest_state_is_found_with_its_progress(tmp_path: Path) -> None:
    for step in (5, 10, 100):
        _publish(tmp_path, step)
    state = resume.newest(tmp_path / "resume", SETTINGS, pytest.fail)
    assert state is not None
    assert state.name == "step-100"
    assert resume.read_progress(state) == Progress(best_accuracy=1.0)
    assert sorted(p.name for p in (tmp_path / "resume").iterdir()) == ["step-10", "step-100"], "two are kept"


def test_nothing_to_resume(tmp_path: Path) -> None:
    assert resume.newest(tmp_path / "resume", SETTINGS, pytest.fail) is None


@pytest.mark.parametrize("harm", ["truncate", "flip", "remove", "manifest"])
def test_a_damaged_state_is_passed_over_and_named(tmp_path: Path, harm: str) -> None:
    _publish(tmp_path, 5)
    state = _publish(tmp_path, 10)
    weights = state / resume.WEIGHTS
    if harm == "truncate":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif harm == "flip":
        content = bytearray(weights.read_bytes())
        content[500] ^= 1
        weights.write_bytes(content)
    elif harm == "remove":
        weights.unlink()
    else:
        (state / resume.MANIFEST).write_text("{")
    said: list[str] = []
    found = resume.newest(tmp_path / "resume", SETTINGS, said.append)
    assert found is not None
    assert found.name == "step-5"
    assert len(said) == 1
    assert "step-10 is damaged" in said[0]


def test_an_interrupted_write_is_no_state(tmp_path: Path) -> None:
    _publish(tmp_path, 5)
    (tmp_path / "resume" / ".step-10-half").mkdir()
    state = resume.newest(tmp_path / "resume", SETTINGS, pytest.fail)
    assert state is not None
    assert state.name == "step-5"


@pytest.mark.parametrize(
    "name", ["step-²", "step-٣", "step-x", "step-", "step--3", "step-1e3", "step-010", "step-" + "9" * 200]
)
def test_what_is_not_named_as_a_state_is_passed_over_with_a_warning(tmp_path: Path, name: str) -> None:
    state = _publish(tmp_path, 5)
    shutil.copytree(state, tmp_path / "resume" / name)
    said: list[str] = []
    assert resume.newest(tmp_path / "resume", SETTINGS, said.append) == state
    assert said == [f"{name} is not the name of a state and is passed over"]
    assert _publish(tmp_path, 6).is_dir(), "neither does it end a run that goes on"


def _manifest(**changes: object) -> Callable[[Path], None]:
    def harm(state: Path) -> None:
        write_json(state / resume.MANIFEST, read_json(state / resume.MANIFEST) | changes)

    return harm


def _manifest_text(text: str) -> Callable[[Path], None]:
    return lambda state: void((state / resume.MANIFEST).write_text(text))


def _progress(text: str) -> Callable[[Path], None]:
    """Another progress, with a checksum that fits."""

    def harm(state: Path) -> None:
        path = state / resume.PROGRESS
        path.write_text(text)
        files = read_json(state / resume.MANIFEST)["files"] | {resume.PROGRESS: sha256(path)}
        _manifest(files=files)(state)

    return harm


def void(_: object) -> None: ...


CRAFTED: dict[str, tuple[Callable[[Path], None], str]] = {
    "manifest null": (_manifest_text("null"), "manifest|format"),
    "manifest a list": (_manifest_text("[1]"), "format"),
    "manifest a text": (_manifest_text('"x"'), "format"),
    "manifest a number": (_manifest_text("1" * 5000), "cannot be read"),
    "manifest deep": (_manifest_text("[" * 100_000), "cannot be read"),
    "manifest half a surrogate": (_manifest_text('"\\ud800"'), "format"),
    "files null": (_manifest(files=None), "names no files"),
    "files empty": (_manifest(files={}), "checksum"),
    "files a list": (_manifest(files=["model.safetensors"]), "names no files"),
    "checksums that are no texts": (_manifest(files={"model.safetensors": None}), "checksum"),
    "settings null": (_manifest(settings=None), "no settings"),
    "other settings": (_manifest(settings=SETTINGS.to_json() | {"epochs": 3}), "`epochs` was 3, now 20"),
    "of another step": (_manifest(step=5), "is that of step 5"),
    "progress null": (_progress("null"), "holds what no run wrote"),
    "progress a list": (_progress("[]"), "holds what no run wrote"),
    "progress of other fields": (_progress('{"epoch": 3}'), "holds what no run wrote"),
    "progress of other types": (_progress('{"history": [1, 2]}'), "holds what no run wrote"),
    "progress deep": (_progress("[" * 100_000), "holds what no run wrote"),
}


@pytest.mark.parametrize("what", CRAFTED)
def test_a_state_that_no_run_wrote_is_passed_over_with_a_warning(tmp_path: Path, what: str) -> None:
    older = _publish(tmp_path, 5)
    harm, said = CRAFTED[what]
    harm(_publish(tmp_path, 10))
    warned: list[str] = []
    assert resume.newest(tmp_path / "resume", SETTINGS, warned.append) == older
    assert len(warned) == 1
    assert re.search(said, warned[0]), warned


def test_a_state_gives_back_what_was_written(tmp_path: Path) -> None:
    """Weights, optimizer and schedule bit for bit, and all generators where they were."""

    def drawn() -> list[float]:
        return [random.gauss(), float(np.random.standard_normal()), float(torch.randn(()))]  # noqa: NPY002

    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), fused=True)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    drawn()  # leaves half of a pair behind in two of the generators
    weights = dict(layer.named_parameters())
    training = {"optimizer": optimizer.state_dict(), "random": [random_state([torch.device("cpu")])]}
    resume.write_tensors(tmp_path / "scratch", weights, training)
    state = resume.publish(tmp_path / "scratch", tmp_path / "resume", 7, Progress(seen=3), SETTINGS)
    expected, kept = drawn(), {name: weight.detach().clone() for name, weight in weights.items()}
    with torch.no_grad():
        layer.weight.zero_()

    resume.read_weights(state, weights)
    found = resume.read_training(state)
    assert all(torch.equal(weights[name], value) for name, value in kept.items())
    for name, value in optimizer.state_dict()["state"][0].items():
        assert torch.equal(found["optimizer"]["state"][0][name], value), name
    restore_random_state(found["random"][0])
    assert drawn() == expected
    assert (resume.step_of(state), resume.read_progress(state)) == (7, Progress(seen=3))
    with pytest.raises(ValueError, match=r"of another run \(bias"):
        resume.read_weights(state, {"weight": layer.weight})
    for shape in ((2, 3), (6,), (3, 2, 1), (0, 3), ()):
        if shape == tuple(layer.weight.shape):
            continue
        others = {"weight": torch.zeros(shape), "bias": layer.bias}
        with pytest.raises(
            ValueError, match=rf"`weight` has shape \({layer.weight.shape[0]}, 3\) there and \({str(shape)[1:-1]}"
        ):
            resume.read_weights(state, others)
        assert torch.equal(layer.bias, kept["bias"])
