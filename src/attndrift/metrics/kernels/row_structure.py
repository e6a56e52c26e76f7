"""Entropy, ERF and Gini of every row of attention in one look at it."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, unused-ignore"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

SORTED_HERE = 1024
"""Most patches that a program sorts itself, which takes less than reading them back sorted."""


@triton.jit
def _structure(
    attention, descending, normalised, values, rows, patches, share, block: tl.constexpr, sorts: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    patch = tl.arange(0, block)
    inside = patch < patches
    raw = tl.load(attention + row * patches + patch, mask=inside, other=0.0)
    total = tl.sum(raw, axis=0)
    own = raw / total
    tl.store(normalised + row * patches + patch, own, mask=inside)
    # The logarithm of 0 is not asked for; NaN stays NaN.
    entropy = -tl.sum(tl.where(inside & (own != 0.0), own * tl.log(tl.where(own == 0.0, 1.0, own)), 0.0), axis=0)
    if sorts:
        # What is no patch comes last, and counts for nothing there.
        ordered = tl.sort(tl.where(inside, own, -1.0), descending=True)
        ordered = tl.where(inside, ordered, 0.0)
    else:
        ordered = tl.load(descending + row * patches + patch, mask=inside, other=0.0) / total
    wide = ordered.to(tl.float64)
    before = tl.cumsum(wide, axis=0)
    whole = tl.sum(wide, axis=0)
    short = tl.sum((inside & (before < share * whole)).to(tl.int32), axis=0)
    field = tl.minimum(short + 1, patches).to(tl.float32) / patches
    weight = (patches - 1 - 2 * patch).to(tl.float64) / patches
    gini = tl.sum(tl.where(inside, wide * weight, 0.0), axis=0)
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
    sorts = patches <= SORTED_HERE
    descending = attention if sorts else attention.sort(-1, descending=True).values
    block = max(2, triton.next_power_of_2(patches))
    with torch.cuda.device_of(attention):
        _structure[(rows,)](
            attention, descending, normalised, values, rows, patches, share,
            block=block, sorts=sorts, num_warps=min(8, max(1, block // 128)),
        )  # fmt: skip
    return normalised, values
