"""Checkpoints prove what they hold; the ways in which adapters stay silent are errors here."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from attndrift.files import sha256
from attndrift.methods import (
    AdaptationSettings,
    ImageClassifier,
    adapt,
    load_adapted,
    load_adapter,
    projection_drift,
    save_adapted,
    weight_drift,
)
from attndrift.models import CheckpointError, FingerprintError, load_model

NAMES = ("a", "b", "c", "d", "e")


@pytest.fixture
def pixels() -> Tensor:
    return torch.randn(8, 3, 28, 28, generator=torch.Generator().manual_seed(1))


def _trained(settings: AdaptationSettings, pixels: Tensor, steps: int = 3) -> ImageClassifier:
    model = adapt(load_model("config:tiny"), settings, len(NAMES), seed=0)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    torch.manual_seed(0)
    for _ in range(steps):
        optimizer.zero_grad()
        model.train()(pixel_values=pixels, labels=torch.arange(8) % 5).loss.backward()
        optimizer.step()
    return model.eval()


def _save(model: ImageClassifier, folder: Path, pixels: Tensor) -> None:
    save_adapted(
        model, folder, base_source="config:tiny", probe_pixels=pixels, pretrained=load_model("config:tiny"),
        class_names=NAMES,
    )  # fmt: skip


def _reseal(folder: Path) -> None:
    """Bring the recorded checksums in line with files changed on purpose."""
    path = folder / "checkpoint.json"
    description = json.loads(path.read_text())
    description["files"] = {name: sha256(folder / name) for name in description["files"]}
    path.write_text(json.dumps(description))


SETTINGS = [
    AdaptationSettings("full"),
    AdaptationSettings("lora", lora_targets="q,k,v,out"),
    AdaptationSettings("lora", train_projection=False),
    AdaptationSettings("linear_probe"),
    AdaptationSettings("last_block"),
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: f"{s.method}-{s.train_projection}")
def test_a_checkpoint_gives_back_the_model(settings: AdaptationSettings, pixels: Tensor, tmp_path: Path) -> None:
    model = _trained(settings, pixels)
    _save(model, tmp_path / "best", pixels)
    again = load_adapted(tmp_path / "best")
    with torch.no_grad():
        assert torch.equal(again(pixels).logits, model(pixels).logits)
    assert weight_drift(again, load_model("config:tiny")) == weight_drift(model, load_model("config:tiny"))


def test_merged_adapters_predict_the_same(pixels: Tensor, tmp_path: Path) -> None:
    model = _trained(SETTINGS[1], pixels)
    _save(model, tmp_path / "best", pixels)
    merged = load_adapted(tmp_path / "best", merged=True)
    assert not any("lora_" in name for name, _ in merged.named_parameters())
    with torch.no_grad():
        torch.testing.assert_close(merged(pixels).logits, model(pixels).logits, atol=1e-4, rtol=1e-4)
    pretrained = load_model("config:tiny")
    assert weight_drift(merged, pretrained) == pytest.approx(weight_drift(model, pretrained), rel=1e-4)
    assert projection_drift(merged, pretrained) == projection_drift(model, pretrained)


_EVALUATE = """
import sys, json, torch
from attndrift.methods import load_adapted
from attndrift.models import load_model
from attndrift.models.load import load_processor
from attndrift.retention.zero_shot import TextFeatures, evaluate_zero_shot
class Images:
    pixels = torch.randn(200, 3, 28, 28, generator=torch.Generator().manual_seed(7))
    def fetch(self, positions): return self.pixels[list(positions)]
text = TextFeatures.of(load_model("config:tiny"), load_processor("config:tiny")[0], [f"thing {i}" for i in range(9)])
found = {}
for mode in ("adapters", "merged"):
    model = load_adapted(sys.argv[1], merged=mode == "merged")
    result = evaluate_zero_shot(model, Images(), [i % 9 for i in range(200)], text_features=text)
    found[mode] = [result.predictions.tolist(), result.margins.tolist()]
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.ci("study")
def test_a_lora_run_evaluated_in_a_new_process_predicts_the_same(pixels: Tensor, tmp_path: Path) -> None:
    from attndrift.models.load import load_processor
    from attndrift.retention.zero_shot import TextFeatures, evaluate_zero_shot

    model = _trained(SETTINGS[1], pixels)
    _save(model, tmp_path / "best", pixels)

    class Images:
        pixels = torch.randn(200, 3, 28, 28, generator=torch.Generator().manual_seed(7))

        def fetch(self, positions: range) -> Tensor:
            return self.pixels[list(positions)]

    clip = load_model("config:tiny")
    text = TextFeatures.of(clip, load_processor("config:tiny")[0], [f"thing {i}" for i in range(9)])
    here = evaluate_zero_shot(model, Images(), [i % 9 for i in range(200)], text_features=text)
    bare = evaluate_zero_shot(clip, Images(), [i % 9 for i in range(200)], text_features=text)
    assert (here.predictions != bare.predictions).any(), "the adapters take part"
    command = [sys.executable, "-c", _EVALUATE, str(tmp_path / "best")]
    output = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    for mode, (predictions, margins) in json.loads(output.splitlines()[-1]).items():
        clear = torch.tensor(margins) > 1e-4
        assert clear.sum() > 150
        assert torch.equal(torch.tensor(predictions)[clear], torch.from_numpy(here.predictions)[clear]), mode


@pytest.mark.parametrize("name", ["model.safetensors", "fingerprint.safetensors", "adapter/adapter_model.safetensors"])
def test_a_flipped_bit_is_found(name: str, pixels: Tensor, tmp_path: Path) -> None:
    _save(_trained(SETTINGS[1], pixels), tmp_path / "best", pixels)
    path = tmp_path / "best" / name
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{re.escape(name)} does not have its recorded checksum"):
        load_adapted(tmp_path / "best")


def test_a_missing_file_and_a_folder_that_is_no_checkpoint_are_named(pixels: Tensor, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load_adapted(tmp_path)
    _save(_trained(SETTINGS[0], pixels), tmp_path / "best", pixels)
    (tmp_path / "best" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing"):
        load_adapted(tmp_path / "best")


def test_other_weights_than_the_backbones_are_refused(pixels: Tensor, tmp_path: Path) -> None:
    _save(_trained(SETTINGS[0], pixels), tmp_path / "best", pixels)
    other = load_model("config:tiny")
    with torch.no_grad():
        other.visual_projection.weight.add_(0.01)
    with pytest.raises(CheckpointError, match="trained from other weights"):
        load_adapted(tmp_path / "best", base=other)


def test_weights_changed_after_saving_do_not_reproduce_the_fingerprint(pixels: Tensor, tmp_path: Path) -> None:
    _save(_trained(SETTINGS[0], pixels), tmp_path / "best", pixels)
    path = tmp_path / "best" / "model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if "visual_projection" in name)
    weights[name] = weights[name] + 1e-3
    save_file(weights, path)
    _reseal(tmp_path / "best")
    with pytest.raises(FingerprintError, match="embeds the recorded images differently"):
        load_adapted(tmp_path / "best")


def test_adapters_that_do_nothing_are_told_from_the_saved_model(pixels: Tensor, tmp_path: Path) -> None:
    """The first study's mistake: the checkpoint without its adapters is the pretrained model."""
    _save(_trained(AdaptationSettings("lora", train_projection=False), pixels), tmp_path / "best", pixels)
    path = tmp_path / "best" / "adapter" / "adapter_model.safetensors"
    save_file({name: value * 0 if "lora_B" in name else value for name, value in load_file(path).items()}, path)
    _reseal(tmp_path / "best")
    with pytest.raises(FingerprintError, match="as the pretrained model does: what was trained did not load"):
        load_adapted(tmp_path / "best")


def test_drift_without_movement_raises_even_if_the_fingerprint_agrees(pixels: Tensor, tmp_path: Path) -> None:
    """Weights that drifted and embeddings that are bit-equal to the pretrained ones cannot both be true."""
    model = adapt(load_model("config:tiny"), AdaptationSettings("linear_probe"), 5, 0)
    _save(model, tmp_path / "best", pixels)
    path = tmp_path / "best" / "checkpoint.json"
    description = json.loads(path.read_text())
    description["drift"]["weight"] = 0.004
    path.write_text(json.dumps(description))
    with pytest.raises(FingerprintError, match="does not take part in the forward pass"):
        load_adapted(tmp_path / "best")


@pytest.mark.parametrize("rename", ["vision_model.encoder", "base_model.model."])
def test_an_adapter_under_other_keys_is_an_error_and_not_a_warning(rename: str, pixels: Tensor, tmp_path: Path) -> None:
    """`peft` loads such a file, warns, and leaves the features where they were."""
    _save(_trained(SETTINGS[1], pixels), tmp_path / "best", pixels)
    path = tmp_path / "best" / "adapter" / "adapter_model.safetensors"
    save_file({name.replace(rename, "vision_model." + rename, 1): v for name, v in load_file(path).items()}, path)
    _reseal(tmp_path / "best")
    with pytest.raises(CheckpointError, match=r"tensors are missing and \d+ have no place"):
        load_adapted(tmp_path / "best")
    clip = load_model("config:tiny")
    with torch.no_grad():
        before = clip.get_image_features(pixel_values=pixels).pooler_output
    with pytest.warns(UserWarning, match="missing adapter keys"):
        silent = PeftModel.from_pretrained(copy.deepcopy(clip), str(path.parent))
    with torch.no_grad():
        assert torch.equal(silent.get_base_model().get_image_features(pixel_values=pixels).pooler_output, before)


def test_the_adapter_folder_is_one_that_peft_loads(pixels: Tensor, tmp_path: Path) -> None:
    model = _trained(AdaptationSettings("lora", train_projection=False), pixels)
    _save(model, tmp_path / "best", pixels)
    loaded = PeftModel.from_pretrained(load_model("config:tiny"), str(tmp_path / "best" / "adapter"))
    with torch.no_grad():
        features = loaded.eval().get_base_model().get_image_features(pixel_values=pixels).pooler_output
        assert torch.equal(features, model.embed(pixels))


def test_a_peft_state_dict_in_a_plain_model_changes_nothing_and_says_nothing(pixels: Tensor) -> None:
    """Why checkpoints are proven: this is how the first study evaluated the pretrained model."""
    model = _trained(SETTINGS[1], pixels)
    clip = load_model("config:tiny")
    with torch.no_grad():
        before = clip.get_image_features(pixel_values=pixels).pooler_output
        result = clip.load_state_dict(get_peft_model_state_dict(model.model), strict=False)
        assert result.unexpected_keys
        assert torch.equal(clip.get_image_features(pixel_values=pixels).pooler_output, before)


def test_a_damaged_adapter_file_is_named(pixels: Tensor, tmp_path: Path) -> None:
    model = _trained(SETTINGS[1], pixels)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_adapter(model.model, tmp_path)
