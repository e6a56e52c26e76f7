"""Intervals over images: of a share, and of the difference and the ratio of two shares. Pure functions on arrays."""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Limits = tuple[Floats, Floats]
_HALVINGS = 60


def as_floats(values: ArrayLike) -> Floats:
    return np.asarray(values, dtype=np.float64)


def critical(level: float) -> float:
    """The normal quantile of a two-sided interval: 1.96 for 0.95."""
    return NormalDist().inv_cdf((1 + level) / 2)


def wilson_limits(count: ArrayLike, n: ArrayLike, level: float) -> Limits:
    """Wilson's score interval (1927) of ``count`` of ``n`` images, as a share 0..1."""
    n, z = as_floats(n), critical(level)
    share = as_floats(count) / n
    centre, spread = share + z**2 / (2 * n), z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return (centre - spread) / (1 + z**2 / n), (centre + spread) / (1 + z**2 / n)


def newcombe_limits(first: ArrayLike, n: ArrayLike, second: ArrayLike, m: ArrayLike, level: float) -> Limits:
    """Newcombe's interval (1998, method 10) of first / n - second / m, two shares of different images."""
    a, b = as_floats(first) / as_floats(n), as_floats(second) / as_floats(m)
    (a_low, a_high), (b_low, b_high) = wilson_limits(first, n, level), wilson_limits(second, m, level)
    low, high = np.hypot(a - a_low, b_high - b), np.hypot(a_high - a, b - b_low)
    return a - b - low, a - b + high


def tango_limits(only_first: ArrayLike, only_second: ArrayLike, n: ArrayLike, level: float) -> Limits:
    """Tango's score interval (1998) of the difference of two shares of the same ``n`` images.

    ``only_first`` images are right in the first alone, ``only_second`` in the second alone. It is a true interval
    with no such image too: +-z^2 / (n + z^2).
    """
    b, c, n = np.broadcast_arrays(as_floats(only_first), as_floats(only_second), as_floats(n))

    def score(difference: Floats) -> Floats:
        linear = (2 * n - b + c) * difference - b - c
        constant = -c * difference * (1 - difference)
        share = (np.sqrt(np.maximum(linear**2 - 8 * n * constant, 0)) - linear) / (4 * n)
        spread = np.maximum(n * (2 * share + difference * (1 - difference)), 1e-300)
        return as_floats((b - c - n * difference) / np.sqrt(spread))

    return _solve(score, (b - c) / n, -1.0, 1.0, critical(level))


def _solve(score: Callable[[Floats], Floats], estimate: Floats, least: float, most: float, z: float) -> Limits:
    """Where a falling ``score`` is +z (below the estimate) and -z (above it), by halving."""
    ends: list[Floats] = []
    for target, edge in ((z, least), (-z, most)):
        inner, outer = estimate.copy(), np.full_like(estimate, edge)
        for _ in range(_HALVINGS):
            middle = (inner + outer) / 2
            inside = np.abs(score(middle)) < abs(target)
            inner, outer = np.where(inside, middle, inner), np.where(inside, outer, middle)
        ends.append(as_floats((inner + outer) / 2))
    return ends[0], ends[1]


def paired_ratio_limits(both: ArrayLike, only_first: ArrayLike, only_second: ArrayLike, level: float) -> Limits:
    """Interval of the ratio first / second of two shares of the same images: retention is 100 times it.

    Bonett and Price (2006): Wilson limits of each share with a level that their correlation sets. NaN where the
    second is never right.
    """
    a, b, c = as_floats(both), as_floats(only_first), as_floats(only_second)
    n, first, second, z = a + b + c, a + b + 1, a + c + 1, critical(level)
    joint = np.sqrt((b + c + 2) / (first * second))
    alone = np.sqrt((1 - first / (n + 2)) / first) + np.sqrt((1 - second / (n + 2)) / second)
    with np.errstate(divide="ignore", invalid="ignore"):
        shrunk = z * np.where(alone > 0, joint / alone, 1.0)

        def wilson(count: Floats) -> Limits:
            spread = shrunk * np.sqrt(shrunk**2 + 4 * count * (1 - count / n))
            return (2 * count + shrunk**2 - spread) / (2 * (n + shrunk**2)), (2 * count + shrunk**2 + spread) / (
                2 * (n + shrunk**2)
            )

        (low, high), (other_low, other_high) = wilson(a + b), wilson(a + c)
        undefined = a + c <= 0
        return np.where(undefined, np.nan, low / other_high), np.where(undefined, np.nan, high / other_low)
