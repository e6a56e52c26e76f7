"""Adapters that stay silent: under other keys, in the wrong tower, switched off. Each must be an error.

What `peft` and `transformers` do is asserted first, so that a test fails when a library changes its ways.
"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPModel, CLIPVisionModel

from attndrift.methods import (
    AdaptationSettings,
    adapt,
    check_adapter_places,
    check_adapters_loaded,
    load_adapter,
    state_for_drift,
    weight_drift,
)
from attndrift.models import CheckpointError, load_model

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def clip() -> CLIPModel:
    return load_model("config:tiny")


@pytest.fixture
def pixels() -> Tensor:
    return torch.randn(6, 3, 28, 28, generator=torch.Generator().manual_seed(1))


def _moved_lora(clip: nn.Module, **settings: object) -> PeftModel:
    """A model with adapters whose update is not zero."""
    config = LoraConfig(r=4, lora_alpha=8, **({"target_modules": ["q_proj", "v_proj"]} | settings))
    model = get_peft_model(clip, config)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def _vision_only(clip: CLIPModel) -> PeftModel:
    return _moved_lora(copy.deepcopy(clip), target_modules=r"vision_model\..*\.(q|v)_proj")


def _features(model: nn.Module, pixels: Tensor) -> Tensor:
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    with torch.no_grad():
        return inner.get_image_features(pixel_values=pixels).pooler_output


def _from_pretrained(clip: nn.Module, folder: Path) -> PeftModel:
    with warnings.catch_warnings():
        # That it is only a warning is the trap.
        warnings.filterwarnings("ignore", message="Found missing adapter keys", category=UserWarning)
        return PeftModel.from_pretrained(clip, str(folder)).eval()


def test_adapters_that_loaded_pass(clip: CLIPModel, pixels: Tensor, tmp_path: Path) -> None:
    saved = _vision_only(clip)
    saved.save_pretrained(tmp_path)
    loaded = _from_pretrained(copy.deepcopy(clip), tmp_path)
    check_adapters_loaded(loaded, tmp_path)
    assert torch.equal(_features(loaded, pixels), _features(saved, pixels))
    assert not torch.equal(_features(loaded, pixels), _features(clip, pixels))


def test_keys_of_the_old_vision_model_load_inert_and_raise(clip: CLIPModel, tmp_path: Path) -> None:
    """Version 4 of transformers kept the tower of CLIPVisionModel under `vision_model`."""
    vision = CLIPVisionModel(clip.config.vision_config)
    assert not hasattr(vision, "vision_model"), "flattened in version 5"
    _moved_lora(copy.deepcopy(vision)).save_pretrained(tmp_path)
    path = tmp_path / WEIGHTS
    old = {k.replace("base_model.model.", "base_model.model.vision_model."): v for k, v in load_file(path).items()}
    save_file(old, path)
    with pytest.warns(UserWarning, match="Found missing adapter keys"):
        loaded = PeftModel.from_pretrained(copy.deepcopy(vision), str(tmp_path)).eval()
    x = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        assert torch.equal(loaded(x).pooler_output, vision.eval()(x).pooler_output), "features moved by 0.0"
    with pytest.raises(CheckpointError, match=r"\d+ tensors are missing and \d+ have no place"):
        check_adapters_loaded(loaded, tmp_path)


def test_an_adapter_of_the_bare_tower_is_inert_on_the_whole_model(
    clip: CLIPModel, pixels: Tensor, tmp_path: Path
) -> None:
    vision = CLIPVisionModel(clip.config.vision_config)
    saved = _moved_lora(vision)
    saved.save_pretrained(tmp_path)
    check_adapters_loaded(saved, tmp_path)
    loaded = _from_pretrained(copy.deepcopy(clip), tmp_path)
    assert torch.equal(_features(loaded, pixels), _features(clip, pixels)), "inert, with a warning only"
    with pytest.raises(CheckpointError, match="text_model"):
        check_adapters_loaded(loaded, tmp_path)


def test_a_plain_model_is_told_from_an_adapted_one(clip: CLIPModel, pixels: Tensor, tmp_path: Path) -> None:
    """The first study's mistake, in both forms; neither says a word."""
    saved = _vision_only(clip)
    saved.save_pretrained(tmp_path)
    for state in (saved.state_dict(), saved.get_base_model().state_dict()):
        plain = copy.deepcopy(clip)
        plain.load_state_dict(state, strict=False)
        assert torch.equal(_features(plain, pixels), _features(clip, pixels))
        with pytest.raises(CheckpointError, match="carries no adapter 'default': it is the pretrained one"):
            check_adapters_loaded(plain, tmp_path)


IMAGE_HALF = {
    "all-linear": {"target_modules": "all-linear", "exclude_modules": r".*text.*"},
    "a pattern": {"target_modules": r"(vision_model\..*\.(q|v)_proj|visual_projection)"},
    "the projection alone": {"target_modules": ["visual_projection"]},
    "the projection by rank-stabilised LoRA": {"target_modules": ["visual_projection"], "use_rslora": True},
    "names that the text tower lacks": {"target_modules": ["visual_projection", "patch_embedding"]},
}


@pytest.mark.parametrize("kind", IMAGE_HALF)
def test_adapters_of_the_image_half_reach_the_projection(
    kind: str, clip: CLIPModel, pixels: Tensor, tmp_path: Path
) -> None:
    saved = _moved_lora(copy.deepcopy(clip), **IMAGE_HALF[kind])
    assert any("visual_projection" in name for name, _ in saved.named_parameters() if "lora_" in name)
    check_adapter_places(saved)
    saved.save_pretrained(tmp_path)
    check_adapters_loaded(_from_pretrained(copy.deepcopy(clip), tmp_path), tmp_path)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "visual_projection", "text_projection"], ["fc1"]])
def test_adapters_of_both_halves_are_loaded_where_both_may_change(
    targets: str | list[str], clip: CLIPModel, pixels: Tensor, tmp_path: Path
) -> None:
    saved = _moved_lora(copy.deepcopy(clip), target_modules=targets)
    saved.save_pretrained(tmp_path)
    fresh = get_peft_model(copy.deepcopy(clip), LoraConfig.from_pretrained(str(tmp_path))).eval()
    load_adapter(fresh, tmp_path, text_tower=True)
    assert torch.equal(_features(fresh, pixels), _features(saved, pixels))
    with pytest.raises(ValueError, match=r"outside the image tower and its projection, for instance .*text"):
        check_adapter_places(fresh)


@pytest.mark.parametrize("targets", [["text_projection"], r"text_model\..*\.q_proj"])
def test_adapters_of_the_text_half_alone_change_no_image(targets: str | list[str], clip: CLIPModel) -> None:
    with pytest.raises(ValueError, match="no adapter was placed in the image tower"):
        check_adapter_places(_moved_lora(clip, target_modules=targets), text_tower=True)


def test_names_of_modules_reach_into_the_text_tower(clip: CLIPModel, tmp_path: Path) -> None:
    saved = _moved_lora(copy.deepcopy(clip))
    saved.save_pretrained(tmp_path)
    assert any("text_model" in name for name in load_file(tmp_path / WEIGHTS))
    loaded = _from_pretrained(copy.deepcopy(clip), tmp_path)
    with pytest.raises(CheckpointError, match="outside the image tower"):
        check_adapters_loaded(loaded, tmp_path)


def test_an_attached_adapter_whose_weights_were_dropped_raises(clip: CLIPModel, pixels: Tensor, tmp_path: Path) -> None:
    """Right names, fresh values: the embeddings are those of the base model."""
    _vision_only(clip).save_pretrained(tmp_path)
    fresh = get_peft_model(
        copy.deepcopy(clip), LoraConfig(r=4, lora_alpha=8, target_modules=r"vision_model\..*\.(q|v)_proj")
    )
    assert torch.equal(_features(fresh.eval(), pixels), _features(clip, pixels))
    with pytest.raises(CheckpointError, match="is not the tensor in the file: it did not load"):
        check_adapters_loaded(fresh, tmp_path)


def test_adapters_that_are_switched_off_or_zero_raise(clip: CLIPModel, tmp_path: Path) -> None:
    model = _vision_only(clip)
    model.save_pretrained(tmp_path)
    model.base_model.disable_adapter_layers()
    with pytest.raises(CheckpointError, match="is not active"):
        check_adapters_loaded(model, tmp_path)
    model.base_model.enable_adapter_layers()
    check_adapters_loaded(model, tmp_path)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="every lora_B is zero"):
        check_adapters_loaded(model, tmp_path)


def test_merging_moves_embeddings_by_rounding_only(clip: CLIPModel, pixels: Tensor) -> None:
    model = _vision_only(clip)
    adapted = _features(model, pixels)
    with torch.no_grad(), model.disable_adapter():
        assert torch.equal(_features(model, pixels), _features(clip, pixels)), "disabling is exact"
    tower = copy.deepcopy(model).get_base_model().vision_model
    with torch.no_grad():
        taken_out = model.get_base_model().visual_projection(tower(pixels).pooler_output)
    assert torch.equal(taken_out, adapted), "a tower taken out of a peft model keeps its adapters"
    merged = _features(model.merge_and_unload(), pixels)
    assert float((merged - adapted).abs().max() / adapted.abs().max()) < 1e-5


def test_adapters_stay_float32_on_a_bfloat16_model() -> None:
    model = adapt(load_model("config:tiny", dtype=torch.bfloat16), AdaptationSettings("lora"), 5, 0)
    assert {p.dtype for n, p in model.named_parameters() if "lora_" in n} == {torch.float32}


@pytest.mark.parametrize("targets", ["q,v", "q,k,v,out"])
def test_drift_of_adapters_is_that_of_the_merged_weights(clip: CLIPModel, targets: str) -> None:
    model = adapt(copy.deepcopy(clip), AdaptationSettings("lora", lora_rank=3, lora_targets=targets), 5, 0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    before, after = state_for_drift(model, clip)
    assert set(before) == set(after)
    drift = weight_drift(model, clip)
    merged = model.model.merge_and_unload()
    changed = dict(merged.vision_model.named_parameters())
    moved = sum(float((changed[n].double() - v.double()).square().sum()) for n, v in before.items())
    norm = sum(float(v.double().square().sum()) for v in before.values())
    assert drift == pytest.approx((moved / norm) ** 0.5, rel=1e-5)


def test_drift_is_not_measured_through_adapters_that_are_off(clip: CLIPModel) -> None:
    model = adapt(copy.deepcopy(clip), AdaptationSettings("lora"), 5, 0)
    with model.model.disable_adapter(), pytest.raises(ValueError, match="disabled"):
        weight_drift(model, clip)
