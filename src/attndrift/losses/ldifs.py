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


def ldifs_all_tokens_loss(current: Sequence[Tensor], reference: Sequence[Tensor] | Tensor) -> Tensor:
    """The form of the published code: each channel divided by its length over the tokens; the mean of all squares.

    Args:
        current: a tensor (images, tokens, width) a layer.
        reference: the pretrained ones of the same images, per layer, or one tensor (layers, images, tokens, width).

    Returns:
        A scalar >= 0, differentiable in ``current``. The weight of Mukhoti et al. is 10.
    """
    now = torch.stack(list(current)).float()
    before = reference if isinstance(reference, Tensor) else torch.stack(list(reference))
    if now.shape != before.shape:
        raise ValueError(f"reference has the shape {tuple(before.shape)}, current {tuple(now.shape)}")
    difference = normalize(now, dim=-2) - normalize(before.to(now, non_blocking=now.device.type != "cpu"), dim=-2)
    return difference.square().mean()


class LDIFS(TeacherLoss):
    """LDIFS (Mukhoti et al. 2024): ``weight`` times the squared distance of normalised hidden states from the pretrained ones.

    The class token's state in each of ``ldifs_layers``, divided by its length; or, as in their code, the states of all tokens,
    each channel divided by its length over the tokens. Weights of the two cannot be compared.

    Arguments are those of :class:`~attndrift.losses.teacher_loss.TeacherLoss`, and:

    Args:
        ldifs_layers, ldifs_tokens: see :class:`~attndrift.losses.views.HiddenView`.
    """

    name, sees = "ldifs", "every hidden state"

    def __init__(
        self,
        model: nn.Module,
        weight: float,
        teacher: nn.Module | CachedTeacher | None = None,
        *,
        ldifs_layers: str = "quarters",
        ldifs_tokens: str = "class",
        **options: Any,
    ) -> None:
        if ldifs_tokens not in ("class", "all"):
            raise ValueError(f"`ldifs_tokens` is {ldifs_tokens!r}; it is class or all")
        self.view = self.cached_view(ldifs_layers=ldifs_layers, ldifs_tokens=ldifs_tokens)
        self._all = ldifs_tokens == "all"
        super().__init__(model, weight, teacher, **options)

    @classmethod
    def cached_view(cls, **settings: Any) -> View:
        """The states of the layers."""
        return HiddenView(settings["ldifs_layers"], settings["ldifs_tokens"])

    def _compare(self, current: list[Tensor], reference: Sequence[Tensor] | Tensor) -> Tensor:
        return (ldifs_all_tokens_loss if self._all else ldifs_loss)(current, reference)
