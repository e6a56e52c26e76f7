"""Rows of several layers that are computed together, as on an accelerator in half precision, are those of each layer alone."""

from __future__ import annotations

import copy

import pytest
import torch

from attndrift.observing import ObservationError, observe, observer, rows
from attndrift.observing.rows import can_wait, row_logits, rows_of_layers
from attndrift.regularizers import attention_preservation_loss


def layers_of(dtype, *, device="cpu", layers=3, images=4, heads=3, tokens=7, width=5):
    """Queries' rows and keys as the projections of a transformer leave them: heads beside each other."""
    generator = torch.Generator().manual_seed(0)

    def states() -> torch.Tensor:
        values = torch.randn(images, tokens, heads * width, generator=generator, dtype=torch.float64)
        return values.to(device, dtype).unflatten(-1, (heads, width)).transpose(1, 2).requires_grad_()

    return [states()[:, :, 0].detach().requires_grad_() for _ in range(layers)], [states() for _ in range(layers)]


@pytest.mark.parametrize("gradients", [False, True])
def test_are_those_of_each_layer_alone(gradients) -> None:
    queries, keys = layers_of(torch.float32)
    together = rows_of_layers(queries, keys, 0.3, gradients=gradients)
    alone = torch.stack([row_logits(q, k, 0.3, gradients=gradients) for q, k in zip(queries, keys, strict=True)])
    assert together.requires_grad is gradients
    torch.testing.assert_close(together, alone)
    if gradients:
        weights = torch.sin(torch.arange(alone.numel(), dtype=torch.float32)).view_as(alone)
        inputs = [*queries, *keys]
        expected = torch.autograd.grad((alone * weights).sum(), inputs)
        for got, wanted in zip(torch.autograd.grad((together * weights).sum(), inputs), expected, strict=True):
            torch.testing.assert_close(got, wanted)


def test_gradients_and_their_gradients() -> None:
    queries, keys = layers_of(torch.float64, layers=2, images=2, heads=2, tokens=3, width=2)
    function = lambda *given: rows_of_layers(given[:2], given[2:], 0.7, gradients=True)  # noqa: E731
    assert torch.autograd.gradcheck(function, (*queries, *keys))
    assert torch.autograd.gradgradcheck(function, (*queries, *keys))
    # A frozen key projection gets none.
    keys[0] = keys[0].detach()
    assert torch.autograd.gradcheck(function, (*queries, *keys))


def test_wait_where_launches_cost_and_nowhere_else() -> None:
    (query, *_), (key, *_) = layers_of(torch.float32)
    assert not can_wait(query, key)
    meta = [tensor.detach().to("meta") for tensor in (query.bfloat16(), key.bfloat16())]
    assert not can_wait(*meta)


@pytest.fixture
def waiting(monkeypatch):
    """Rows wait here as they would on an accelerator; what was computed together is noted."""
    groups: list[int] = []

    def noted(queries, keys, scale, *, gradients):
        groups.append(len(queries))
        return rows_of_layers(queries, keys, scale, gradients=gradients)

    layout = lambda row, keys: keys.stride(3) == 1 and keys.stride(1) == keys.shape[3]  # noqa: E731
    monkeypatch.setattr(observer, "can_wait", layout)
    monkeypatch.setattr(observer, "rows_of_layers", noted)
    return groups


@pytest.mark.parametrize("adapters", [False, True], ids=["plain", "lora"])
@pytest.mark.parametrize("checkpointed", [False, True], ids=["stored", "checkpointed"])
def test_a_training_step_sees_and_learns_the_same(tiny, pixels, monkeypatch, waiting, adapters, checkpointed) -> None:
    model = tiny.make("clip", adapters).train()
    if adapters:
        # Dropout would draw anew.
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    if checkpointed:
        tiny.checkpointing(model, reentrant=False)
    found = []
    for together in (True, False):
        if not together:
            monkeypatch.setattr(observer, "can_wait", lambda row, keys: False)
        own = copy.deepcopy(model)
        with observe(own, gradients=True) as seen:
            output = tiny.call(own, pixels)
            reference = [torch.full_like(layer, -2.0) for layer in seen.log_attention]
            loss = attention_preservation_loss(seen.log_attention, reference) + output.square().mean()
            values = torch.stack([*seen.log_attention]).detach()
            loss.backward()
        gradients = {name: p.grad for name, p in own.named_parameters() if p.grad is not None}
        found.append((values, gradients))
    assert waiting == [tiny.LAYERS]
    (values, gradients), (expected, wanted) = found
    torch.testing.assert_close(values, expected)
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_what_waits_stays_little_where_no_graph_holds_it(tiny, pixels, monkeypatch, waiting) -> None:
    model = tiny.make("clip", False).eval()
    with torch.no_grad(), observe(model) as seen:
        tiny.call(model, pixels)
        together = [layer.clone() for layer in seen.attention]
        assert waiting == [tiny.LAYERS]
        waiting.clear()
        monkeypatch.setattr(observer, "_WAITING", 1)
        tiny.call(model, pixels)
        assert waiting == [1] * tiny.LAYERS
    for one, other in zip(together, seen.attention, strict=True):
        torch.testing.assert_close(one, other)


def test_a_forward_pass_that_fails_leaves_nothing_waiting(tiny, pixels, waiting) -> None:
    model = tiny.make("clip", False).eval()
    last = model.vision_model.encoder.layers[-1].mlp
    with torch.no_grad(), observe(model) as seen:
        handle = last.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(MemoryError("full")))
        with pytest.raises(MemoryError):
            tiny.call(model, pixels)
        with pytest.raises(ObservationError, match="did not finish"):
            _ = seen.attention
        handle.remove()
        waiting.clear()
        tiny.call(model, pixels)
        assert waiting == [tiny.LAYERS]
        assert len(seen.attention) == tiny.LAYERS


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator of CUDA")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_on_an_accelerator_is_exact_but_for_summing(dtype) -> None:
    queries, keys = layers_of(dtype, device="cuda", images=8, heads=12, tokens=50, width=64)
    assert all(can_wait(q, k) for q, k in zip(queries, keys, strict=True))
    got = rows_of_layers(queries, keys, 0.125, gradients=True)
    assert got.dtype == torch.float32
    wanted = torch.stack(
        [0.125 * (k.double() @ q.double().unsqueeze(-1)).squeeze(-1) for q, k in zip(queries, keys, strict=True)]
    )
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5)
    weights = torch.sin(torch.arange(got.numel(), device="cuda").float()).view_as(got)
    inputs = [*queries, *keys]
    expected = torch.autograd.grad((wanted * weights).sum(), inputs)
    for own, other in zip(torch.autograd.grad((got * weights).sum(), inputs), expected, strict=True):
        assert own.dtype == dtype
        assert float((own.double() - other.double()).norm() / other.double().norm()) < 1e-2
    assert rows.can_wait(queries[0].float(), keys[0].float()) is False
