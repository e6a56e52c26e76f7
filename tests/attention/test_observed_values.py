"""What is observed equals the eager maps, for every model class, mode and precision."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from attndrift.attention import ObservationError, observe
from attndrift.metrics import StructureAccumulator

KINDS = ("clip", "vision", "projection", "classification", "classifier")


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("adapters", [False, True], ids=["plain", "lora"])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_eager_maps(tiny, pixels, kind, adapters, training) -> None:
    model = tiny.make(kind, adapters).train(training)
    maps, _, _ = tiny.eager_maps(model, pixels)
    before = tiny.call(model, pixels)
    with observe(model, hidden=True) as observation:
        during = tiny.call(model, pixels)
    assert len(observation.layers) == tiny.LAYERS
    modules = dict(model.named_modules())
    assert [modules[name] for name in observation.layers] == tiny.attentions(model)
    for full, attention, logs, mass in zip(
        maps, observation.attention, observation.log_attention, observation.cls_mass, strict=True
    ):
        assert attention.shape == (5, tiny.HEADS, tiny.PATCHES)
        assert attention.dtype == torch.float32
        assert not attention.requires_grad
        torch.testing.assert_close(attention, tiny.patch_rows(full), rtol=0, atol=1e-5)
        torch.testing.assert_close(attention.sum(-1), torch.ones(5, tiny.HEADS), rtol=0, atol=1e-6)
        torch.testing.assert_close(logs, tiny.patch_rows(full.double()).log().float(), rtol=0, atol=1e-4)
        torch.testing.assert_close(mass, full[:, :, 0, 0], rtol=0, atol=1e-5)
    # The reference is sharp enough to tell one token's row from another's.
    assert (tiny.patch_rows(maps[0]) - tiny.patch_rows(maps[0].roll(1, 2))).abs().max() > 0.05
    torch.testing.assert_close(before, during, rtol=0, atol=0)
    torch.testing.assert_close(tiny.call(model, pixels), before, rtol=0, atol=0)


@pytest.mark.parametrize("adapters", [False, True], ids=["plain", "lora"])
def test_adapters_count(tiny, pixels, adapters) -> None:
    model = tiny.make("clip", adapters)
    with observe(model) as observation:
        tiny.call(model, pixels)
        active = observation.attention[-1]
        if not adapters:
            return
        with model.disable_adapter():
            tiny.call(model, pixels)
        inactive = observation.attention[-1]
    assert (active - inactive).abs().max() > 1e-2
    merged = copy.deepcopy(model).merge_and_unload()
    with observe(merged) as observation:
        tiny.call(merged, pixels)
    torch.testing.assert_close(observation.attention[-1], active, rtol=0, atol=1e-5)


def test_lora_dropout_in_training(tiny, pixels) -> None:
    model = tiny.make("clip", True, lora_dropout=0.3).train()
    torch.manual_seed(0)
    maps, _, _ = tiny.eager_maps(model, pixels)
    torch.manual_seed(0)
    with observe(model) as observation:
        tiny.call(model, pixels)
    for full, attention in zip(maps, observation.attention, strict=True):
        torch.testing.assert_close(attention, tiny.patch_rows(full), rtol=0, atol=1e-5)


def captured_projections(tiny, model):
    """What the layers' own q_proj and k_proj put out, by hooks of the test."""
    captured: dict[str, list[torch.Tensor]] = {"q_proj": [], "k_proj": []}
    for attention in tiny.attentions(model):
        for name, values in captured.items():
            getattr(attention, name).register_forward_hook(
                lambda module, args, output, values=values: values.append(output.detach().clone())
            )
    return captured


def softmax_in_float64(queries, keys, heads):
    q = queries.double().unflatten(-1, (heads, -1)).transpose(1, 2)
    k = keys.double().unflatten(-1, (heads, -1)).transpose(1, 2)
    return torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, -1)


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("mode", ["bfloat16", "float16", "autocast", "float64", "lora-bfloat16"])
def test_other_precisions_equal_a_float64_softmax_of_the_same_q_and_k(tiny, pixels, mode, gradients) -> None:
    model = tiny.make("clip", mode.startswith("lora"))
    dtype = {"float16": torch.float16, "float64": torch.float64, "autocast": torch.float32}.get(mode, torch.bfloat16)
    model = model.to(dtype)
    captured = captured_projections(tiny, model)
    with (
        observe(model, gradients=gradients, hidden=True, full_maps=True) as observation,
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=mode == "autocast"),
    ):
        tiny.call(model, pixels.to(dtype))
        attention, logs, mass = observation.attention, observation.log_attention, observation.cls_mass
        full = list(observation.full_maps)
    expected_dtype = torch.float64 if mode == "float64" else torch.float32
    for layer, (q, k) in enumerate(zip(captured["q_proj"], captured["k_proj"], strict=True)):
        if mode != "float64":
            assert q.dtype in (torch.bfloat16, torch.float16)
        reference = softmax_in_float64(q, k, tiny.HEADS)
        for got, expected in (
            (attention[layer], tiny.patch_rows(reference)),
            (logs[layer].exp(), tiny.patch_rows(reference)),
            (mass[layer], reference[:, :, 0, 0]),
            (full[layer], reference),
        ):
            assert got.dtype == expected_dtype
            torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-5)
        assert observation.cls_hidden[layer].dtype == expected_dtype


def test_log_attention_is_finite_where_attention_rounds_to_zero(tiny, pixels) -> None:
    model = tiny.make("vision")
    with torch.no_grad():
        for attention in tiny.attentions(model):
            attention.q_proj.weight.mul_(100)
    with observe(model) as observation:
        tiny.call(model, pixels)
    assert min(float(attention.min()) for attention in observation.attention) == 0
    assert all(bool(torch.isfinite(logs).all()) for logs in observation.log_attention)


def test_hidden_states_are_the_block_outputs(tiny, pixels) -> None:
    model = tiny.make("vision")
    states = model(pixel_values=pixels, output_hidden_states=True).hidden_states
    with observe(model, hidden=True) as observation:
        tiny.call(model, pixels)
    assert len(observation.cls_hidden) == tiny.LAYERS
    for state, expected in zip(observation.cls_hidden, states[1:], strict=True):
        assert state.shape == (5, tiny.WIDTH)
        torch.testing.assert_close(state, expected[:, 0], rtol=0, atol=0)
        # A view would keep the states of all tokens in memory.
        assert state.untyped_storage().nbytes() == state.numel() * state.element_size()


def test_every_forward_overwrites_and_the_last_stays(tiny, pixels) -> None:
    model = tiny.make("vision")
    with observe(model) as observation:
        tiny.call(model, pixels)
        first = observation.attention
        assert observation.forwards == 1
        tiny.call(model, pixels[:2] * 2)
        second = observation.attention
    assert observation.forwards == 2
    assert first[0].shape[0] == 5
    assert second[0].shape[0] == 2
    tiny.call(model, pixels)
    for one, other in zip(observation.attention, second, strict=True):
        assert one is other


def test_feeds_the_accumulator(tiny, pixels) -> None:
    model = tiny.make("clip")
    whole, parts = StructureAccumulator(), StructureAccumulator(check=False)
    with observe(model) as observation:
        tiny.call(model, pixels)
        whole.update(observation.attention, observation.cls_mass)
        for part in pixels.split(2):
            tiny.call(model, part)
            parts.update(observation.attention, observation.cls_mass)
    for metric in ("entropy", "erf95", "gini", "head_diversity", "cls_mass"):
        torch.testing.assert_close(whole.compute().heads(metric), parts.compute().heads(metric), rtol=0, atol=1e-6)


@pytest.mark.parametrize("images", [None, 1, 2, 100])
def test_rollout_against_eager_maps_in_float64(tiny, pixels, images) -> None:
    model = tiny.make("clip")
    maps, _, _ = tiny.eager_maps(model, pixels)
    product = np.eye(tiny.PATCHES + 1)[None]
    for full in maps:
        mixed = 0.5 * np.eye(tiny.PATCHES + 1) + 0.5 * full.detach().double().numpy().mean(1)
        product = (mixed / mixed.sum(-1, keepdims=True)) @ product
    with observe(model, full_maps=True) as observation:
        tiny.call(model, pixels)
    got = observation.rollout(images=images)
    assert got.shape == (5, tiny.PATCHES)
    np.testing.assert_allclose(got.numpy(), product[:, 0, 1:], atol=1e-6)
    for layer, full in enumerate(maps):
        torch.testing.assert_close(observation.full_maps[layer], full.detach(), rtol=0, atol=1e-5)


def test_only_what_was_asked_for_is_there(tiny, pixels) -> None:
    model = tiny.make("vision")
    with observe(model) as observation:
        tiny.call(model, pixels)
    with pytest.raises(ObservationError, match=r"observe\(\.\.\., hidden=True\)"):
        _ = observation.cls_hidden
    with pytest.raises(ObservationError, match=r"observe\(\.\.\., full_maps=True\)"):
        _ = observation.full_maps
    with pytest.raises(ObservationError, match=r"observe\(\.\.\., full_maps=True\)"):
        observation.rollout()


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_full_map_is_ever_made(tiny, pixels, dtype, gradients) -> None:
    """Every tensor made by observing is smaller than (images, heads, T, T)."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.shapes = set()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            for value in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(value, torch.Tensor):
                    self.shapes.add(tuple(value.shape))
            return result

    model = tiny.make("vision").to(dtype).requires_grad_(gradients)
    with observe(model, gradients=gradients) as observation, Largest() as largest:
        tiny.call(model, pixels.to(dtype))
        _ = observation.attention
    tokens = tiny.PATCHES + 1
    assert (5, tiny.HEADS, tokens) in largest.shapes
    assert not any(shape[-2:] == (tokens, tokens) for shape in largest.shapes)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_works_under_any_attention_implementation(tiny, pixels, implementation) -> None:
    model = tiny.make("clip")
    maps, _, _ = tiny.eager_maps(model, pixels)
    model.set_attn_implementation(implementation)
    with observe(model) as observation:
        tiny.call(model, pixels)
    for full, attention in zip(maps, observation.attention, strict=True):
        torch.testing.assert_close(attention, tiny.patch_rows(full), rtol=0, atol=1e-5)


def test_works_under_a_registered_attention_that_gives_no_weights(tiny, pixels) -> None:
    """As flash attention does: the function hands out nothing but its output."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register("attndrift_test_opaque", sdpa_attention_forward)
    AttentionMaskInterface.register("attndrift_test_opaque", sdpa_mask)
    model = tiny.make("clip")
    maps, _, _ = tiny.eager_maps(model, pixels)
    model.set_attn_implementation("attndrift_test_opaque")
    with observe(model) as observation:
        tiny.call(model, pixels)
    torch.testing.assert_close(observation.attention[-1], tiny.patch_rows(maps[-1]), rtol=0, atol=1e-5)


def test_other_image_sizes(tiny) -> None:
    model = tiny.make("vision")
    pixels = torch.randn(2, 3, 42, 28, generator=torch.Generator().manual_seed(0))
    with observe(model) as observation:
        model(pixel_values=pixels, interpolate_pos_encoding=True)
    assert observation.attention[0].shape == (2, tiny.HEADS, 24)


def test_inference_mode(tiny, pixels) -> None:
    model = tiny.make("vision")
    for gradients in (False, True):
        with observe(model, gradients=gradients) as observation, torch.inference_mode():
            tiny.call(model, pixels)
        assert observation.attention[0].shape == (5, tiny.HEADS, tiny.PATCHES)
