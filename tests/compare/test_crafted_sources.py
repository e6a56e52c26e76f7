"""A checkpoint, run or model folder of somebody else's making is loaded or refused by the name of its file."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from attndrift.compare.resolved import ResolvedModel
from attndrift.compare.sources import resolve
from attndrift.files import sha256
from attndrift.methods import AdaptationSettings, adapt, save_adapted
from attndrift.models import load_model

NESTED = '{"a":' * 3000 + "1" + "}" * 3000


@pytest.fixture(scope="module")
def base() -> ResolvedModel:
    return resolve("config:tiny")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with a checkpoint of adapters."""
    folder = tmp_path_factory.mktemp("made") / "run"
    clip = load_model("config:tiny")
    model = adapt(copy.deepcopy(clip), AdaptationSettings(method="lora"), 3, 0).eval()
    size = clip.config.vision_config.image_size
    save_adapted(
        model, folder / "checkpoints" / "best", base_source="config:tiny", pretrained=clip, class_names=["a", "b", "c"],
        probe_pixels=torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)),
    )  # fmt: skip
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(made, tmp_path / "run"))


def _refused(run: Path, base: ResolvedModel, names: str) -> None:
    with pytest.raises((ValueError, OSError)) as raised:
        resolve(run, base)
    assert names in str(raised.value), raised.value
    assert len(str(raised.value)) < 4000


TEXTS = [
    "null",
    "[]",
    '"x"',
    "3",
    "NaN",
    "",
    "[" * 3000 + "]" * 3000,
    NESTED,
    '{"a": ' + "9" * 6000 + "}",
    '{"format": "\\ud800"}',
]


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text[:8])
def test_a_description_of_a_wrong_shape_is_named(text: str, run: Path, base: ResolvedModel) -> None:
    (run / "checkpoints" / "best" / "checkpoint.json").write_text(text)
    _refused(run, base, "checkpoints/best")


WRONG: list[Any] = [None, [], ["x"], "x", 7, -1, 1e300, True, {}, {"a": {"b": []}}, "\ud800", [[[]]], 10**400]


@pytest.mark.parametrize("value", WRONG, ids=lambda value: repr(value)[:12])
@pytest.mark.parametrize("field", ["base", "settings", "class_names", "drift", "files", "format"])
def test_a_field_of_a_wrong_shape_is_named(field: str, value: object, run: Path, base: ResolvedModel) -> None:
    path = run / "checkpoints" / "best" / "checkpoint.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, field: value}))
    if field == "class_names" and value == ["x"]:
        return  # one class for a classifier of three is refused by its shape
    _refused(run, base, "checkpoints/best")


@pytest.mark.parametrize("value", [None, [], "x", -1, 1e300, {}, "\ud800"], ids=repr)
@pytest.mark.parametrize(
    "field", ["base.source", "base.weights_sha256", "settings.method", "settings.lora_rank", "drift.weight"]
)
def test_a_value_of_a_wrong_shape_is_named(field: str, value: object, run: Path, base: ResolvedModel) -> None:
    path = run / "checkpoints" / "best" / "checkpoint.json"
    content = json.loads(path.read_text())
    outer, _, inner = field.partition(".")
    content[outer][inner] = value
    path.write_text(json.dumps(content))
    if field == "drift.weight" and (value is None or isinstance(value, (int, float))):
        return
    if field in ("base.source",) and isinstance(value, str):
        return  # a name like any other; what counts is the weights' hash
    _refused(run, base, "checkpoints/best")


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "a/../../../x", "..", "model.safetensors\0"])
def test_a_file_outside_the_checkpoint_is_not_looked_at(name: str, run: Path, base: ResolvedModel) -> None:
    path = run / "checkpoints" / "best" / "checkpoint.json"
    content = json.loads(path.read_text())
    content["files"][name] = "0" * 64
    path.write_text(json.dumps(content))
    _refused(run, base, "outside the checkpoint")


@pytest.mark.parametrize("name", ["model.safetensors", "checkpoint.json", "fingerprint.safetensors", "adapter", "more"])
def test_a_link_that_leads_out_is_refused(name: str, run: Path, base: ResolvedModel, tmp_path: Path) -> None:
    path, elsewhere = run / "checkpoints" / "best" / name, tmp_path / "elsewhere"
    if path.exists():
        path.rename(elsewhere)
    else:
        elsewhere.mkdir()
    path.symlink_to(elsewhere)
    _refused(run, base, "leads out of its folder")


@pytest.mark.parametrize("name", ["checkpoints", "checkpoints/best", "settings.json"])
def test_a_link_that_leads_out_of_a_run_is_refused(name: str, run: Path, base: ResolvedModel, tmp_path: Path) -> None:
    path, elsewhere = run / name, tmp_path / "elsewhere"
    if path.exists():
        path.rename(elsewhere)
    else:
        elsewhere.write_text("{}")
    path.symlink_to(elsewhere)
    _refused(run, base, "leads out of its folder")


FINGERPRINTS: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "no pixels": lambda held: held.pop("pixels"),
    "no embeddings": lambda held: held.pop("embeddings"),
    "one more": lambda held: held.update(more=torch.zeros(1)),
    "pixels of another size": lambda held: held.update(pixels=torch.zeros(2, 3, 7, 7)),
    "pixels of one number": lambda held: held.update(pixels=torch.zeros(1)),
    "no images": lambda held: held.update(pixels=held["pixels"][:0]),
    "embeddings of another width": lambda held: held.update(embeddings=torch.zeros(2, 1)),
    "embeddings of whole numbers": lambda held: held.update(embeddings=held["embeddings"].int()),
    "pretrained of another length": lambda held: held.update(pretrained_embeddings=torch.zeros(0)),
}


@pytest.mark.parametrize("what", FINGERPRINTS)
def test_a_fingerprint_of_a_wrong_shape_is_named(what: str, run: Path, base: ResolvedModel) -> None:
    path = run / "checkpoints" / "best" / "fingerprint.safetensors"
    held = load_file(path)
    FINGERPRINTS[what](held)
    save_file(held, path)
    description = path.with_name("checkpoint.json")
    content = json.loads(description.read_text())
    content["files"][path.name] = sha256(path)
    description.write_text(json.dumps(content))
    _refused(run, base, "fingerprint.safetensors")


@pytest.mark.parametrize(
    "text", ["null", "3", "NaN", "[" * 3000 + "]" * 3000, NESTED, '{"a": ' + "9" * 6000 + "}", "\udcff"]
)
def test_an_image_processor_of_a_wrong_shape_is_named(
    text: str, tiny_clip: Path, base: ResolvedModel, tmp_path: Path
) -> None:
    import shutil

    folder = Path(shutil.copytree(tiny_clip, tmp_path / "model"))
    (folder / "processor_config.json").write_bytes(os.fsencode(text))
    _refused(folder, base, "processor_config.json")
