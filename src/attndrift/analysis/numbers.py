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


def means_of(codes: NDArray[np.intp], values: Floats) -> tuple[NDArray[np.intp], Floats]:
    """The codes that have a known value, sorted, and the mean of each. Sums are compensated, as those of pandas.

    >>> means_of(np.array([3, 1, 3, 2]), np.array([1.0, 5.0, 2.0, np.nan]))
    (array([1, 3]), array([5. , 1.5]))
    """
    known = np.isfinite(values)
    order = np.argsort(codes[known], kind="stable")
    of, sorted_values = codes[known][order], values[known][order]
    found, start, count = np.unique(of, return_index=True, return_counts=True)
    total, lost = np.zeros((2, len(found)))
    for place in range(int(count.max(initial=0))):
        more = np.flatnonzero(count > place)
        added = sorted_values[start[more] + place] - lost[more]
        reached = total[more] + added
        lost[more], total[more] = reached - total[more] - added, reached
    return found, total / np.maximum(count, 1)
