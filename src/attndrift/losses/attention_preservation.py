"""Attention preservation (APR): KL(current || pretrained) of the attention of the images in training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from attndrift.losses.teacher_loss import TeacherLoss
from attndrift.losses.views import AttentionView


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
    for layer, (current, pretrained) in enumerate(zip(log_attention, reference, strict=True)):
        if current.shape != pretrained.shape:
            raise ValueError(
                f"layer {layer + 1}: reference has shape {tuple(pretrained.shape)}, "
                f"log_attention {tuple(current.shape)}"
            )
    if len({layer.shape for layer in log_attention}) == 1:
        # All layers at once: on an accelerator a handful of operations instead of as many for each.
        now = torch.stack(list(log_attention)).float()
        before = reference if isinstance(reference, Tensor) else torch.stack(list(reference))
        before = before.to(now, non_blocking=now.device.type != "cpu")
        return (now.exp() * (now - before)).sum(-1).flatten(1).mean(1).mean()
    terms = []
    for current, pretrained in zip(log_attention, reference, strict=True):
        now = current.float()
        terms.append((now.exp() * (now - pretrained.to(now))).sum(-1).mean())
    return torch.stack(terms).mean()


class AttentionPreservation(TeacherLoss):
    """Attention preservation (APR): ``weight`` times KL(current || pretrained) of the images in training.

    ::

        preserve = AttentionPreservation(model, weight=0.1)
        ...
        loss = task_loss + preserve(model)             # after model(images)

    Arguments are those of :class:`~attndrift.losses.teacher_loss.TeacherLoss`.

    Raises:
        ObservationError: a model (or a teacher) that cannot be observed.
    """

    name, sees = "attention_preservation", "the attention"
    view = AttentionView()

    def _compare(self, current: list[Tensor], reference: Sequence[Tensor] | Tensor) -> Tensor:
        return attention_preservation_loss(current, reference)
