"""The least time that a pass or a step can take on this machine: operations over the rate, bytes over the bandwidth."""

from __future__ import annotations

import statistics
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.ratios import Work, timed

TITLE = "roofline"
REPEATS = 7
COPIED_BYTES = 2**28
"""Size of the tensor whose copying measures the bandwidth; larger than any cache."""

OPTIMIZER_PASSES = 10
"""How often a trained parameter's number goes through memory after the backward pass. Clipping reads the gradient for its norm,
then reads and writes it. AdamW reads weight, gradient and two moments, and writes the weight and the moments."""

MAP_PASSES = 4
"""How often a full attention map goes through memory: written as scores, read and written by softmax, read with the values."""


def operations(work: Work) -> float:
    """Floating-point operations of ``work`` on an eager model, whose attention is plain matrix products."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def rates(rows: int, width: int) -> tuple[float, float]:
    """Operations a second of a product (rows, width) x (width, 4 width), and bytes a second read and written by a copy.

    Both are medians, in float32. The product is the largest one of a transformer block.
    """
    left, right = torch.randn(rows, width), torch.randn(width, 4 * width)
    out = torch.empty(rows, 4 * width)
    source = torch.ones(COPIED_BYTES, dtype=torch.uint8)
    target = torch.empty_like(source)
    seconds = []
    for work in (lambda: torch.mm(left, right, out=out), lambda: target.copy_(source)):
        work()
        seconds.append(statistics.median(timed(work) for _ in range(REPEATS)))
    return 2.0 * rows * width * 4 * width / seconds[0], 2.0 * COPIED_BYTES / seconds[1]


def roofline_row(
    case: str,
    what: str,
    seconds: float,
    operations: float,
    moved: float,
    before: tuple[float, float],
    after: tuple[float, float],
) -> dict[str, Any]:
    """A row: the least time of a pass, and how much of the measured ``seconds`` that is.

    ``moved``: bytes. ``before``, ``after``: :func:`rates` on both sides of the passes; their mean counts. How far they are
    apart says how well the roofline is known.
    """
    rate, bandwidth = ((first + second) / 2 for first, second in zip(before, after, strict=True))
    least = operations / rate + moved / bandwidth
    return {
        "case": case, "what": what,
        "GFLOP": operations / 1e9, "GFLOP/s of a lone product": rate / 1e9,
        "before": before[0] / 1e9, "after": after[0] / 1e9,
        "GB moved": moved / 1e9, "GB/s of a copy": bandwidth / 1e9,
        "least s": least, "measured s": seconds, "reached, %": 100 * least / seconds,
    }  # fmt: skip
