"""Plain numbers from foreign values, and learning rates as text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def number(value: Any) -> float | None:
    """``value`` as a Python float; None for null, NaN and infinities."""
    if value is None:
        return None
    try:
        result = float(value)
    except (TypeError, ValueError):
        return None
    return result if math.isfinite(result) else None


def format_rate(value: Any) -> str:
    """3e-6 for 3e-06, 3e-3 for 0.003: every rate in one way; `rate not given` for null."""
    rate = number(value)
    if rate is None:
        return "rate not given"
    text = f"{rate:.6g}" if rate >= 1 or rate == 0 else f"{rate:.6e}"
    if "e" in text:
        mantissa, exponent = text.split("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        text = f"{mantissa}e{int(exponent)}"
    return text


def by_gaps(known: NDArray[np.bool_]) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """(rows, known columns) of the rows of ``known`` that are equal."""
    if known.size:
        patterns, pattern = np.unique(known, axis=0, return_inverse=True)
        for place, mask in enumerate(patterns):
            yield np.flatnonzero(pattern.ravel() == place), np.flatnonzero(mask)
