"""The two regularizers against float64 references, and what they do where nothing has changed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attndrift.regularizers import (
    AttentionPreservation,
    EntropyFloor,
    attention_preservation_loss,
    entropy_floor_loss,
)


def _log_attention(seed: int, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [(scale * torch.randn(5, 4, 49, generator=generator)).log_softmax(-1) for _ in range(3)]


def test_preservation_is_the_divergence_from_current_to_pretrained() -> None:
    current, pretrained = _log_attention(0), _log_attention(1)
    terms = []
    for a, b in zip(current, pretrained, strict=True):
        a64, b64 = a.double().exp(), b.double().exp()
        terms.append((a64 * (a64.log() - b64.log())).sum(-1).mean())
    expected = torch.stack(terms).mean()
    torch.testing.assert_close(
        attention_preservation_loss(current, pretrained).double(), expected, rtol=1e-5, atol=1e-7
    )
    reverse = attention_preservation_loss(pretrained, current).double()
    assert abs(float(reverse - expected)) > 1e-3, "the direction matters"


def test_preservation_is_zero_on_the_pretrained_attention_and_so_is_its_gradient() -> None:
    logits = torch.randn(5, 4, 49, requires_grad=True)
    loss = attention_preservation_loss([logits.log_softmax(-1)], [logits.detach().log_softmax(-1)])
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-7)
    loss.backward()
    assert logits.grad is not None
    assert float(logits.grad.abs().max()) < 1e-7


def test_preservation_takes_one_tensor_for_all_layers() -> None:
    current, pretrained = _log_attention(0), _log_attention(1)
    assert attention_preservation_loss(current, torch.stack(pretrained)) == attention_preservation_loss(
        current, pretrained
    )


def test_preservation_in_half_precision_is_computed_in_float32() -> None:
    current = [layer.half() for layer in _log_attention(0, scale=8.0)]
    loss = attention_preservation_loss(current, _log_attention(1, scale=8.0))
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)


def test_shapes_that_do_not_belong_together_are_named() -> None:
    with pytest.raises(ValueError, match="reference has 2 layers, log_attention has 3"):
        attention_preservation_loss(_log_attention(0), _log_attention(1)[:2])
    with pytest.raises(ValueError, match=r"layer 1: reference has shape \(4, 4, 49\)"):
        attention_preservation_loss(_log_attention(0), [layer[:4] for layer in _log_attention(1)])


def test_the_floor_is_summed_over_layers_and_averaged_over_images_and_heads() -> None:
    log_attention = _log_attention(0, scale=3.0)
    floors = [3.9, 3.0, 1.0]
    expected, active = 0.0, 0.0
    for layer, floor in zip(log_attention, floors, strict=True):
        p = layer.double().exp()
        entropy = -(p * p.log()).sum(-1)
        expected += float((0.7 * floor - entropy).clamp(min=0).mean())
        active += float((entropy < 0.7 * floor).double().mean()) / 3
    loss, fraction = entropy_floor_loss(log_attention, floors)
    assert 0.01 < active < 0.99
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert float(fraction) == pytest.approx(active, abs=1e-6)


def test_a_floor_that_is_not_reached_is_silent_and_says_so() -> None:
    uniform = [torch.full((2, 4, 49), 1 / 49).log()]
    floor = EntropyFloor(0.1, [3.7])
    assert floor.active_fraction is None
    assert float(floor(uniform)) == 0.0
    assert floor.active_fraction == 0.0


def test_one_hot_attention_has_a_finite_gradient() -> None:
    logits = torch.full((1, 1, 49), -200.0)
    logits[..., 0] = 200.0
    logits.requires_grad_(True)
    loss = EntropyFloor(1.0, [3.7])([logits.log_softmax(-1)]) + AttentionPreservation(1.0)(
        [logits.log_softmax(-1)], [torch.full((1, 1, 49), 1 / 49).log()]
    )
    loss.backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: EntropyFloor(-1.0, [3.0]),
        lambda: EntropyFloor(1.0, [3.0], 0.0),
        lambda: AttentionPreservation(-1.0),
    ],
)
def test_impossible_weights_are_refused(make: object) -> None:
    with pytest.raises(ValueError, match="must"):
        make()  # type: ignore[operator]
