"""What transformers 5, peft and accelerate do behind one's back: a test for each, named here, and those that live nowhere else.

The rows are facts that were measured or read in the libraries; ``TRAPS`` says which tests stand guard over which.
"""

from __future__ import annotations

import ast
import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AttentionInterface, CLIPModel, CLIPVisionModel, Dinov2Config, Dinov2Model, ViTConfig, ViTModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from attndrift.attention import observe
from attndrift.drift import DriftMonitor
from attndrift.models import load_model
from attndrift.models.embedding import image_embeddings

HERE = "tests/test_library_traps.py"
OBSERVED = "tests/attention/test_traps.py"
TRAPS: dict[str, tuple[tuple[str, str], ...]] = {
    "1. under sdpa, output_attentions=True returns an empty tuple and says nothing": (
        (OBSERVED, "test_output_attentions_under_sdpa_is_empty"),
        (HERE, "test_every_family_answers_with_nothing_under_sdpa_and_is_seen"),
    ),
    "2. from_pretrained(output_attentions=True) makes the whole model eager": (
        (HERE, "test_a_model_that_was_loaded_eager_by_an_argument_is_seen_the_same"),
        (OBSERVED, "test_the_model_is_not_made_eager"),
    ),
    "3. a version of the library lost its maps even in eager": (
        (HERE, "test_rows_are_those_of_the_weights_and_not_of_the_librarys_maps"),
        ("tests/attention/test_restored.py", "test_reading_before_any_forward"),
    ),
    "4. a registered attention function may hand out a row": (
        (HERE, "test_an_attention_function_of_ones_own_goes_on_working_and_is_seen"),
        (OBSERVED, "test_asking_for_output_attentions_while_observed"),
    ),
    "5. an attention function registered without its mask function drops the text tower's mask": (
        (OBSERVED, "test_text_features_keep_their_padding_mask"),
        ("tests/attention/test_families.py", "test_text_encoders_with_their_masks"),
    ),
    "6. layer_idx is None on CLIP, and gradient checkpointing calls attention twice a layer": (
        (OBSERVED, "test_layers_are_named_from_the_tree"),
        ("tests/attention/test_gradients.py", "test_checkpointing_without_gradients_records_once"),
        ("tests/attention/test_gradients.py", "test_accumulated_microbatches_under_checkpointing"),
    ),
    "7. get_image_features returns an output object": (
        (HERE, "test_image_features_are_an_object_and_embeddings_a_tensor"),
    ),
    "8. CLIPVisionModel was flattened, its keys are others": (
        (OBSERVED, "test_a_tower_that_is_not_flattened_is_found"),
        ("tests/compare/test_compare_sources.py", "test_a_vision_tower_is_put_into_base_in_every_layout"),
    ),
    "9. adapters saved under the old keys load inert with a warning": (
        (HERE, "test_adapters_under_the_old_keys_load_inert_by_peft_and_in_place_or_not_at_all_by_us"),
        ("tests/compare/test_compare_sources.py", "test_an_adapter_of_the_bare_tower_lands_in_base_in_either_layout"),
        ("tests/models/test_checkpoint.py", "test_an_adapter_under_other_keys_is_an_error_and_not_a_warning"),
    ),
    "10. a peft state dict in a plain CLIP with strict=False changes nothing": (
        ("tests/models/test_checkpoint.py", "test_a_peft_state_dict_in_a_plain_model_changes_nothing_and_says_nothing"),
        ("tests/models/test_checkpoint.py", "test_adapters_that_do_nothing_are_told_from_the_saved_model"),
    ),
    "11. target_modules by name adapts the text tower too": (
        ("tests/models/test_methods.py", "test_target_modules_by_name_reach_into_the_text_tower_and_are_refused"),
        (OBSERVED, "test_adapters_on_the_vision_tower_alone_and_on_both"),
    ),
    "12. merging rounds, adapters stay float32 on half-precision weights, disabling is exact": (
        (HERE, "test_merging_rounds_half_precision_weights_and_measuring_does_not"),
        ("tests/drift/test_monitor.py", "test_merged_adapters_are_refused_and_unmerged_ones_measured_as_merged"),
    ),
    "13. open_clip's MultiheadAttention and peft": (("tests/attention/test_families.py", "test_adapters_count"),),
    "14. peft only warns on missing adapter keys; a merged folder brings its adapter again": (
        (HERE, "test_adapters_under_the_old_keys_load_inert_by_peft_and_in_place_or_not_at_all_by_us"),
        (
            "tests/compare/test_compare_sources.py",
            "test_a_model_folder_that_holds_adapters_beside_its_weights_raises",
        ),
        ("tests/compare/test_compare_sources.py", "test_an_adapter_that_lacks_a_tensor_is_zero_or_pickled_raises"),
    ),
    "a baseline taken on the wrapped model is not the pretrained one": (
        ("tests/drift/test_monitor.py", "test_the_reference_under_adapters_is_the_bare_model"),
    ),
    "a Trainer resumed in mid-epoch is not exact under random augmentation": (
        ("tests/study/training/test_resume.py", "test_"),
        ("tests/data/test_shuffle.py", "test_"),
        ("tests/test_killed.py", "test_"),
    ),
    "weights that drift while the embeddings are bit-equal": (
        ("tests/models/test_checkpoint.py", "test_drift_without_movement_raises_even_if_the_fingerprint_agrees"),
        ("tests/compare/test_compare_command.py", "test_weights_that_differ_without_effect_raise"),
    ),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_every_trap_has_a_test_that_is_there(trap: str) -> None:
    root = Path(__file__).parent.parent
    for file, name in TRAPS[trap]:
        tree = ast.parse((root / file).read_text(encoding="utf-8"))
        tests = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        assert any(test == name or (name == "test_" and test.startswith(name)) for test in tests), (file, name)


SIZE = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 3}
VISION = SIZE | {"image_size": 12, "patch_size": 4}
TARGETS = r".*vision_model.*\.(q_proj|v_proj)"


@pytest.fixture
def clip() -> CLIPModel:
    torch.manual_seed(0)
    model = load_model("config:tiny").eval()
    with torch.no_grad():
        # Attention that is nearly uniform would hide a wrong row.
        for layer in model.vision_model.encoder.layers:
            layer.self_attn.q_proj.weight.mul_(8)
    return model


@pytest.fixture
def images() -> Tensor:
    return torch.randn(5, 3, 28, 28, generator=torch.Generator().manual_seed(1))


def _features(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model.get_image_features(pixel_values=images).pooler_output  # type: ignore[operator]


def _seen(model: nn.Module, images: Tensor) -> list[Tensor]:
    with torch.no_grad(), observe(model) as observation:
        model.get_image_features(pixel_values=images)  # type: ignore[operator]
    return observation.attention


def test_every_family_answers_with_nothing_under_sdpa_and_is_seen() -> None:
    pixels = torch.randn(2, 3, 12, 12)
    for model in (ViTModel(ViTConfig(**VISION)), Dinov2Model(Dinov2Config(**VISION))):
        model.eval()
        assert model.config._attn_implementation == "sdpa"
        output = model(pixel_values=pixels, output_attentions=True)
        assert output.attentions is not None, "so that `is not None` holds, and code goes on with nothing"
        assert len(output.attentions) == 0
        with observe(model) as observation:
            model(pixel_values=pixels)
        assert [tuple(layer.shape) for layer in observation.attention] == [(2, 3, 9)] * 2


def test_a_model_that_was_loaded_eager_by_an_argument_is_seen_the_same(
    clip: CLIPModel, images: Tensor, tmp_path: Path
) -> None:
    clip.save_pretrained(tmp_path)
    eager = CLIPModel.from_pretrained(tmp_path, output_attentions=True).eval()
    assert eager.config._attn_implementation == "eager"
    assert CLIPModel.from_pretrained(tmp_path).config._attn_implementation == "sdpa"
    assert load_model(tmp_path).config._attn_implementation == "sdpa"
    for one, two in zip(_seen(eager, images), _seen(clip, images), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-5)
    assert eager.config._attn_implementation == "eager", "what the user has chosen stays"
    # Against the model under sdpa nothing has drifted.
    monitor = DriftMonitor(eager, images, reference=clip)
    assert monitor.measure().embedding_drift == pytest.approx(0, abs=1e-6)


def test_rows_are_those_of_the_weights_and_not_of_the_librarys_maps(clip: CLIPModel, images: Tensor) -> None:
    """In float64 from the weights alone: what the library hands out plays no part, and may be lost again."""
    seen = _seen(clip, images)
    states: list[Tensor] = []
    tower = copy.deepcopy(clip.vision_model).double()
    for layer in tower.encoder.layers:
        layer.layer_norm1.register_forward_hook(lambda _, __, output: states.append(output))
    with torch.no_grad():
        tower(pixel_values=images.double())
        for layer, hidden, attention in zip(tower.encoder.layers, states, seen, strict=True):
            own = layer.self_attn
            heads = own.num_heads
            query = own.q_proj(hidden[:, :1]).unflatten(-1, (heads, -1)).transpose(1, 2)
            keys = own.k_proj(hidden).unflatten(-1, (heads, -1)).transpose(1, 2)
            row = torch.softmax(query @ keys.mT * query.shape[-1] ** -0.5, -1)[:, :, 0, 1:]
            expected = row / row.sum(-1, keepdim=True)
            assert (expected.max(-1).values - expected.min(-1).values).max() > 0.01
            torch.testing.assert_close(attention.double(), expected, rtol=0, atol=1e-5)


def test_an_attention_function_of_ones_own_goes_on_working_and_is_seen(clip: CLIPModel, images: Tensor) -> None:
    calls: list[int] = []

    def own(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
        calls.append(1)
        output, _ = sdpa_attention_forward(module, query, key, value, mask, **kwargs)
        return output, torch.softmax(query[:, :, :1] @ key.mT * kwargs["scaling"], -1)

    before = _features(clip, images)
    expected = _seen(clip, images)
    AttentionInterface.register("row_beside", own)
    try:
        clip.vision_model.set_attn_implementation("row_beside")
        output = clip.vision_model(pixel_values=images, output_attentions=True)
        # Its row comes back where maps would: shape (images, heads, 1, tokens), and no map at all.
        assert [tuple(layer.shape)[2] for layer in output.attentions] == [1] * len(expected)
        calls.clear()
        for one, two in zip(_seen(clip, images), expected, strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=1e-6)
        assert len(calls) == len(expected), "the user's function ran, once a layer"
        torch.testing.assert_close(_features(clip, images), before, rtol=0, atol=1e-6)
    finally:
        clip.vision_model.set_attn_implementation("sdpa")
        AttentionInterface._global_mapping.pop("row_beside", None)


def test_image_features_are_an_object_and_embeddings_a_tensor(clip: CLIPModel, images: Tensor) -> None:
    with torch.no_grad():
        returned = clip.get_image_features(pixel_values=images)
        assert not isinstance(returned, Tensor)
        embedded = image_embeddings(clip, images)
    assert isinstance(embedded, Tensor)
    # Through the projection, and not the tower's own output.
    assert embedded.shape == (5, clip.config.projection_dim)
    assert torch.equal(embedded, returned.pooler_output)


def test_adapters_under_the_old_keys_load_inert_by_peft_and_in_place_or_not_at_all_by_us(
    clip: CLIPModel, images: Tensor, tmp_path: Path
) -> None:
    """Trained on a CLIPVisionModel of transformers 4, whose tower lay under ``vision_model.``; today it does not."""
    from safetensors.torch import load_file, save_file

    from attndrift.compare.sources import ResolvedModel, resolve
    from attndrift.methods.adapters import check_adapters_loaded
    from attndrift.models import CheckpointError

    tower = CLIPVisionModel(clip.config.vision_config).eval()
    tower.load_state_dict(clip.vision_model.state_dict())
    adapted: Any = get_peft_model(tower, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
        moved = adapted(pixel_values=images).pooler_output
    adapted.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    old = {
        name.replace("base_model.model.", "base_model.model.vision_model."): v for name, v in load_file(file).items()
    }
    save_file(old, file)

    bare = CLIPVisionModel(clip.config.vision_config).eval()
    bare.load_state_dict(clip.vision_model.state_dict())
    before = bare(pixel_values=images).pooler_output
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        inert = PeftModel.from_pretrained(bare, tmp_path).eval()
    assert any("missing adapter keys" in str(warning.message) for warning in caught), "peft warns, and goes on"
    with torch.no_grad():
        assert torch.equal(inert(pixel_values=images).pooler_output, before), "an adapter that does nothing"
    with pytest.raises(CheckpointError, match="have no place in the model"):
        check_adapters_loaded(inert, tmp_path)

    side = resolve(tmp_path, ResolvedModel("base", "model", clip, None, None))
    with torch.no_grad():
        placed = side.model.vision_model(pixel_values=images).pooler_output
    torch.testing.assert_close(placed, moved, rtol=0, atol=1e-5)
    assert (placed - before).abs().max() > 1e-2


def test_merging_rounds_half_precision_weights_and_measuring_does_not(clip: CLIPModel, images: Tensor) -> None:
    half = copy.deepcopy(clip).bfloat16()
    adapted: Any = get_peft_model(
        half, LoraConfig(r=2, lora_alpha=4, target_modules=TARGETS, init_lora_weights=False)
    ).eval()
    adapters = {name: p for name, p in adapted.named_parameters() if ".lora_" in name}
    assert {p.dtype for p in adapters.values()} == {torch.float32}, "peft keeps adapters in float32"
    whole: Any = get_peft_model(
        copy.deepcopy(clip), LoraConfig(r=2, lora_alpha=4, target_modules=TARGETS, init_lora_weights=False)
    ).eval()
    with torch.no_grad():
        for name, parameter in whole.named_parameters():
            if ".lora_" in name:
                # Small, as after a little training: less than half a step of bfloat16 for many weights.
                adapters[name].mul_(0.05)
                parameter.copy_(adapters[name])
    expected = DriftMonitor(whole, images).measure().weight_drift
    measured = DriftMonitor(adapted, images)
    drift = measured.measure()
    assert expected is not None
    assert expected > 0
    assert drift.weight_drift == pytest.approx(expected, rel=0.02), "the adapters' own values, not merged and rounded"
    # Switched off, the bare model is exactly there again, in the reference as in the model.
    with adapted.disable_adapter():
        assert torch.equal(_features(adapted, images), _features(copy.deepcopy(clip).bfloat16(), images))
    assert torch.equal(
        measured.reference.embeddings, DriftMonitor(copy.deepcopy(clip).bfloat16(), images).reference.embeddings
    )
    merged = copy.deepcopy(adapted).merge_and_unload()
    rounded = DriftMonitor(merged, images, reference=copy.deepcopy(clip).bfloat16()).measure().weight_drift
    assert rounded is not None
    assert abs(rounded - expected) > abs(drift.weight_drift - expected), "what merging loses"
