"""LDIFS: the distance of hidden states from the pretrained ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from attndrift.losses.teacher_loss import CachedTeacher, TeacherLoss
from attndrift.losses.views import HiddenView, View


def ldifs_loss(current: Sequence[Tensor], reference: Sequence[Tensor] | Tensor) -> Tensor:
    """Squared distance of hidden states, each divided by its length, mean over images and layers.

    Args:
        current: a tensor (images, width) a layer.
        reference: the pretrained ones of the same images, per layer, or one tensor (layers, images, width).

    Returns:
        A scalar in [0, 4], twice one minus the cosine. Differentiable in ``current``.
    """
    now = torch.stack(list(current)).float()
    before = reference if isinstance(reference, Tensor) else torch.stack(list(reference))
    if now.shape != before.shape:
        raise ValueError(f"reference has the shape {tuple(before.shape)}, current {tuple(now.shape)}")
    difference = normalize(now, dim=-1) - normalize(before.to(now, non_blocking=now.device.type != "cpu"), dim=-1)
    return difference.square().sum(-1).mean()


class LDIFS(TeacherLoss):
    """LDIFS (Mukhoti et al. 2024): ``weight`` times the squared distance of normalised hidden states from the pretrained ones.

    The class token's state in each of ``ldifs_layers``, divided by its length. Their code takes the states of all tokens and
    divides each channel by its length over the tokens, so weights of the two cannot be compared.

    Arguments are those of :class:`~attndrift.losses.teacher_loss.TeacherLoss`, and:

    Args:
        ldifs_layers: see :class:`~attndrift.losses.views.HiddenView`.
    """

    name, sees = "ldifs", "every hidden state"

    def __init__(
        self,
        model: nn.Module,
        weight: float,
        teacher: nn.Module | CachedTeacher | None = None,
        *,
        ldifs_layers: str = "quarters",
        **options: Any,
    ) -> None:
        self.view = self.cached_view(ldifs_layers=ldifs_layers)
        super().__init__(model, weight, teacher, **options)

    @classmethod
    def cached_view(cls, **settings: Any) -> View:
        """The states of the layers."""
        return HiddenView(settings["ldifs_layers"])

    def _compare(self, current: list[Tensor], reference: Sequence[Tensor] | Tensor) -> Tensor:
        return ldifs_loss(current, reference)
