"""Attention maps of a few images, for pictures."""

from __future__ import annotations

import math
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from attndrift.attention.observer import observe
from attndrift.models.embedding import image_embeddings
from attndrift.models.evaluation import evaluation_mode


def attention_maps(model: nn.Module, pixels: Tensor) -> NDArray[Any]:
    """The class token's attention to the patches in every block, mean over heads.

    Args:
        pixels: normalised images (images, 3, height, width).

    Returns:
        (blocks, images, rows, columns), float64: shares that sum to 1.
    """
    with evaluation_mode(model), observe(model) as seen:
        image_embeddings(model, pixels)
        maps = torch.stack([layer.double().mean(1) for layer in seen.attention])
    side = math.isqrt(maps.shape[-1])
    found: NDArray[Any] = maps.unflatten(-1, (side, side)).cpu().numpy()
    return found
