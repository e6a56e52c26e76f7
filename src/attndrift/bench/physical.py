"""The least that a forward pass or a training step can take on this machine: operations over the rate, bytes over the bandwidth, both measured."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from attndrift.bench.ratios import Work, rounds

TITLE = "the physical floor of a forward pass"
REPEATS = 7
COPIED = 2**28
"""Bytes of the tensor whose copying measures the bandwidth: more than any cache holds."""

STEP_TITLE = "the physical floor of a training step"
OPTIMIZER_PASSES = 10
"""How often a trained parameter's number goes through memory after the backward pass: clipping reads the gradient for its norm,
reads and writes it to scale it; AdamW reads weight, gradient and two moments, and writes the weight and the moments."""

MAP_PASSES = 4
"""How often a full attention map goes through memory at the least: scores written, read and written by the softmax, read by
the product with the values."""


@torch.no_grad()
def operations(eager: nn.Module, image: Tensor) -> float:
    """Floating-point operations of one image (1, 3, height, width) through ``eager``, whose attention is plain products."""
    with FlopCounterMode(display=False) as counter:
        eager(pixel_values=image)
    return float(counter.get_total_flops())


def step_operations(loss: Callable[[], Tensor]) -> float:
    """Floating-point operations of a forward and a backward pass of an eager model, whose attention is plain products."""
    with FlopCounterMode(display=False) as counter:
        loss().backward()
    return float(counter.get_total_flops())


def rates(rows: int, width: int, like: Tensor, wait: Work) -> tuple[float, float]:
    """Operations a second of a lone product (rows, width) x (width, 4 width), as a block's largest one, and bytes a second
    read and written by a copy; medians, with the device and type of ``like``."""
    options: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
    left, right = torch.randn(rows, width, **options), torch.randn(width, 4 * width, **options)
    out = torch.empty(rows, 4 * width, **options)
    source = torch.empty(COPIED, dtype=torch.uint8, device=like.device).fill_(1)
    target = torch.empty_like(source).fill_(2)
    works: dict[str, Work] = {
        "product": lambda: torch.mm(left, right, out=out), "copy": lambda: target.copy_(source),
    }  # fmt: skip
    seconds = {name: statistics.median(taken) for name, taken in rounds(works, REPEATS, wait=wait).items()}
    return 2.0 * rows * width * 4 * width / seconds["product"], 2.0 * COPIED / seconds["copy"]


def floor_row(
    case: str,
    what: str,
    seconds: float,
    operations: float,
    moved: float,
    before: tuple[float, float],
    after: tuple[float, float],
) -> dict[str, Any]:
    """A row: what a pass must take at least, and how near to it it is.

    ``before``, ``after``: :func:`rates` on both sides of the passes. Their mean counts; how far they are apart says how
    well the floor is known.
    """
    rate, bandwidth = ((first + second) / 2 for first, second in zip(before, after, strict=True))
    least = operations / rate + moved / bandwidth
    return {
        "case": case,
        "what": what,
        "GFLOP": operations / 1e9,
        "GFLOP/s of a lone product": rate / 1e9,
        "before": before[0] / 1e9,
        "after": after[0] / 1e9,
        "GB moved": moved / 1e9,
        "GB/s of a copy": bandwidth / 1e9,
        "floor s": least,
        "measured s": seconds,
        "reached, %": 100 * least / seconds,
    }
