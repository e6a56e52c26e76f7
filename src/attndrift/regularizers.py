"""Losses that hold the attention of a vision transformer near its pretrained state.

Both work on the log-attention that :func:`attndrift.observe` yields, in float32, whatever precision
the model runs in. ``log_attention`` is a sequence over layers of tensors (images, heads, patches).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def attention_preservation_loss(log_attention: Sequence[Tensor], reference: Sequence[Tensor] | Tensor) -> Tensor:
    """KL(current || pretrained) in nats, averaged over images, heads and layers.

    Args:
        log_attention: current log-attention, a tensor (images, heads, patches) per layer.
        reference: pretrained log-attention of the same images, per layer, or one tensor
            (layers, images, heads, patches).

    Returns:
        A scalar >= 0, 0 where the attention is the pretrained one. Differentiable in ``log_attention``.
    """
    if len(log_attention) != len(reference):
        raise ValueError(f"reference has {len(reference)} layers, log_attention has {len(log_attention)}")
    terms = []
    for layer, (current, pretrained) in enumerate(zip(log_attention, reference, strict=True)):
        if current.shape != pretrained.shape:
            raise ValueError(
                f"layer {layer + 1}: reference has shape {tuple(pretrained.shape)}, "
                f"log_attention {tuple(current.shape)}"
            )
        current = current.float()
        divergence = (current.exp() * (current - pretrained.to(current))).sum(-1)
        terms.append(divergence.mean())
    return torch.stack(terms).mean()


def entropy_floor_loss(
    log_attention: Sequence[Tensor], pretrained_entropy: Sequence[float] | Tensor, fraction: float = 0.7
) -> tuple[Tensor, Tensor]:
    """relu(fraction * H0 - H) in nats, averaged over images and heads, summed over layers.

    Args:
        log_attention: current log-attention, a tensor (images, heads, patches) per layer.
        pretrained_entropy: (layers,), mean entropy of each layer of the pretrained model on the probe set.
        fraction: the floor as a fraction of ``pretrained_entropy``.

    Returns:
        The loss (a scalar >= 0) and the fraction of (layer, image, head) cells in which the floor was
        active, without gradient: a floor that is never reached does nothing, and that should be seen.
    """
    if len(log_attention) != len(pretrained_entropy):
        raise ValueError(
            f"pretrained_entropy has {len(pretrained_entropy)} layers, log_attention has {len(log_attention)}"
        )
    terms, active = [], []
    for current, floor in zip(log_attention, pretrained_entropy, strict=True):
        current = current.float()
        entropy = -(current.exp() * current).sum(-1)
        below = (fraction * float(floor) - entropy).relu()
        terms.append(below.mean())
        active.append((below.detach() > 0).float().mean())
    return torch.stack(terms).sum(), torch.stack(active).mean()


class AttentionPreservation:
    """Attention preservation (APR): ``weight`` times KL(current || pretrained)."""

    name = "apr"

    def __init__(self, weight: float) -> None:
        if weight < 0:
            raise ValueError(f"weight is {weight}; it must be at least 0")
        self.weight = weight

    def __call__(self, log_attention: Sequence[Tensor], reference: Sequence[Tensor] | Tensor) -> Tensor:
        """The weighted loss of one batch; see :func:`attention_preservation_loss`."""
        return self.weight * attention_preservation_loss(log_attention, reference)


class EntropyFloor:
    """Entropy floor: ``weight`` times the entropy missing below ``fraction`` of the pretrained layer mean."""

    name = "entropy_floor"

    def __init__(self, weight: float, pretrained_entropy: Sequence[float] | Tensor, fraction: float = 0.7) -> None:
        if weight < 0:
            raise ValueError(f"weight is {weight}; it must be at least 0")
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction is {fraction}; it must lie in (0, 1]")
        self.weight = weight
        self.fraction = fraction
        self.pretrained_entropy = [float(value) for value in pretrained_entropy]
        self.active_sum = 0.0
        self.batches = 0

    def __call__(self, log_attention: Sequence[Tensor]) -> Tensor:
        """The weighted loss of one batch; counts how often the floor was active."""
        loss, active = entropy_floor_loss(log_attention, self.pretrained_entropy, self.fraction)
        self.active_sum += float(active)
        self.batches += 1
        return self.weight * loss

    @property
    def active_fraction(self) -> float | None:
        """Mean fraction of active cells over the batches so far; None before the first."""
        return self.active_sum / self.batches if self.batches else None
