"""Gradients through observed attention equal those through the eager maps, with checkpointing too."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch

from attndrift.attention import ObservationError, observe
from attndrift.attention.rows import row_logits
from attndrift.losses import attention_preservation_loss
from attndrift.metrics import StructureAccumulator
from attndrift.models import load_model


def structure_loss(attention, cls_mass):
    """A loss that tells patches, heads and layers apart."""
    total = 0.0
    for layer, (a, mass) in enumerate(zip(attention, cls_mass, strict=True)):
        weights = torch.sin(torch.arange(a[0].numel(), dtype=a.dtype)).view(a[0].shape)
        total = total + (layer + 1) * ((a * weights).sum() + (mass**2).sum())
    return total


def gradients_of(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same(got, expected, tolerance=2e-5):
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        scale = max(1.0, float(value.abs().max()))
        torch.testing.assert_close(got[name], value, rtol=0, atol=tolerance * scale, msg=lambda m, n=name: f"{n}: {m}")


def eager_gradients(tiny, model, pixels):
    model = copy.deepcopy(model)
    maps, output, model = tiny.eager_maps(model, pixels, copied=False)
    loss = structure_loss([tiny.patch_rows(m) for m in maps], [m[:, :, 0, 0] for m in maps])
    (loss + output.square().mean()).backward()
    return gradients_of(model), loss


@pytest.mark.parametrize("adapters", [False, True], ids=["plain", "lora"])
@pytest.mark.parametrize("kind", ["clip", "classifier"])
@pytest.mark.parametrize("checkpointed", [False, True], ids=["stored", "checkpointed"])
def test_equal_those_through_eager_maps(tiny, pixels, kind, adapters, checkpointed) -> None:
    model = tiny.make(kind, adapters).train()
    expected, loss = eager_gradients(tiny, model, pixels)
    if checkpointed:
        tiny.checkpointing(model, reentrant=False)
    with observe(model, gradients=True, hidden=True) as observation:
        output = tiny.call(model, pixels)
        got = structure_loss(observation.attention, observation.cls_mass)
        torch.testing.assert_close(got, loss, rtol=1e-5, atol=1e-5)
        (got + output.square().mean()).backward()
        assert observation.forwards == 1
        after = [a.detach().clone() for a in observation.attention]
    assert_same(gradients_of(model), expected)
    for one, other in zip(after, observation.attention, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert any("q_proj" in name for name in expected)


@pytest.mark.parametrize("checkpointed", [False, True], ids=["stored", "checkpointed"])
@pytest.mark.parametrize("use", ["attention", "output"])
def test_backward_after_the_context_has_closed(tiny, pixels, checkpointed, use) -> None:
    """Recomputation must not miss tensors that were saved while hooks were there."""
    model = tiny.make("vision").train()
    expected = copy.deepcopy(model)
    if checkpointed:
        tiny.checkpointing(model, reentrant=False)
    with observe(model, gradients=True) as observation:
        output = tiny.call(model, pixels)
    if use == "output":
        output.square().mean().backward()
        tiny.call(expected, pixels).square().mean().backward()
        assert_same(gradients_of(model), gradients_of(expected))
        return
    structure_loss(observation.attention, observation.cls_mass).backward()
    maps, _, expected = tiny.eager_maps(expected, pixels, copied=False)
    structure_loss([tiny.patch_rows(m) for m in maps], [m[:, :, 0, 0] for m in maps]).backward()
    assert_same(gradients_of(model), gradients_of(expected))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_without_gradients_records_once(tiny, pixels, reentrant) -> None:
    model = tiny.make("vision").train()
    plain = copy.deepcopy(model)
    tiny.checkpointing(model, reentrant=reentrant)
    pixels = pixels.requires_grad_()
    with observe(model, hidden=True, full_maps=True) as observation:
        loss = tiny.call(model, pixels).square().mean()
        before = observation.attention
        loss.backward()
        assert observation.forwards == 1
        assert all(one is other for one, other in zip(observation.attention, before, strict=True))
    tiny.call(plain, pixels.detach()).square().mean().backward()
    assert_same(gradients_of(model), gradients_of(plain))


def test_accumulated_microbatches_under_checkpointing(tiny, pixels) -> None:
    """Recomputation of the first forward must not mix with what the second one recorded."""
    model = tiny.make("vision").train()
    expected = copy.deepcopy(model)
    tiny.checkpointing(model, reentrant=False)
    with observe(model, gradients=True) as observation:
        losses = []
        for part in pixels.split([2, 3]):
            tiny.call(model, part)
            losses.append(structure_loss(observation.attention, observation.cls_mass))
        last = observation.attention[0].detach().clone()
        sum(losses).backward()
        torch.testing.assert_close(observation.attention[0].detach(), last, rtol=0, atol=0)
        assert last.shape[0] == 3
    maps, _, expected = tiny.eager_maps(expected, pixels, copied=False)
    structure_loss([tiny.patch_rows(m) for m in maps], [m[:, :, 0, 0] for m in maps]).backward()
    assert_same(gradients_of(model), gradients_of(expected))


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_around_the_whole_tower(tiny, pixels, reentrant) -> None:
    from torch.utils.checkpoint import checkpoint

    model = tiny.make("vision").train()
    with observe(model, gradients=not reentrant) as observation:
        output = checkpoint(lambda p: tiny.call(model, p), pixels.requires_grad_(), use_reentrant=reentrant)
        before = observation.attention
        output.square().mean().backward()
        assert observation.forwards == 1
        assert all(one is other for one, other in zip(observation.attention, before, strict=True))


def test_reentrant_checkpointing_with_gradients_is_refused(tiny, pixels) -> None:
    model = tiny.make("classifier").train()
    tiny.checkpointing(model, reentrant=True)
    with observe(model, gradients=True) as observation:
        with pytest.raises(ObservationError, match=r"layers\.0\.self_attn: .*'use_reentrant': False"):
            tiny.call(model, pixels.requires_grad_())
        with pytest.raises(ObservationError, match="did not finish"):
            _ = observation.attention
        # An evaluation needs no gradients and is seen.
        model.eval()
        with torch.no_grad():
            tiny.call(model, pixels)
        assert observation.attention[0].shape[0] == 5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gradients(dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(3, 2, 8, generator=generator).to(dtype).requires_grad_()
    k = torch.randn(3, 2, 7, 8, generator=generator).to(dtype).requires_grad_()
    weights = torch.randn(3, 2, 7, generator=generator)
    (row_logits(q, k, 0.3, gradients=True).softmax(-1) * weights).sum().backward()
    q64, k64 = (tensor.detach().double().requires_grad_() for tensor in (q, k))
    logits = 0.3 * (k64 @ q64.unsqueeze(-1)).squeeze(-1)
    (logits.softmax(-1) * weights).sum().backward()
    for got, expected in ((q, q64), (k, k64)):
        assert got.grad.dtype == dtype
        torch.testing.assert_close(got.grad.double(), expected.grad, rtol=1e-2, atol=1e-3)


def test_row_gradients_and_their_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 2, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    k = torch.randn(2, 2, 4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    function = lambda a, b: row_logits(a, b, 0.7, gradients=True)  # noqa: E731
    assert torch.autograd.gradcheck(function, (q, k))
    assert torch.autograd.gradgradcheck(function, (q, k))


def test_large_batches_are_worked_through_in_parts(monkeypatch) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(7, 2, 3, generator=generator), torch.randn(7, 2, 4, 3, generator=generator)
    whole = row_logits(q, k, 0.5, gradients=False)
    monkeypatch.setattr("attndrift.attention.rows._TRANSIENT", 2 * k[0].numel())
    torch.testing.assert_close(row_logits(q, k, 0.5, gradients=False), whole, rtol=0, atol=0)


def test_autocast_training(tiny, pixels) -> None:
    model = tiny.make("clip", True).train()
    with observe(model, gradients=True) as observation, torch.autocast("cpu", dtype=torch.bfloat16):
        tiny.call(model, pixels)
        loss = structure_loss(observation.attention, observation.cls_mass)
    assert loss.dtype == torch.float32
    loss.backward()
    got, (expected, _) = gradients_of(model), eager_gradients_of_structure(tiny, model, pixels)
    for name, value in expected.items():
        cosine = torch.nn.functional.cosine_similarity(got[name].flatten(), value.flatten(), dim=0)
        if float(value.norm()) > 1e-3:
            assert float(cosine) > 0.95, name


def eager_gradients_of_structure(tiny, model, pixels):
    model = copy.deepcopy(model)
    model.zero_grad()
    maps, _, model = tiny.eager_maps(model, pixels, copied=False)
    loss = structure_loss([tiny.patch_rows(m) for m in maps], [m[:, :, 0, 0] for m in maps])
    loss.backward()
    return gradients_of(model), loss


@pytest.mark.parametrize("quiet", [torch.no_grad, torch.inference_mode])
def test_reading_without_gradients_does_not_cut_a_later_loss(tiny, pixels, quiet) -> None:
    model = tiny.make("vision").train()
    with observe(model, gradients=True) as observation:
        tiny.call(model, pixels)
        with quiet():
            _ = observation.attention[0].mean()
        assert observation.attention[0].requires_grad
        structure_loss(observation.attention, observation.cls_mass).backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def graphs_alive(attentions):
    """A set that holds as many members as query projections whose graph node is alive."""

    class Alive:
        pass

    alive = weakref.WeakSet()

    def mark(module, args, output):
        sentinel = Alive()
        alive.add(sentinel)
        output.grad_fn.metadata["sentinel"] = sentinel

    for attention in attentions:
        attention.q_proj.register_forward_hook(mark)
    return alive


def test_a_failed_forward_keeps_nothing(tiny, pixels) -> None:
    """Who catches an out-of-memory error and tries a smaller batch needs the memory back."""
    model = tiny.make("vision").train()
    alive = graphs_alive(tiny.attentions(model)[:2])

    def fail(module, args):
        raise MemoryError

    model.encoder.layers[2].register_forward_pre_hook(fail)
    with observe(model, gradients=True, hidden=True, full_maps=True):
        with pytest.raises(MemoryError):
            tiny.call(model, pixels)
        gc.collect()
        assert len(alive) == 0


def test_without_gradients_no_graph_is_retained(tiny, pixels) -> None:
    model = tiny.make("vision").train()
    alive = graphs_alive(tiny.attentions(model))
    with observe(model, hidden=True, full_maps=True) as observation:
        output = tiny.call(model, pixels)
        gc.collect()
        assert len(alive) == tiny.LAYERS
        del output
        gc.collect()
        assert len(alive) == 0
        for values in (observation.attention, observation.log_attention, observation.cls_mass):
            assert not any(v.requires_grad for v in values)
        assert not any(v.requires_grad for v in observation.cls_hidden)
        assert not observation.full_maps[0].requires_grad


def test_frozen_layers_give_values_without_gradients(tiny, pixels) -> None:
    model = tiny.make("vision").train().requires_grad_(False)
    with observe(model, gradients=True) as observation:
        tiny.call(model, pixels)
    assert not observation.attention[0].requires_grad


def test_an_unchecked_observation_never_waits_for_the_device() -> None:
    """Tensors on the meta device have no values, so whatever would fetch one to the host raises."""
    model = load_model("config:tiny").to("meta")
    pixels, labels = torch.zeros(2, 3, 28, 28, device="meta"), torch.zeros(2, dtype=torch.long, device="meta")
    with observe(model, gradients=True, hidden=True, check=False) as seen:
        embedded = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
    loss = torch.nn.functional.cross_entropy(embedded, labels)
    teacher = [torch.zeros_like(layer) for layer in seen.log_attention]
    (loss + attention_preservation_loss(seen.log_attention, teacher)).backward()
    StructureAccumulator(check=False).update(seen.attention, seen.cls_mass)
    with observe(model) as seen, torch.no_grad():
        model.vision_model(pixel_values=pixels)
    with pytest.raises(RuntimeError, match="meta"):
        seen.attention  # noqa: B018 (a checked reading looks at the values)
