"""Weights between two models."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


@torch.no_grad()
def interpolate_weights(model: nn.Module, start: Mapping[str, Tensor], end: Mapping[str, Tensor], alpha: float) -> None:
    """Set the parameters of ``model`` to (1 - alpha) start + alpha end, by name.

    Args:
        alpha: 0..1; at the ends the values are those of ``start`` and ``end`` bit for bit.
    """
    for name, parameter in model.named_parameters():
        # lerp returns its end points exactly, so alpha 0 is the pretrained model bit for bit.
        parameter.copy_(torch.lerp(start[name], end[name], float(alpha)))
