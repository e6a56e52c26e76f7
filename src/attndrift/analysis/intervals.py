"""Every interval over seeds and p value that is printed: pure functions on float64 arrays, the last axis holds the units.

Each takes arrays of any leading shape, so that thousands of simulated studies are one call (``tests/analysis/
test_simulation.py`` does that). Those over images are in :mod:`attndrift.retention.image_limits`. What cannot be had is NaN here and, in a table, null with a reason: :func:`t_row`.
Three seeds are the least: with two, Student's interval is 13 standard errors wide.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import special

from attndrift.analysis.numbers import Floats
from attndrift.retention.image_limits import Limits, as_floats, critical

MINIMUM_SEEDS = 3
MINIMUM_RANKED = 10
"""Independent configurations below which no interval of Spearman's rho is printed: its coverage is not known to hold."""
_ENUMERATED = 8
_RIVAL = 0.2

# --- over seeds ---------------------------------------------------------------------------------------------------


def standard_error(values: ArrayLike) -> Floats:
    """Of the mean over the last axis (seeds): sample standard deviation over the root of n; 0 where all are equal."""
    values = as_floats(values)
    n = values.shape[-1]
    if n < 2:
        return np.full(values.shape[:-1], np.nan)
    # Equal values leave rounding behind in a variance.
    constant = np.ptp(values, axis=-1) <= 1e-12 * np.maximum(np.abs(values).max(axis=-1), 1e-300)
    return np.where(constant, 0.0, values.std(axis=-1, ddof=1) / math.sqrt(n))


def t_limits(values: ArrayLike, level: float) -> Limits:
    """Student's interval of the mean over the last axis. NaN below three units, and where all are equal."""
    values = as_floats(values)
    n = values.shape[-1]
    error = standard_error(values)
    half = error * special.stdtrit(n - 1, (1 + level) / 2) if n >= MINIMUM_SEEDS else np.full_like(error, np.nan)
    half = np.where(error > 0, half, np.nan)
    mean = values.mean(axis=-1)
    return mean - half, mean + half


def t_p(values: ArrayLike) -> Floats:
    """Two-sided p of a mean of 0 over the last axis (Student's t). NaN where :func:`t_limits` is."""
    values = as_floats(values)
    n, error = values.shape[-1], standard_error(values)
    if n < MINIMUM_SEEDS:
        return np.full(error.shape, np.nan)
    p = 2 * special.stdtr(n - 1, -np.abs(values.mean(axis=-1)) / np.where(error > 0, error, np.nan))
    return as_floats(p)


def equivalence_p(values: ArrayLike, margin: ArrayLike) -> Floats:
    """p of |mean| >= ``margin`` over the last axis: the larger of two one-sided t tests (TOST; Schuirmann 1987)."""
    values = as_floats(values)
    n, error = values.shape[-1], standard_error(values)
    if n < MINIMUM_SEEDS:
        return np.full(error.shape, np.nan)
    distance = as_floats(margin) - np.abs(values.mean(axis=-1))
    return as_floats(special.stdtr(n - 1, -distance / np.where(error > 0, error, np.nan)))


def welch(
    first: ArrayLike, second: ArrayLike, level: float, margin: ArrayLike = math.nan
) -> tuple[Floats, Floats, Floats, Floats]:
    """Limits, p and p of equivalence of mean(first) - mean(second) of different seeds: :func:`welch_of`."""
    first, second = as_floats(first), as_floats(second)
    of_first, of_second = (
        (one.mean(axis=-1), standard_error(one) * math.sqrt(one.shape[-1]), one.shape[-1]) for one in (first, second)
    )
    return welch_of(of_first, of_second, level, margin)


def welch_of(
    first: tuple[ArrayLike, ArrayLike, int],
    second: tuple[ArrayLike, ArrayLike, int],
    level: float,
    margin: ArrayLike = math.nan,
) -> tuple[Floats, Floats, Floats, Floats]:
    """The same from the (mean, sd, seeds) of either: Welch's t with Satterthwaite's degrees of freedom.

    NaN where either has fewer than three seeds, or none of them varies. A value that is known without error has sd 0.
    """
    (mean, sd, n), (other, sd_other, m) = first, second
    a, b = as_floats(sd) ** 2 / n, as_floats(sd_other) ** 2 / m
    usable = (a + b > 0) & (min(n, m) >= MINIMUM_SEEDS)
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = np.where(usable, (a + b) ** 2 / (a**2 / (n - 1) + b**2 / (m - 1)), np.nan)
        error = np.where(usable, np.sqrt(a + b), np.nan)
    difference = as_floats(mean) - as_floats(other)
    half = error * special.stdtrit(freedom, (1 + level) / 2)
    p = 2 * special.stdtr(freedom, -np.abs(difference) / error)
    return difference - half, difference + half, p, special.stdtr(freedom, (np.abs(difference) - margin) / error)


def given_row(mean: float, sd: float, n: int, level: float) -> dict[str, Any]:
    """As :func:`t_row`, from the mean and standard deviation over ``n`` seeds that somebody gave."""
    low, high = (float(end) for end in welch_of((mean, sd, n), (0.0, 0.0, n), level)[:2])
    reason = None
    if not np.isfinite(low):
        reason = f"{n} seeds: an interval needs {MINIMUM_SEEDS}" if n < MINIMUM_SEEDS else f"all {n} seeds agree"
    return {
        "mean": mean, "sd": sd, "n": n, "low": None if reason else low, "high": None if reason else high, "unit": "seed",
        "method": "none" if reason else "Student's t, given mean and sd", "reason": reason,
    }  # fmt: skip


def t_row(values: ArrayLike, level: float, unit: str = "seed") -> dict[str, Any]:
    """``mean, sd, n, low, high, unit, method, reason`` of one array of values, for a row of a table."""
    values = as_floats(values)
    n = len(values)
    low, high = t_limits(values, level) if n else (np.array(np.nan), np.array(np.nan))
    reason = None
    if not np.isfinite(low):
        count = f"{n} {unit}" + ("" if n == 1 else "s")
        reason = f"{count}: an interval needs {MINIMUM_SEEDS}" if n < MINIMUM_SEEDS else f"all {count} agree"
    return {
        "mean": float(values.mean()) if n else None,
        "sd": float(standard_error(values)) * math.sqrt(n) if n > 1 else None,
        "n": n,
        "low": None if reason else float(low),
        "high": None if reason else float(high),
        "unit": unit,
        "method": "none" if reason else "Student's t",
        "reason": reason,
    }


def chosen_row(values: ArrayLike, level: float) -> dict[str, Any]:
    """The setting with the highest mean of ``values`` (seeds, settings) as :func:`t_row` gives it, and ``contenders``.

    What is chosen by the very numbers that are reported looks better than it is. The interval is widened (Bonferroni)
    for the settings that other seeds might have chosen: the chosen one and all whose paired p against it is above 0.2.
    """
    values = as_floats(values)
    best = int(values.mean(axis=0).argmax())
    with np.errstate(invalid="ignore"):
        rivals = t_p((values[:, [best]] - values).T) > _RIVAL
    contenders = 1 + int(rivals.sum())
    row = t_row(values[:, best], 1 - (1 - level) / contenders)
    if contenders > 1 and row["low"] is not None:
        row["method"] = f"Student's t, Bonferroni for {contenders} settings that might have been chosen"
    return row | {"chosen": best, "contenders": contenders}


@cache
def seeds_needed(sd: float, difference: float, *, alpha: float, power: float = 0.8, most: int = 1000) -> int | None:
    """Fewest seeds with which a paired t test finds ``difference`` with ``power``; None beyond ``most``.

    ``sd`` is that of the differences between two runs of one seed; the power is that of the noncentral t.
    """
    if sd <= 0:
        return MINIMUM_SEEDS

    def reached(n: int) -> float:
        edge, shift = special.stdtrit(n - 1, 1 - alpha / 2), difference * math.sqrt(n) / sd
        # Far beyond the edge the noncentral t has no number, and the power is 1.
        return float(np.nan_to_num(1 - special.nctdtr(n - 1, shift, edge), nan=1.0))

    place = bisect_left(range(MINIMUM_SEEDS, most + 1), power, key=reached)
    return MINIMUM_SEEDS + place if place <= most - MINIMUM_SEEDS else None


# --- ranks, and families of tests ---------------------------------------------------------------------------------


def spearman_limits(rho: ArrayLike, n: int, level: float) -> Limits:
    """Interval of Spearman's rho of ``n`` independent units: Fisher's z with the variance of Bonett and Wright (2000).

    NaN below :data:`MINIMUM_RANKED` units and for a perfect order, where z is infinite.
    """
    rho = as_floats(rho)
    if n < MINIMUM_RANKED:
        return np.full_like(rho, np.nan), np.full_like(rho, np.nan)
    with np.errstate(divide="ignore"):
        z, half = np.arctanh(rho), critical(level) * np.sqrt((1 + rho**2 / 2) / (n - 3))
    perfect = np.abs(rho) > 1 - 1e-12
    return np.where(perfect, np.nan, np.tanh(z - half)), np.where(perfect, np.nan, np.tanh(z + half))


@cache
def _orders(n: int) -> NDArray[np.intp]:
    return np.array(list(itertools.permutations(range(n))), dtype=np.intp)


def ranks(values: ArrayLike, *, normal: bool = False) -> Floats:
    """Centred ranks along the last axis, of length 1, so that the product of two is Spearman's rho; 0 where constant.

    ``normal``: van der Waerden's scores, the normal quantiles of the ranks, in their place.
    """
    values = as_floats(values)
    n = values.shape[-1]
    ranked = pd.DataFrame(values.reshape(-1, n)).rank(axis=1).to_numpy().reshape(values.shape)
    scores = special.ndtri(ranked / (n + 1)) if normal else ranked
    centred = scores - scores.mean(axis=-1, keepdims=True)
    length = np.sqrt((centred**2).sum(axis=-1, keepdims=True))
    return np.divide(centred, length, out=np.zeros_like(centred), where=np.ptp(ranked, axis=-1, keepdims=True) > 0)


def spearman(first: ArrayLike, second: ArrayLike) -> tuple[Floats, Floats]:
    """Spearman's rho and its two-sided p over the last axis; NaN where one is constant or there are under three units.

    p counts all permutations up to eight units (``scipy.stats.permutation_test`` lists them anew at each call, in a
    hundred times as long); above that it is that of t.
    """
    x, y = np.broadcast_arrays(as_floats(first), as_floats(second))
    n = x.shape[-1]
    if n < 3:
        return np.full(x.shape[:-1], np.nan), np.full(x.shape[:-1], np.nan)
    a, b = ranks(x), ranks(y)
    usable = (standard_error(x) > 0) & (standard_error(y) > 0)
    rho = np.where(usable, np.clip((a * b).sum(axis=-1), -1, 1), np.nan)
    p = np.array(2 * special.stdtr(n - 2, -np.abs(rho) * np.sqrt((n - 2) / np.maximum(1 - rho**2, 1e-300))))
    if n <= _ENUMERATED:
        for place in filter(usable.__getitem__, np.ndindex(usable.shape)):
            p[place] = np.mean(np.abs(b[place][_orders(n)] @ a[place]) >= abs(rho[place]) - 1e-9)
    else:
        perfect = np.abs(rho) > 1 - 1e-12
        for place in filter(perfect.__getitem__, np.ndindex(perfect.shape)):
            # Permutations that keep every value with its equals, in one order or the other.
            same = sum(math.lgamma(count + 1) for count in np.unique(y[place], return_counts=True)[1])
            p[place] = min(1.0, 2 * math.exp(same - math.lgamma(n + 1)))
    return rho, p


def holm(p: ArrayLike) -> Floats:
    """Holm's corrected p values (1979) of one family; NaN is no test and stays NaN."""
    p = as_floats(p)
    result, known = np.full_like(p, np.nan), np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known], kind="stable")]
    stepped = p[order] * np.arange(len(order), 0, -1)
    result[order] = np.minimum(np.maximum.accumulate(stepped), 1.0) if len(order) else stepped
    return result
