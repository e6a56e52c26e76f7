"""How much the change of some weights changes what layers put out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from attndrift.metrics.attention import wide_dtype


def activation_change(pretrained: Sequence[Tensor], adapted: Sequence[Tensor]) -> Tensor:
    """norm(dW h) / norm(W0 h) of some linear layers together, h being the same inputs of both.

    Args:
        pretrained: W0 h of each layer, (rows, outputs), without the bias.
        adapted: W h of each, of the same shapes.

    Returns:
        0-dimensional float64 from 0; 1 where the change is as large as what it changes. NaN where W0 h is 0.

    Source: PEFT-Arena, capability-conditioned drift, whose CSD_rel is the square of this for one layer.
    """
    moved = known = torch.zeros((), dtype=torch.float64)
    for before, after in zip(pretrained, adapted, strict=True):
        wide = wide_dtype(before)
        moved = moved + (after.to(wide) - before.to(wide)).square().sum().to("cpu", torch.float64)
        known = known + before.to(wide).square().sum().to("cpu", torch.float64)
    return (moved / known).sqrt()
