"""Percentile bootstrap intervals over configurations (or other units), on ``scipy.stats.bootstrap``.

A resample in which a statistic is undefined (a constant column, one class only) gives NaN and is left out, and the
interval says how many were: scipy's own percentiles would be NaN for a single one of them.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from attndrift.analysis.numbers import Floats
from attndrift.analysis.result import Interval
from attndrift.analysis.settings import AnalysisSettings
from attndrift.analysis.warnings import quiet

_ELEMENTS = 1_000_000
"""Values drawn for one interval at most, and held at one time."""


def generator(settings: AnalysisSettings, *names: str) -> np.random.Generator:
    """A generator for one named statistic: what else is computed does not change its draws."""
    return np.random.default_rng([settings.bootstrap_seed, zlib.crc32("|".join(names).encode())])


def n_resamples(settings: AnalysisSettings, n: int) -> int:
    """How many resamples of ``n`` values are drawn: fewer where they are very many, never under 200."""
    return max(200, min(settings.bootstrap_resamples, _ELEMENTS // max(n, 1)))


def bootstrap(
    samples: Sequence[NDArray[np.generic]],
    statistic: Callable[..., Floats],
    settings: AnalysisSettings,
    *names: str,
    runs: int | None = None,
) -> Floats:
    """Values of ``statistic(*samples, axis=-1)`` in resamples of the units on the last axis: (..., resamples).

    All samples are resampled together. ``names`` identify the statistic and seed its draws. ``runs`` is how many
    values a resample stands for where the units are groups of them. Fewer than two units give no resample.
    """
    n = samples[0].shape[-1]
    if n < 2:
        return np.full((*samples[0].shape[:-1], 0), np.nan)
    size = max(n, runs or 0)
    result = quiet(
        stats.bootstrap,
        tuple(samples),
        statistic,
        paired=True,
        vectorized=True,
        axis=-1,
        method="percentile",
        n_resamples=n_resamples(settings, size),
        batch=max(1, _ELEMENTS // max(size, samples[0].size)),
        rng=generator(settings, *names),
    )
    return np.asarray(result.bootstrap_distribution, dtype=np.float64)


def percentile_interval(draws: Floats, settings: AnalysisSettings, n: int, *, minimum: int = 3) -> Interval:
    """The percentile interval of ``draws`` (resamples,) of a statistic of ``n`` configurations."""
    result = Interval(level=settings.level, n=n)
    if n < minimum:
        result.reason = f"{n} configuration{'' if n == 1 else 's'}: an interval needs at least {minimum}"
        return result
    defined = draws[np.isfinite(draws)]
    if len(defined) < 0.5 * len(draws):
        result.reason = f"undefined in {len(draws) - len(defined)} of {len(draws)} resamples"
        return result
    tail = 100 * (1 - settings.level) / 2
    low, high = np.percentile(defined, [tail, 100 - tail])
    result.low, result.high, result.resamples = float(low), float(high), len(defined)
    if low == high:
        result.reason = "every resample gives the same value, so resampling shows no uncertainty"
    elif len(defined) < len(draws):
        result.reason = f"{len(draws) - len(defined)} of {len(draws)} resamples were constant and are left out"
    return result


def t_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Student's interval of the mean of one value a seed; null, with the reason, for fewer than three."""
    n = len(values)
    if n < 3:
        count = "one seed" if n == 1 else f"{n} seeds"
        return Interval(level=level, n=n, unit="seed", method="none", reason=f"{count}: an interval needs at least 3")
    error = float(stats.sem(values))
    if error == 0:
        return Interval(level=level, n=n, unit="seed", method="none", reason=f"all {n} seeds give the same value")
    low, high = stats.t.interval(level, n - 1, loc=float(np.mean(values)), scale=error)
    return Interval(low=float(low), high=float(high), level=level, n=n, unit="seed", method="Student's t")


def resample_counts(settings: AnalysisSettings, n: int, *names: str, runs: int | None = None) -> Floats:
    """How often each of ``n`` units occurs in each resample: (resamples, n), for statistics that share resamples."""
    if n < 2:
        return np.ones((0, n))

    def counts(indices: NDArray[np.intp], axis: int) -> Floats:
        rows = np.atleast_2d(indices)
        flat = np.arange(len(rows))[:, None] * n + rows
        return np.bincount(flat.ravel(), minlength=len(rows) * n).reshape(len(rows), n).T.astype(np.float64)

    return bootstrap((np.arange(n),), counts, settings, *names, runs=runs).T


def resampled_ranks(values: Floats, counts: Floats) -> Floats:
    """Mean ranks of the n ``values`` in resamples that hold them ``counts`` (resamples, n) times.

    A running sum over the values in order gives them, so that no resample is sorted: ``scipy.stats.rankdata`` of each
    resample gives the same ranks and takes several times as long.
    """
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    new = np.r_[True, ordered[1:] != ordered[:-1]]
    held = counts[:, order]
    if not new.all():
        held = np.add.reduceat(held, np.flatnonzero(new), axis=1)
    ranks = np.cumsum(held, axis=1)
    ranks -= held / 2 - 0.5
    place = np.empty(len(values), dtype=np.intp)
    place[order] = np.cumsum(new) - 1
    return np.asarray(ranks[:, place], dtype=np.float64)


def rank_correlation_draws(first: Floats, second: Floats, counts: Floats) -> Floats:
    """Spearman's rho in each resample from the :func:`resampled_ranks` of both sides; NaN where one is constant."""
    middle = (counts.sum(axis=1, keepdims=True) + 1) / 2
    a, b = first - middle, second - middle
    weighted = counts * a
    top = np.einsum("ij,ij->i", weighted, b)
    spread = np.einsum("ij,ij->i", weighted, a) * np.einsum("ij,ij,ij->i", counts, b, b)
    return np.divide(top, np.sqrt(spread), out=np.full(len(top), np.nan), where=spread > 0)


def roc_area_draws(score: Floats, damaged: NDArray[np.bool_], counts: Floats) -> Floats:
    """ROC areas of ``score`` (runs,) in resamples, from the ranks of the damaged (Mann and Whitney, 1947).

    NaN where a resample has one class only. ``sklearn.metrics.roc_auc_score`` of each resample gives the same in a
    thousand times as long.
    """
    drawn = counts[:, damaged]
    positive = drawn.sum(axis=1)
    negative = counts.sum(axis=1) - positive
    ranks = np.einsum("ij,ij->i", drawn, resampled_ranks(score, counts)[:, damaged])
    pairs = positive * negative
    above = ranks - positive * (positive + 1) / 2
    return np.divide(above, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)
