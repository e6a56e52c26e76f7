"""Intervals and p values of what ranks tell: two signals compared, one given another, one of two classes told apart.

Pure functions on arrays; the units are independent configurations. What cannot be had is NaN, and :func:`why_none` says
why. Their coverage is tried on ``tests/analysis/scenarios_signals.py``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from attndrift.analysis.intervals import MINIMUM_RANKED, spearman_limits
from attndrift.analysis.numbers import Floats
from attndrift.retention.image_limits import Limits, as_floats, critical

MOST_TIED = 0.2
"""Share of equal values above which the intervals of ranks cover too little or too much."""
MINIMUM_CLASS, MINIMUM_CLASSED = 3, 8
_NEARLY_EQUAL = 0.95
_BLOCK = 256
_MANY = 50
_UNKNOWN = "no interval holds its coverage"


def most_tied(values: Floats) -> int:
    """How many of ``values`` (units,) are equal to each other, at most."""
    return int(np.unique(values, return_counts=True)[1].max()) if len(values) else 0


def why_none(n: int, tied: int) -> str | None:
    """Why no interval of a rank correlation of ``n`` units is given, ``tied`` of which are equal; None where one can be."""
    if n < MINIMUM_RANKED:
        return f"{n} configuration{'' if n == 1 else 's'}: an interval needs {MINIMUM_RANKED}"
    if tied > MOST_TIED * n:
        return f"{tied} of {n} configurations have the same value: {_UNKNOWN}"
    return None


def difference_limits(first: ArrayLike, second: ArrayLike, between: ArrayLike, n: int, level: float) -> Limits:
    """Interval of rho(first) - rho(second), both with one outcome on the same ``n`` units; ``between``: their own rho.

    Zou (2007): the limits of each rho and the correlation of the two, put together. NaN below ``MINIMUM_RANKED``.
    """
    # A perfect order has no limits of its own: half the smallest step below it has.
    most = 1 - 6 / (n**3 - n)
    a, b, c = (np.clip(as_floats(values), -most, most) for values in (first, second, between))
    (a_low, a_high), (b_low, b_high) = spearman_limits(a, n, level), spearman_limits(b, n, level)
    joint = ((c - a * b / 2) * (1 - a**2 - b**2 - c**2) + c**3) / ((1 - a**2) * (1 - b**2))
    joint = np.clip(joint, -1, 1)

    def reach(one: Floats, other: Floats) -> Floats:
        return np.sqrt(np.maximum(one**2 + other**2 - 2 * joint * one * other, 0))

    return a - b - reach(a - a_low, b_high - b), a - b + reach(a_high - a, b - b_low)


def partial_rho(signal: ArrayLike, given: ArrayLike, between: ArrayLike) -> Floats:
    """Partial rank correlation of a signal with the outcome given another signal, from the three correlations.

    NaN where the signal, or the outcome, is nearly the same order as what is given: there is nothing left.
    """
    a, b, c = as_floats(signal), as_floats(given), as_floats(between)
    usable = np.maximum(np.abs(b), np.abs(c)) < _NEARLY_EQUAL
    rest = np.sqrt(np.maximum((1 - b**2) * (1 - c**2), 1e-300))
    return np.where(usable, np.clip((a - b * c) / rest, -1, 1), np.nan)


def _partial_z(partial: ArrayLike, n: int) -> Limits:
    """Fisher's z of :func:`partial_rho` and its standard error; NaN below ``MINIMUM_RANKED`` units, or for +-1.

    One unit less than without a control, and 1 + 3/4 rho^2 in the place of Bonett and Wright's 1 + rho^2 / 2, which
    covers under 92% where the outcome follows the signal closely.
    """
    rho = as_floats(partial)
    usable = (np.abs(rho) < 1 - 1e-12) & (n >= MINIMUM_RANKED)
    return np.arctanh(np.where(usable, rho, np.nan)), np.sqrt((1 + 0.75 * rho**2) / max(n - 4, 1))


def partial_limits(partial: ArrayLike, n: int, level: float) -> Limits:
    """Interval of :func:`partial_rho` of ``n`` units, from Fisher's z."""
    z, error = _partial_z(partial, n)
    return np.tanh(z - critical(level) * error), np.tanh(z + critical(level) * error)


def partial_p(partial: ArrayLike, of_scores: ArrayLike, n: int) -> Floats:
    """Two-sided p of a partial rank correlation of 0: the larger of two.

    One is that of Fisher's z. With many units it is too small where what is given goes closely with the signal, because
    the ranks of what depends in a straight line do not. So the other has to agree: Student's t with n - 3 degrees of
    freedom of ``of_scores``, the partial correlation of normal scores (:func:`ranks`), for which they do.
    """
    z, error = _partial_z(partial, n)
    rho = np.clip(as_floats(of_scores), -1 + 1e-12, 1 - 1e-12)
    t = np.abs(rho) * np.sqrt(max(n - 3, 1) / (1 - rho**2))
    return np.maximum(2 * special.ndtr(-np.abs(z) / error), 2 * special.stdtr(max(n - 3, 1), -t))


def difference_p(first: ArrayLike, second: ArrayLike, between: ArrayLike, n: int) -> Floats:
    """Two-sided p of equal correlations of two signals with one outcome (Meng, Rosenthal and Rubin 1992).

    Fisher's z with Bonett and Wright's variance for ranks. NaN below ``MINIMUM_RANKED`` units.
    """
    most = 1 - 6 / (n**3 - n)
    a, b, c = (np.clip(as_floats(values), -most, most) for values in (first, second, between))
    if n < MINIMUM_RANKED:
        return np.full_like(a, np.nan)
    square = (a**2 + b**2) / 2
    share = np.minimum((1 - c) / (2 * (1 - square)), 1)
    variance = 2 * (1 - c) * (1 - share * square) / (1 - square) * (1 + square / 2) / (n - 3)
    return as_floats(2 * special.ndtr(-np.abs(np.arctanh(a) - np.arctanh(b)) / np.sqrt(variance)))


def share_won(first: Floats, second: Floats, outcome: Floats) -> tuple[int, int]:
    """Of the pairs of units that two signals (units,) order differently: how many the first orders as the outcome does,
    and how many there are. A pair with equal outcomes, or equal in one signal, is left out."""
    won = differing = 0
    for start in range(0, len(outcome), _BLOCK):
        block = slice(start, start + _BLOCK)
        a, b, y = (np.sign(values[block, None] - values) for values in (first, second, outcome))
        differ = (a * b == -1) & (y != 0)
        won, differing = won + int((differ & (a == y)).sum()), differing + int(differ.sum())
    return won // 2, differing // 2


def placements(score: Floats, positive: NDArray[np.bool_]) -> Floats:
    """Of each positive unit the share of the others below it (ties count half): their mean is the ROC area of ``score``.

    ``sklearn.metrics.roc_auc_score`` gives the same mean in fifty times as long.
    """
    bad, good = score[positive], np.sort(score[~positive])
    below = np.searchsorted(good, bad, side="left") + np.searchsorted(good, bad, side="right")
    return as_floats(below / (2 * len(good)))


def roc_area(score: Floats, positive: NDArray[np.bool_]) -> float:
    """The ROC area of ``score`` (units,) with both classes."""
    return float(placements(score, positive).mean())


def why_no_area(score: Floats, positive: NDArray[np.bool_]) -> str | None:
    """Why no interval of the ROC area of ``score`` (units,) is given; None where one can be."""
    n, m = len(score), int(positive.sum())
    if min(m, n - m) < MINIMUM_CLASS or n < MINIMUM_CLASSED:
        return f"{m} of {n} configurations are damaged: an interval needs {MINIMUM_CLASS} of each kind, {MINIMUM_CLASSED} in all"
    tied = most_tied(score)
    return f"{tied} of {n} configurations have the same value: {_UNKNOWN}" if tied > MOST_TIED * n else None


def area_limits(score: Floats, positive: NDArray[np.bool_], level: float) -> tuple[float, float]:
    """Interval of the ROC area of ``score`` (units,). NaN below three units of either class or eight in all.

    Below 50 units, and where the area is 1, that of Newcombe (2006, method 5): the areas within ``z`` of their own standard
    errors. With more it covers too much of an area near 1; there it is DeLong's standard error on the logit scale.
    """
    n, m = len(score), int(positive.sum())
    if min(m, n - m) < MINIMUM_CLASS or n < MINIMUM_CLASSED:
        return np.nan, np.nan
    of_bad, of_good = placements(score, positive), placements(-score, ~positive)
    area, z = float(of_bad.mean()), critical(level)
    variance = float(of_bad.var(ddof=1) / m + of_good.var(ddof=1) / (n - m))
    if n >= _MANY and variance > 0:
        half = z * np.sqrt(variance) / (area * (1 - area))
        return float(special.expit(special.logit(area) - half)), float(special.expit(special.logit(area) + half))
    grid = np.linspace(0, 1, 2001)
    spread = grid * (1 - grid) * (1 + (n / 2 - 1) * ((1 - grid) / (2 - grid) + grid / (1 + grid)))
    inside = np.abs(area - grid) <= z * np.sqrt(spread / (m * (n - m))) + 1e-12
    return float(grid[inside.argmax()]), float(grid[::-1][inside[::-1].argmax()])
