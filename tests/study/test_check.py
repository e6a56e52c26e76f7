"""`attndrift check`, and that a study which cannot run says so once, before its first run."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from typer.testing import CliRunner

from attndrift.cli.main import app
from attndrift.files import write_json

runner = CliRunner()

STUDY = """
name: small
shared:
  model: {model}
  dataset: digits
  train_per_class: 4
  validation_per_class: 2
  probe_size: 10
  test_limit: 20
  epochs: 1
  batch_size: 20
  transfer: [objects]
  transfer_limit: 100
  threads: 1
runs:
  - {{experiment: E1, method: none}}
  - {{experiment: E2, method: full}}
"""


@pytest.fixture
def study(tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ATTNDRIFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.yaml"
    path.write_text(STUDY.format(model=tiny_clip))
    return path


def check(study: Path, *arguments: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Exit code, and findings by what they are of; the worst of several."""
    result = runner.invoke(app, ["check", str(study), "--json", *arguments])
    found: dict[str, dict[str, Any]] = {}
    order = ["ok", "warning", "problem"]
    for finding in json.loads(result.stdout)["findings"]:
        before = found.get(finding["what"])
        if before is None or order.index(finding["state"]) > order.index(before["state"]):
            found[finding["what"]] = finding
    return result.exit_code, found


def test_a_study_that_can_run(study: Path, tiny_clip: Path) -> None:
    code, found = check(study)
    assert code == 0
    assert {finding["state"] for finding in found.values()} == {"ok"}
    counted = re.findall(r"(?:train|test): ([0-9,]+) images", found["dataset digits"]["detail"])
    assert sum(int(number.replace(",", "")) for number in counted) == len(load_digits().target)
    assert {f"model {tiny_clip}", "transfer set objects", "overlap", "prompts objects", "memory", "device cpu"} <= set(
        found
    )
    assert not (study.parent / "studies").exists(), "a check writes nothing"


def test_it_is_said_who_gets_how_many_images(study: Path) -> None:
    """Of a folder of 300 images, in the check and in the dry run."""
    from PIL import Image

    images = study.parent / "images"
    for split, number in (("train", 100), ("test", 20)):
        for shade, name in enumerate(("red", "green", "blue")):
            (images / split / name).mkdir(parents=True)
            for index in range(number):
                Image.new("RGB", (8, 8), (80 * shade, index, 90)).save(images / split / name / f"{index}.bmp")
    text = _on_images(study, images).read_text().replace("  validation_per_class: 2\n  probe_size: 10\n", "")
    study.write_text(text.replace("  train_per_class: 3\n", "").replace("transfer: [objects]", "transfer: []"))
    _, found = check(study)
    assert found["images of mine"]["detail"] == "240 images train, 30 validate, 30 are the probe, 20 test"
    result = runner.invoke(app, ["run", str(study), "--dry-run"])
    assert "mine: 240 images train, 30 validate, 30 are the probe, 20 test" in result.stdout


def test_the_table_breaks_no_name_at_80_columns(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    folder = study.parent / ("long-" * 30 + "name")
    result = runner.invoke(app, ["check", str(study), "--set", f"model={folder}"])
    assert result.exit_code == 1
    assert str(folder) in result.stdout
    broken = [line for line in result.stdout.splitlines() if len(line) > 80 and str(folder) not in line]
    assert not [line for line in broken if " " in line.strip()]
    assert "1 problem" in result.stdout


def _image_folder(root: Path, classes: list[str]) -> Path:
    from PIL import Image

    for split in ("train", "test"):
        for number, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(12):
                Image.new("RGB", (30, 30), (20 * number, 20 * index, 90)).save(folder / f"{index}.png")
    return root


def _on_images(study: Path, folder: Path) -> Path:
    text = study.read_text().replace("dataset: digits", f"dataset: mine\n  source: {{path: {folder}}}")
    study.write_text(text.replace("train_per_class: 4", "train_per_class: 3"))
    return study


@pytest.mark.one_in(4)
@pytest.mark.parametrize("how", ["run", "dry run", "check"])
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--engine", "slrum"], "there is no engine `slrum`; did you mean `slurm`"),
        (["--time-limit", "30x"], "write it as 90s, 30m or 2h"),
        (["--jobs", "2", "--engine", "ray"], "--jobs is not an option of --engine ray"),
        (["--set", "transfer=[nowhere]"], "there is no dataset `nowhere`"),
        (["--set", "model=/nonexistent/model"], "/nonexistent/model"),
        (["--set", "device=cuda"], "which torch does not find"),
        (["--output", "s3://user:secret@bucket/study"], "holds a password"),
    ],
)
def test_what_keeps_a_study_from_running_is_said_before_it(
    study: Path, how: str, arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for device in ("cuda", "backends.mps"):
        monkeypatch.setattr(f"torch.{device}.is_available", lambda: False)
    command = {"run": ["run"], "dry run": ["run", "--dry-run"], "check": ["check"]}[how]
    result = runner.invoke(app, [*command, str(study), *arguments])
    assert result.exit_code != 0
    text = f"{result.output}{result.exception or ''}"
    assert said in " ".join(text.split())
    assert not (study.parent / "studies").exists(), "nothing was run"


def test_a_missing_image_folder_is_said_once(study: Path) -> None:
    _on_images(study, study.parent / "absent")
    for arguments in (["run"], ["run", "--dry-run"]):
        result = runner.invoke(app, [*arguments, str(study)])
        assert result.exit_code == 1
        assert result.stderr.count("absent does not exist") == 1
    assert not (study.parent / "studies").exists()


def test_a_missing_image_folder_says_what_to_do(study: Path) -> None:
    _, found = check(_on_images(study, study.parent / "absent"))
    assert "correct `path`" in found["dataset mine"]["remedy"]


def once(study: Path, *arguments: str) -> str:
    """What `run`, `run --dry-run` and `check` all say of a study that cannot run: one problem, and nothing is run."""
    code, found = check(study, *arguments)
    assert code == 1
    (problem,) = [finding for finding in found.values() if finding["state"] == "problem"]
    for command in (["run"], ["run", "--dry-run"]):
        result = runner.invoke(app, [*command, str(study), *arguments])
        assert result.exit_code == 1
        (message,) = [line for line in result.stderr.splitlines() if line.startswith("attndrift: ")]
        assert problem["detail"] in message
    assert not (study.parent / "studies").exists(), "nothing was run"
    return f"{problem['what']}: {problem['detail']}"


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("probe_size=5000", "the probe needs 500 images of 'zero'"),
        ("train_per_class=900", "training needs"),
        ("validation_per_class=900", "the probe and validation needs"),
    ],
)
def test_more_images_than_there_are(study: Path, setting: str, said: str) -> None:
    message = once(study, "--set", setting)
    assert message.startswith("dataset digits: ")
    assert said in message


def test_more_images_than_one_run_can_have_names_the_run(study: Path) -> None:
    study.write_text(study.read_text() + "  - {experiment: E3, method: full, seed: 7, train_per_class: 900}\n")
    message = once(study)
    assert "E3_" in message
    assert "E2_" not in message


def test_more_images_for_the_guard_than_the_transfer_set_has(study: Path) -> None:
    guarded = "method: full, guard: retention_pct, guard_at_least: 50, guard_probe_per_class: 90"
    study.write_text(study.read_text().replace("method: full", guarded))
    message = once(study)
    assert message.startswith("transfer set objects: `guard_probe_per_class` is 90")


def test_one_class(study: Path) -> None:
    message = once(_on_images(study, _image_folder(study.parent / "images", ["red"])), "--set", "probe_size=4")
    assert "it has 1 class, and a classifier needs at least 2 (for E2" in message


def _on_table(study: Path, *, names: list[str] | None, labels: dict[str, list[Any]]) -> Path:
    """A target of Parquet files, of which the images cannot be decoded."""
    import datasets

    label = datasets.Value("string") if names is None else datasets.ClassLabel(names=names)
    features = datasets.Features({"image": datasets.Image(), "label": label})
    folder = study.parent / "table"
    folder.mkdir()
    for split, values in labels.items():
        rows = {"image": [{"bytes": b"no image", "path": None}] * len(values), "label": values}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return _on_images(study, folder)


@pytest.mark.parametrize("names", [["red", "green"], None])
def test_a_column_of_labels_tells_that_there_are_too_few_images(study: Path, names: list[str] | None) -> None:
    labels: list[Any] = [0] * 30 + [1] * 4 if names else ["red"] * 30 + ["green"] * 4
    message = once(_on_table(study, names=names, labels={"train": labels, "test": labels}))
    assert "the probe needs 5 images of 'green'; there are 4" in message


def test_a_class_of_a_table_without_images(study: Path) -> None:
    labels = {"train": [0, 1] * 20, "test": [0] * 20}
    assert "split `test`: classes without images: green" in once(
        _on_table(study, names=["red", "green"], labels=labels)
    )


def test_what_is_told_of_splits_is_what_making_them_says() -> None:
    """For any counts and settings: a set of the same counts, cut off where it has enough, is refused just as the whole."""
    import numpy as np

    from attndrift.data import DataError
    from attndrift.study.check_splits import SetContents, why_no_splits
    from attndrift.study.dataset_splits import splits_of
    from attndrift.study.settings import RunSettings

    draw = np.random.default_rng(3)
    refused = 0
    for _ in range(300):
        classes = int(draw.integers(2, 6))
        counts = {split: draw.integers(1, 200, classes) for split in ("train", "test")}
        contents = SetContents("made", tuple("abcdef"[:classes]), "train", "test", counts)
        maybe = lambda high, low=1: int(draw.integers(low, high)) if draw.random() < 0.5 else None  # noqa: E731
        selection = str(draw.choice(["test", "validation"]))
        settings = RunSettings(
            dataset="made", selection=selection, probe_size=maybe(150, 4), probe_per_class=maybe(30),
            train_per_class=maybe(80), validation_per_class=maybe(30) if selection == "validation" else None,
            validation_fraction=float(draw.uniform(0.05, 0.9)), data_seed=int(draw.integers(0, 9)),
        )  # fmt: skip
        try:
            splits_of(contents.without_images(), settings)
            expected = None
        except DataError as error:
            expected = str(error)
            refused += 1
        told = why_no_splits(contents, settings)
        assert (told is None) == (expected is None), (counts, settings)
        if told is not None and expected is not None:
            assert told.partition(" needs ")[0] in expected
    assert 50 < refused < 250


NAMES = {
    "one name": (["same", "same"], "classes of one name: same"),
    "too long": (["a", "long " * 99], "longer than 77 tokens"),
    "too many digits": (["a", "7" * 80], "longer than 77 tokens"),
    "empty": (["a", "_"], "classes without a name: number 1"),
    "blank": (["\u3000", "b"], "classes without a name: number 0"),
    "case": (["Bass", "bass"], "equal tokens"),
    "decomposed": (["caf\u00e9", "cafe\u0301"], "equal tokens"),
    "digits": (["route 66", "route 6 6"], "equal tokens"),
    "hyphen": (["co-op", "co - op"], "equal tokens"),
    "end token": (["cat<|endoftext|>dog", "cat<|endoftext|>bird"], "equal tokens"),
}


@pytest.mark.one_in(4)
@pytest.mark.parametrize("kind", NAMES)
def test_names_that_a_head_from_text_cannot_take(study: Path, kind: str) -> None:
    names, said = NAMES[kind]
    images = _image_folder(study.parent / "images", ["a", "b"])
    _on_images(study, images)
    study.write_text(
        study.read_text()
        .replace(f"{{path: {images}}}", f"{{path: {images}, class_names: {json.dumps(names)}}}\n  head: text")
        .replace("method: none", "method: linear_probe")
    )
    assert said in once(study, "--set", "model=embedded")


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", ["word " * 20, "abc " * 9, "7" * 30])
def test_a_prompt_is_as_long_as_the_model_takes(study: Path, tiny_clip: Path, name: str) -> None:
    folder = Path(shutil.copytree(tiny_clip, study.parent / "model"))
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 40
    write_json(folder / "config.json", config)
    images = _image_folder(study.parent / "images", ["a", "b"])
    _on_images(study, images)
    names = f'{{path: {images}, class_names: [a, "{name}"]}}\n  head: text'
    text = study.read_text().replace(f"{{path: {images}}}", names).replace("method: none", "method: linear_probe")
    study.write_text(text.replace("transfer: [objects]", "transfer: []"))
    assert "longer than 40 tokens" in once(study, "--set", f"model={folder}")


@pytest.mark.one_in(4)
@pytest.mark.parametrize("kind", ["folders", "a column of labels", "another column", "arrow"])
def test_names_are_found_wherever_a_set_keeps_them(study: Path, kind: str) -> None:
    import datasets
    from PIL import Image

    root = study.parent / "mine"
    if kind == "folders":
        _image_folder(root, ["Bass", "bass"])
    else:
        column = "kind" if kind == "another column" else "label"
        features = datasets.Features({"img": datasets.Image(), column: datasets.ClassLabel(names=["Bass", "bass"])})
        rows = {"img": [Image.new("RGB", (8, 8))] * 40, column: [0, 1] * 20}
        table = datasets.Dataset.from_dict(rows, features=features)
        if kind == "arrow":
            datasets.DatasetDict(train=table, test=table).save_to_disk(root)
        else:
            for split in ("train", "test"):
                table.to_parquet(root / f"{split}-00000-of-00001.parquet")
    _on_images(study, root)
    text = study.read_text().replace("transfer: [objects]", "transfer: []\n  head: text")
    study.write_text(text.replace("method: none", "method: linear_probe"))
    assert "equal tokens" in once(study)


def test_one_run_is_one_run(study: Path) -> None:
    result = runner.invoke(app, ["run", str(study), "--dry-run", "--limit", "1"])
    assert result.exit_code == 0, result.output
    assert "small: 1 run\n" in re.sub(" +\n", "\n", result.stdout)


def test_a_transfer_set_that_cannot_be_had_keeps_the_study_from_running(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ATTNDRIFT_DATA", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    result = runner.invoke(app, ["run", str(study), "--set", "transfer=[cifar10]"])
    assert result.exit_code == 1
    assert "HF_HUB_OFFLINE is set" in result.stderr
    assert "transfer set cifar10" in result.stderr
    assert "--set transfer=[]" in result.stderr
    assert not (study.parent / "studies").exists()


def test_what_was_not_read_is_not_run_in_the_fast_form(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a run no weights are loaded, no image is decoded and no tokenizer is asked."""
    from attndrift.study.check import check_study
    from attndrift.study.loading import load_study

    def never(*_: object, **__: object) -> None:
        raise AssertionError

    for name in (
        "models.load.load_model",
        "models.load.load_processor",
        "models.load.load_config",
        "data.decoding.decode_image",
    ):
        monkeypatch.setattr(f"attndrift.{name}", never)
    images = _image_folder(study.parent / "images", ["red", "green"])
    found = check_study(load_study(_on_images(study, images)), study.parent / "out")
    assert not found.problems
    assert not found.downloads


def test_class_names_and_prompts(study: Path) -> None:
    long = "word " * 80
    images = _image_folder(study.parent / "images", ["a", "b", "c", "d"])
    _on_images(study, images)
    study.write_text(
        study.read_text().replace(f"{{path: {images}}}", f'{{path: {images}, class_names: ["", same, same, "{long}"]}}')
        + "  - {method: full, seed: 3, head: text}\n"
    )
    code, found = check(study)
    assert code == 1
    result = runner.invoke(app, ["check", str(study)])
    text = " ".join(result.stdout.split())
    assert found["prompts mine"]["state"] == "problem"
    assert "classes without a name: number 0" in text
    assert "classes of one name: same" in text
    assert "longer than 77 tokens" in text


def test_names_of_equal_tokens_are_a_warning(study: Path) -> None:
    """The tokenizer of the tiny model, as CLIP's, writes everything in lower case."""
    images = _image_folder(study.parent / "images", ["Cat", "cat"])
    _, found = check(_on_images(study, images))
    assert found["prompts mine"]["state"] == "warning"
    assert "equal tokens" in found["prompts mine"]["detail"]


def test_a_target_and_a_transfer_set_of_one_source(study: Path) -> None:
    images = _image_folder(study.parent / "images", ["red", "green"])
    _on_images(study, images)
    study.write_text(study.read_text().replace("source: {path:", "source: {origin: generated-objects, path:"))
    code, found = check(study)
    assert code == 1
    assert "would not be zero-shot" in found["overlap objects"]["detail"]


@pytest.mark.parametrize(
    ("gone", "state", "said"),
    [
        ("tokenizer.json", "problem", "holds no tokenizer"),
        ("preprocessor_config.json", "problem", "holds no image processor"),
        ("model.safetensors", "problem", "no safetensors"),
    ],
)
def test_a_model_folder_that_lacks_something(study: Path, tiny_clip: Path, gone: str, state: str, said: str) -> None:
    folder = study.parent / "model"
    shutil.copytree(tiny_clip, folder)
    names = [gone] if (folder / gone).exists() else ["processor_config.json"]
    for name in names:
        (folder / name).unlink()
    code, found = check(study, "--set", f"model={folder}")
    assert code == 1
    assert found[f"model {folder}"]["state"] == state
    assert said in found[f"model {folder}"]["detail"]


def _shards(folder: Path) -> list[Path]:
    """Put the weights of a model folder into two files and an index."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = [folder / f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    places = {name: files[index % 2].name for index, name in enumerate(tensors)}
    for file in files:
        held = {name: tensors[name] for name in tensors if places[name] == file.name}
        save_file(held, file, metadata={"format": "pt"})
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": places})
    return files


@pytest.mark.one_in(3)
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("how", ["run", "dry run", "check"])
def test_cut_weights_are_a_problem_before_the_first_run(study: Path, tiny_clip: Path, sharded: bool, how: str) -> None:
    folder = Path(shutil.copytree(tiny_clip, study.parent / "model"))
    files = _shards(folder) if sharded else [folder / "model.safetensors"]
    from attndrift.study.check import check_study
    from attndrift.study.loading import load_study

    here = load_study(str(study), overrides={"model": str(folder)})
    assert not check_study(here, study.parent / "out").problems, "whole weights are no problem"
    path = files[-1]
    path.write_bytes(path.read_bytes()[:-7])
    command = {"run": ["run"], "dry run": ["run", "--dry-run"], "check": ["check"]}[how]
    result = runner.invoke(app, [*command, str(study), "--set", f"model={folder}"])
    assert result.exit_code == 1
    said = " ".join(result.output.split())
    size = path.stat().st_size
    assert f"{path.name} has {size:,} bytes where its header asks for {size + 7:,}" in said
    assert f"again, into {folder}" in said
    assert not (study.parent / "studies").exists()


@pytest.mark.parametrize("content", [None, b"", b"\x00" * 7, b"\xff" * 100, b"\x02" + b"\x00" * 7 + b"[]"])
def test_a_shard_that_is_no_safetensors_file(study: Path, tiny_clip: Path, content: bytes | None) -> None:
    from attndrift.study.check import check_study
    from attndrift.study.loading import load_study

    folder = Path(shutil.copytree(tiny_clip, study.parent / "model"))
    path = _shards(folder)[1]
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    (problem,) = check_study(load_study(str(study), overrides={"model": str(folder)}), study.parent / "out").problems
    assert path.name in problem.detail
    assert ("is missing" in problem.detail) == (content is None)


@pytest.mark.parametrize(
    ("config", "detail", "remedy"),
    [
        ({"model_type": "clip_vision_model"}, "not a CLIP model with both towers", "DriftMonitor(model, pixels)"),
        ({"model_type": "siglip2"}, "SigLIP 2 of a flexible size (NaFlex)", "DriftMonitor(model, pixels)"),
        ({"model_type": "deit"}, "of a 'deit' model", "DriftMonitor(model, pixels)"),
        ({"model_type": "beit"}, "of a 'beit' model", "DriftMonitor(model, pixels)"),
        ({"model_type": "swin"}, "of a 'swin' model", "DriftMonitor(model, pixels)"),
        (
            {"model_type": "clip", "architectures": ["CLIPForImageClassification"]},
            "an export of CLIPForImageClassification",
            "put the tower into that CLIPModel",
        ),
    ],
)
def test_what_no_study_trains_is_told_what_can_be_done(
    study: Path, tiny_clip: Path, config: dict[str, object], detail: str, remedy: str
) -> None:
    folder = study.parent / "other"
    shutil.copytree(tiny_clip, folder)
    write_json(folder / "config.json", config)
    code, found = check(study, "--set", f"model={folder}")
    assert code == 1
    finding = found[f"model {folder}"]
    assert detail in finding["detail"]
    assert remedy in finding["remedy"]
    assert "CLIPModel.from_pretrained" not in str(finding)


def test_a_run_that_its_settings_forbid(study: Path) -> None:
    study.write_text(study.read_text() + "  - {method: full, freeze_layers: 9}\n")
    code, found = check(study)
    assert code == 1
    (run,) = [name for name in found if name.startswith("run ")]
    assert "the model has 3 blocks" in found[run]["detail"]


def test_what_several_runs_meet_is_said_once(study: Path) -> None:
    study.write_text(study.read_text() + "".join(
        f"  - {{method: full, seed: {seed}, freeze_layers: 9}}\n" for seed in range(1, 6)
    ))  # fmt: skip
    code, found = check(study)
    assert code == 1
    (run,) = [name for name in found if "run" in name]
    assert run.startswith("5 runs (")
    assert "the model has 3 blocks" in found[run]["detail"]


def test_a_folder_that_holds_something_else(study: Path) -> None:
    (study.parent / "full").mkdir()
    (study.parent / "full" / "file").write_text("mine")
    code, found = check(study, "--output", str(study.parent / "full"))
    assert code == 1
    assert "not a study folder" in found[f"output {study.parent / 'full'}"]["detail"]


def test_too_little_room(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(study.parent)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=1000))
    code, found = check(study)
    assert code == 1
    assert found["disk studies/small"]["state"] == "problem"


def _free(monkeypatch: pytest.MonkeyPatch, free: float) -> None:
    real = shutil.disk_usage
    monkeypatch.setattr("shutil.disk_usage", lambda path: real(path)._replace(free=int(free)))


@pytest.mark.parametrize("arguments", [["--dry-run"], []])
def test_a_full_disk_is_said_before_the_first_run(
    study: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _free(monkeypatch, 0)
    result = runner.invoke(app, ["run", str(study), *arguments])
    assert result.exit_code == 1
    assert "disk studies/small" in result.stderr
    assert "make room" in result.stderr
    assert not (study.parent / "studies").exists()


@pytest.mark.one_in(3)
@pytest.mark.parametrize("method", ["full", "last_block", "lora", "linear_probe", "none"])
@pytest.mark.parametrize(
    "model", ["folder", *(pytest.param(name, marks=pytest.mark.slow) for name in ("embedded", "config:tiny"))]
)
def test_the_fast_form_asks_for_less_room_than_the_plan_and_not_for_much_less(
    study: Path, tiny_clip: Path, method: str, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from attndrift.study import check as module
    from attndrift.study.loading import load_study
    from attndrift.study.plan import plan

    name = str(tiny_clip) if model == "folder" else model
    study.write_text(study.read_text().partition("runs:")[0] + f"runs: [{{method: {method}}}]\n")
    here = load_study(str(study), overrides={"model": name})
    asked: list[float] = []
    monkeypatch.setattr(module, "check_disk", lambda found, where, *, written: asked.append(written))
    assert not module.check_study(here, study.parent / "out").problems
    (row,) = plan(here)
    assert row.trainable_parameters is not None
    weights = 4.0 * row.trainable_parameters if method in ("full", "last_block") else 0.0
    # Two checkpoints, and two states of weights and two moments.
    assert 0.7 * 8 * weights < asked[0] <= 8 * weights + 200_000


@pytest.mark.parametrize("model", ["dinov2-tiny", "dinov2-registers-tiny", "dinov3-tiny", "vit-tiny"])
def test_the_room_that_a_tower_without_text_needs(model: str) -> None:
    """Its config has no part `vision_config`."""
    from attndrift.models.load import build_model, load_config
    from attndrift.study.check_disk import RECORD_BYTES, least_bytes
    from attndrift.study.settings import RunSettings

    source = f"config:{model}"
    settings = RunSettings(model=source, dataset="digits", method="full")
    weights = 4 * sum(one.numel() for one in build_model(source).parameters())
    asked = least_bytes([settings], {source: {"vision_config": {}, **load_config(source).to_dict()}}, 1)
    assert 0.9 * 8 * weights < asked - RECORD_BYTES < 1.1 * 8 * weights


def test_what_goes_to_one_disk_is_summed(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from attndrift.study.check_disk import check_disk
    from attndrift.study.check_findings import Check, Download

    def problems(free: float) -> list[str]:
        _free(monkeypatch, free)
        found = Check("small")
        found.downloads += [Download("model a", 600, str(study.parent / "hub")), Download("b", 600, str(study.parent))]
        check_disk(found, str(study.parent / "out"), written=600)
        assert len(found.findings) == 1
        return [finding.what for finding in found.problems]

    assert problems(1800) == []
    assert problems(1799) == [f"disk {study.parent / 'hub'}, {study.parent} and {study.parent / 'out'}"]


def test_runs_that_are_done_need_no_room(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert runner.invoke(app, ["run", str(study), "--only", "E1", "--set", "transfer=[]"]).exit_code == 0
    _free(monkeypatch, 0)
    for arguments in (["run", str(study)], ["run", str(study), "--dry-run"], ["check", str(study)]):
        done = [*arguments, "--only", "E1", "--set", "transfer=[]"]
        assert runner.invoke(app, done).exit_code == 0
    assert runner.invoke(app, ["run", str(study), "--set", "transfer=[]"]).exit_code == 1


def test_a_place_below_a_file(study: Path) -> None:
    where = f"{study}/out"
    code, found = check(study, "--output", where)
    assert code == 1
    assert "Errno" not in found[f"output {where}"]["detail"]
    assert "--output" in found[f"output {where}"]["remedy"]


def test_a_store_without_credentials_or_without_an_answer(study: Path) -> None:
    pytest.importorskip("s3fs")
    code, found = check(study, "--output", "s3://no-such-bucket-of-ours/study")
    assert code == 1
    finding = found["output s3://no-such-bucket-of-ours/study"]
    assert finding["state"] == "problem"
    assert "credentials" in finding["remedy"]


def test_a_package_that_is_not_installed(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "submitit" else find(name))
    code, found = check(study, "--engine", "slurm")
    assert code == 1
    assert found["package submitit"]["remedy"] == 'pip install "attndrift[slurm]"'


@pytest.mark.slow
def test_device_and_memory_are_those_of_a_worker_on_slurm(study: Path) -> None:
    """``cluster=local`` is submitit's own scheduler on this machine: a job in another process."""
    pytest.importorskip("submitit")
    options = ["--engine", "slurm", "--scheduler", "cluster=local", "--scheduler", f"folder={study.parent / 'jobs'}"]
    code, found = check(study, *options)
    assert code == 0, found
    assert "cores, cpu with" in found["worker"]["detail"]
    assert "device cpu" not in found
    assert "free on the worker" in found["memory"]["detail"]
    if not torch.cuda.is_available():
        code, found = check(study, *options, "--set", "device=cuda")
        assert code == 1
        assert "--gpus-per-run" in found["worker"]["remedy"]


def test_a_dry_run_for_other_machines_asks_for_no_device_here(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    options = ["--engine", "slurm", "--scheduler", "cluster=local", "--set", "device=cuda"]
    result = runner.invoke(app, ["run", str(study), "--dry-run", *options])
    assert result.exit_code == 0, result.output


@pytest.mark.slow
def test_device_and_memory_are_those_of_a_worker_on_ray(study: Path) -> None:
    pytest.importorskip("ray")
    code, found = check(study, "--engine", "ray")
    assert code == 0, found
    assert "cores, cpu with" in found["worker"]["detail"]
