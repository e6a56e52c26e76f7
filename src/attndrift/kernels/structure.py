"""Entropy, ERF and Gini of every row of attention in one look at it."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, unused-ignore"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_OTHERS = 16
"""Patches that all of a row's are compared with at once."""


@triton.jit
def _structure(attention, normalised, values, rows, patches, share, block: tl.constexpr, others: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    patch = tl.arange(0, block)
    inside = patch < patches
    raw = tl.load(attention + row * patches + patch, mask=inside, other=0.0)
    own = raw / tl.sum(raw, axis=0)
    tl.store(normalised + row * patches + patch, own, mask=inside)
    # The logarithm of 0 is not asked for; NaN stays NaN.
    entropy = -tl.sum(tl.where(inside & (own != 0.0), own * tl.log(tl.where(own == 0.0, 1.0, own)), 0.0), axis=0)
    total = tl.sum(raw, axis=0)
    # Sorted without sorting: of each patch, the sum and the number of those that come before it, itself among them.
    before = tl.zeros((block,), dtype=tl.float64)
    place = tl.zeros((block,), dtype=tl.int32)
    for start in range(0, patches, others):
        other = start + tl.arange(0, others)
        exists = other < patches
        them = tl.load(attention + row * patches + other, mask=exists, other=0.0) / total
        earlier = (them[None, :] > own[:, None]) | (
            (them[None, :] == own[:, None]) & (other[None, :] <= patch[:, None])
        )
        earlier = earlier & exists[None, :]
        before += tl.sum(tl.where(earlier, them[None, :], 0.0).to(tl.float64), axis=1)
        place += tl.sum(earlier.to(tl.int32), axis=1)
    whole = tl.sum(own.to(tl.float64), axis=0)
    short = tl.sum((inside & (before < share * whole)).to(tl.int32), axis=0)
    field = tl.minimum(short + 1, patches).to(tl.float32) / patches
    weight = (patches + 1 - 2 * place).to(tl.float64) / patches
    gini = tl.sum(tl.where(inside, own.to(tl.float64) * weight, 0.0), axis=0)
    tl.store(values + row, tl.where(entropy < 0.0, 0.0, entropy))
    tl.store(values + rows + row, field)
    tl.store(values + 2 * rows + row, tl.where(gini < 0.0, 0.0, gini).to(tl.float32))


def structure_of_rows(attention: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Normalised rows (..., N) and their entropy, ERF@p and Gini, (3, ...), of float32 ``attention`` (..., N).

    ``share``: what the sum of a row's first patches must reach, p less its tolerance. The sums that ERF compares are in
    float64. A row that is not finite has an entropy that is not.
    """
    attention = attention.contiguous()
    patches = attention.shape[-1]
    rows = attention.numel() // patches
    normalised = torch.empty_like(attention)
    values = attention.new_empty(3, *attention.shape[:-1])
    with torch.cuda.device_of(attention):
        _structure[(rows,)](
            attention, normalised, values, rows, patches, share, block=triton.next_power_of_2(patches), others=_OTHERS
        )  # fmt: skip
    return normalised, values
