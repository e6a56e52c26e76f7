"""What a checkpoint folder holds, and how it comes into being: whole, or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.utils import save_and_load
from safetensors.torch import load_file
from torch import Tensor

from attndrift.formats import FormatError
from attndrift.methods import AdaptationSettings, ImageClassifier, adapt, load_adapted, save_adapted
from attndrift.methods import checkpoint as module
from attndrift.models import CheckpointError, load_model

PIXELS = torch.randn(8, 3, 28, 28, generator=torch.Generator().manual_seed(5))


def _model(method: str = "full", source: str = "config:tiny") -> ImageClassifier:
    model = adapt(load_model(source), AdaptationSettings(method), 3, 0).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model


def _save(model: ImageClassifier, folder: Path, **changes: Any) -> None:
    values: dict[str, Any] = {
        "base_source": "config:tiny", "probe_pixels": PIXELS, "pretrained": load_model("config:tiny"),
        "class_names": ("a", "b", "c"),
    }  # fmt: skip
    save_adapted(model, folder, **(values | changes))


@pytest.mark.parametrize("method", ["full", "lora", "last_block", "linear_probe"])
def test_the_files_hold_the_trained_tensors_and_nothing_else(method: str, tmp_path: Path) -> None:
    model = _model(method)
    _save(model, tmp_path / "best", extra={"epoch": 3})
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    stored = set(load_file(tmp_path / "best" / "model.safetensors"))
    assert stored == {n for n in trained if "lora_" not in n}
    adapters = tmp_path / "best" / "adapter" / "adapter_model.safetensors"
    assert adapters.is_file() == (method == "lora")
    if method == "lora":
        assert len(load_file(adapters)) == len(trained - stored) > 0
    fingerprint = load_file(tmp_path / "best" / "fingerprint.safetensors")
    assert fingerprint["embeddings"].shape == fingerprint["pretrained_embeddings"].shape == (8, 32)
    description = json.loads((tmp_path / "best" / "checkpoint.json").read_text())
    assert description["epoch"] == 3
    assert description["settings"]["method"] == method
    files = {str(p.relative_to(tmp_path / "best")) for p in (tmp_path / "best").rglob("*") if p.is_file()}
    assert files == set(description["files"]) | {"checkpoint.json"}


def test_a_save_that_fails_leaves_the_older_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model()
    _save(model, tmp_path / "best")
    before = {p.name: p.read_bytes() for p in (tmp_path / "best").iterdir()}

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(module, "write_json", fail)
    with pytest.raises(OSError, match="no space left"):
        _save(model, tmp_path / "best")
    assert {p.name: p.read_bytes() for p in (tmp_path / "best").iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["best"], "no scratch folder stays behind"


def test_no_hub_is_asked_when_adapters_are_saved(
    tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(save_and_load, "check_file_exists_on_hf_hub", lambda *_, **__: pytest.fail("a hub was asked"))
    model = _model("lora", str(tiny_clip))
    model.model.peft_config["default"].base_model_name_or_path = "someone/clip"
    _save(model, tmp_path / "best", base_source=str(tiny_clip), pretrained=load_model(tiny_clip))
    load_adapted(tmp_path / "best")


def test_a_model_that_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    model = _model()
    with torch.no_grad():
        model.backbone.visual_projection.weight[0, 0] = float("nan")
    with pytest.raises(CheckpointError, match="not finite"):
        _save(model, tmp_path / "best")
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_is_named_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 names for a classifier of 3 classes"):
        _save(_model(), tmp_path / "best", class_names=("a", "b"))
    with pytest.raises(ValueError, match="'files' is a field of every checkpoint"):
        _save(_model(), tmp_path / "best", extra={"files": {}})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda d: d.pop("base"), "the field 'base' is missing"),
        (lambda d: d.update(format=9), "reads format 3"),
        (lambda d: d["files"].pop("model.safetensors"), "no checksum of model.safetensors"),
        (lambda d: d["settings"].update(lora_magic=1), "settings that this version does not know"),
    ],
)
def test_a_description_that_was_changed_is_refused(change: Any, expected: str, tmp_path: Path) -> None:
    _save(_model(), tmp_path / "best")
    path = tmp_path / "best" / "checkpoint.json"
    description = json.loads(path.read_text())
    change(description)
    path.write_text(json.dumps(description))
    with pytest.raises((CheckpointError, FormatError), match=expected):
        load_adapted(tmp_path / "best")


def test_a_fingerprint_is_taken_in_float32_whatever_the_model_runs_in(tmp_path: Path) -> None:
    def fingerprint(model: ImageClassifier, name: str) -> Tensor:
        _save(model, tmp_path / name)
        return load_file(tmp_path / name / "fingerprint.safetensors")["embeddings"]

    model = _model()
    plain = fingerprint(model.train(), "plain")
    assert model.training
    assert all(module.training for module in model.modules()), "the mode is put back"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fingerprint(model, "autocast"), plain)
