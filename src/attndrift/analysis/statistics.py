"""Tests, effect sizes and bootstrap intervals that refuse to return a number that means nothing.

Every function takes plain float64 arrays without nulls. Where a statistic is undefined (too few
values, a constant column, only zero differences) it is None and ``reason`` says why.
"""

from __future__ import annotations

import itertools
import math
import warnings
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from attndrift.analysis.result import Correlation, Difference, Interval, Level, Test, number
from attndrift.analysis.settings import AnalysisSettings

Floats = NDArray[np.float64]

MINIMUM_PAIRS = 3
_EXACT_SPEARMAN = 8
_EXACT_WILCOXON = 13
_RANKED_ANEW = 500
_ELEMENTS = 1_000_000


def generator(settings: AnalysisSettings, *names: str) -> np.random.Generator:
    """A generator for one named statistic: what else is computed does not change its draws."""
    return np.random.default_rng([settings.bootstrap_seed, zlib.crc32("|".join(names).encode())])


def is_constant(values: Floats) -> bool:
    """Whether the spread of ``values`` is nothing but rounding."""
    if len(values) == 0:
        return True
    spread = float(np.ptp(values))
    return spread <= 1e-12 * max(float(np.max(np.abs(values))), 1e-300)


def sample_sd(values: Floats) -> float | None:
    """Sample standard deviation (n - 1); None for fewer than two values, exactly 0 for equal ones."""
    if len(values) < 2:
        return None
    return 0.0 if is_constant(values) else float(np.std(values, ddof=1))


def _quiet(function: Any, *arguments: Any, **options: Any) -> Any:
    # scipy warns where ties or tiny samples make it switch method; what was used is reported by `method`.
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return function(*arguments, **options)


def _undefined(x: Floats, y: Floats, names: tuple[str, str]) -> str | None:
    if len(x) < MINIMUM_PAIRS:
        return f"n = {len(x)}: a correlation needs at least {MINIMUM_PAIRS} points"
    for values, name in zip((x, y), names, strict=True):
        if is_constant(values):
            return f"{name} is constant"
    return None


def pearson(x: Floats, y: Floats, names: tuple[str, str] = ("x", "y")) -> Test:
    """Pearson's r with the t-based p value."""
    reason = _undefined(x, y, names)
    if reason:
        return Test(name="Pearson r", n=len(x), reason=reason)
    result = _quiet(stats.pearsonr, x, y)
    r, p = number(result.statistic), number(result.pvalue)
    if r is not None and abs(r) > 1 - 1e-12:
        return Test(name="Pearson r", statistic=r, n=len(x), reason="the points lie on a line: no p value")
    return Test(name="Pearson r", statistic=r, p=p, n=len(x), method="t distribution")


@cache
def _orders(n: int) -> NDArray[np.intp]:
    return np.array(list(itertools.permutations(range(n))), dtype=np.intp)


def spearman(x: Floats, y: Floats, names: tuple[str, str] = ("x", "y"), *, exact_to: int = _EXACT_SPEARMAN) -> Test:
    """Spearman's rho; p from all permutations up to n = 8, from t above it.

    The t approximation gives p near 0 for any perfect order, which three points reach by chance once
    in three times; the exact value is 2/n! without ties. Above n = 8 a perfect order gets its share of
    all permutations.
    """
    reason = _undefined(x, y, names)
    if reason:
        return Test(name="Spearman rho", n=len(x), reason=reason)
    first, second = stats.rankdata(x), stats.rankdata(y)
    first, second = first - first.mean(), second - second.mean()
    scale = math.sqrt(float(first @ first) * float(second @ second))
    rho = max(-1.0, min(1.0, float(first @ second) / scale))
    n = len(x)
    if n <= exact_to:
        every = second[_orders(n)] @ first / scale
        p = float(np.mean(np.abs(every) >= abs(rho) - 1e-9))
        return Test(name="Spearman rho", statistic=rho, p=p, n=n, method="all permutations")
    if abs(rho) > 1 - 1e-12:
        # Permutations that keep every value with its equals, in one order or the other.
        same = sum(math.lgamma(count + 1) for count in np.unique(second, return_counts=True)[1])
        p = min(1.0, 2 * math.exp(same - math.lgamma(n + 1)))
        return Test(name="Spearman rho", statistic=rho, p=p, n=n, method="count of permutations")
    t = rho * math.sqrt((n - 2) / (1 - rho * rho))
    return Test(
        name="Spearman rho",
        statistic=rho,
        p=float(2 * stats.t.sf(abs(t), n - 2)),
        n=n,
        method="t distribution",
    )


def difference(level: Level, first: Floats | None, second: Floats | None, values: Floats) -> Difference:
    """Describe and test paired differences ``values`` (= first - second), or changes against zero.

    With ``first`` and ``second`` the two unpaired tests and Cohen's d are given too.
    """
    n = len(values)
    result = Difference(
        level=level,
        n=n,
        mean=number(np.mean(values)) if n else None,
        sd=sample_sd(values),
        below_zero=int(np.sum(values < 0)),
        above_zero=int(np.sum(values > 0)),
    )
    paired = first is not None and second is not None
    if n < MINIMUM_PAIRS:
        result.reason = f"n = {n} {level}: a test needs at least {MINIMUM_PAIRS}"
    result.tests = [_t_test(values, paired), _wilcoxon(values)]
    if first is not None and second is not None:
        result.tests += [_welch(first, second), _mann_whitney(first, second)]
        spread = _pooled_sd(first, second)
        if spread and result.mean is not None:
            result.cohen_d = result.mean / spread
    if result.sd and result.mean is not None:
        result.d_z = result.mean / result.sd
    elif n >= MINIMUM_PAIRS and result.sd == 0:
        result.reason = "all differences are equal: no effect size in units of their spread"
    return result


def _pooled_sd(first: Floats, second: Floats) -> float | None:
    one, two = sample_sd(first), sample_sd(second)
    if one is None or two is None:
        return None
    n, m = len(first), len(second)
    return math.sqrt(((n - 1) * one * one + (m - 1) * two * two) / (n + m - 2)) or None


def _few(n: int) -> str | None:
    return f"n = {n}: needs at least {MINIMUM_PAIRS}" if n < MINIMUM_PAIRS else None


def _t_test(values: Floats, paired: bool) -> Test:
    name = "paired t" if paired else "one-sample t"
    reason = _few(len(values)) or ("all differences are equal" if is_constant(values) else None)
    if reason:
        return Test(name=name, n=len(values), reason=reason)
    result = _quiet(stats.ttest_1samp, values, 0.0)
    return Test(name=name, statistic=number(result.statistic), p=number(result.pvalue), n=len(values))


def _wilcoxon(values: Floats) -> Test:
    n = len(values)
    nonzero = int(np.count_nonzero(values))
    reason = _few(n) or ("all differences are zero" if nonzero == 0 else None)
    if reason:
        return Test(name="Wilcoxon", n=n, reason=reason)
    statistic, p = _signed_ranks(values[values != 0])
    note = f"p cannot fall below {2 / 2**nonzero:.3g} with {nonzero} non-zero differences" if nonzero < 6 else None
    return Test(name="Wilcoxon", statistic=statistic, p=p, n=n, reason=note)


@cache
def _signs(n: int) -> Floats:
    return (np.arange(2**n)[:, None] >> np.arange(n) & 1).astype(np.float64)


def _signed_ranks(values: Floats) -> tuple[float | None, float | None]:
    """Wilcoxon's statistic (the smaller rank sum) and p of non-zero differences: exact up to 13, ties included.

    scipy's own exact test for ties tries the same sign patterns one by one, hundreds of times slower.
    """
    if len(values) > _EXACT_WILCOXON:
        result = _quiet(stats.wilcoxon, values)
        return number(result.statistic), number(result.pvalue)
    ranks = stats.rankdata(np.abs(values))
    total = float(ranks.sum())
    above = float(ranks[values > 0].sum())
    every = _signs(len(values)) @ ranks
    extreme = np.abs(every - total / 2) >= abs(above - total / 2) - 1e-9
    return min(above, total - above), float(np.mean(extreme))


def _welch(first: Floats, second: Floats) -> Test:
    n = len(first) + len(second)
    reason = _few(min(len(first), len(second)))
    if not reason and is_constant(first) and is_constant(second):
        reason = "both sets are constant"
    if reason:
        return Test(name="Welch t", n=n, reason=reason)
    result = _quiet(stats.ttest_ind, first, second, equal_var=False)
    return Test(name="Welch t", statistic=number(result.statistic), p=number(result.pvalue), n=n)


def _mann_whitney(first: Floats, second: Floats) -> Test:
    n = len(first) + len(second)
    reason = _few(min(len(first), len(second)))
    if not reason and is_constant(np.concatenate([first, second])):
        reason = "all values are equal"
    if reason:
        return Test(name="Mann-Whitney U", n=n, reason=reason)
    result = _quiet(stats.mannwhitneyu, first, second, alternative="two-sided")
    return Test(name="Mann-Whitney U", statistic=number(result.statistic), p=number(result.pvalue), n=n)


def resamples(settings: AnalysisSettings, n: int, width: int = 1) -> int:
    """How many resamples of ``n`` units are drawn: fewer where the units are very many, never under 200."""
    return max(200, min(settings.bootstrap_resamples, _ELEMENTS // max(n * width, 1)))


def draw(settings: AnalysisSettings, n: int, *names: str, width: int = 1) -> NDArray[np.intp]:
    """Indices of bootstrap resamples, shape (resamples, n)."""
    return generator(settings, *names).integers(0, n, (resamples(settings, n, width), n))


def interval_of(
    draws: Floats, settings: AnalysisSettings, n: int, *, minimum: int = 3, unit: str = "configuration"
) -> Interval:
    """The percentile interval of bootstrap ``draws`` (NaN: a resample in which it is undefined)."""
    result = Interval(level=settings.level, n=n, unit=unit)
    if n < minimum:
        result.reason = f"{n} {unit}{'' if n == 1 else 's'}: an interval needs at least {minimum}"
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


def cluster_means(sums: Floats, counts: Floats, indices: NDArray[np.intp]) -> Floats:
    """Weighted means over resampled configurations; ``sums`` and ``counts`` (weights) are (configurations, measures).

    Returns (resamples, measures), NaN where a resample holds no value.
    """
    weights = drawn_counts(indices, sums.shape[0])
    total, count = weights @ sums, weights @ counts
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def rowwise_correlation(x: Floats, y: Floats) -> Floats:
    """Pearson correlation along axis 1 of x (B, n, 1 or M) and y (B, n, M): (B, M); NaN where constant."""
    a = x - x.mean(axis=1, keepdims=True)
    b = y - y.mean(axis=1, keepdims=True)
    top = (a * b).sum(axis=1)
    aa, bb = (a * a).sum(axis=1), (b * b).sum(axis=1)
    # Centred constants leave rounding behind, which would correlate with anything.
    flat = (np.ptp(x, axis=1) == 0) | (np.ptp(y, axis=1) == 0)
    bottom = np.sqrt(aa * bb)
    return np.divide(top, bottom, out=np.full(top.shape, np.nan), where=(bottom > 0) & ~flat)


def correlate(
    level: Level,
    x: Floats,
    y: Floats,
    names: tuple[str, str],
    settings: AnalysisSettings,
    *,
    bootstrap: tuple[str, ...] | None = None,
) -> Correlation:
    """Pearson and Spearman; with ``bootstrap`` (names of the draw) intervals over the points, configurations."""
    result = Correlation(
        level=level,
        n=len(x),
        pearson=pearson(x, y, names),
        spearman=spearman(x, y, names),
        descriptive=level == "cells" or len(x) < settings.min_configurations,
    )
    if bootstrap is not None:
        n = len(x)
        if result.pearson.statistic is None:
            blank = Interval(level=settings.level, n=n, reason=result.pearson.reason)
            result.pearson_interval = result.spearman_interval = blank
            return result
        indices = draw(settings, n, *bootstrap)
        a, b = x[indices], y[indices]
        result.pearson_interval = interval_of(
            rowwise_correlation(a[..., None], b[..., None])[:, 0], settings, n, minimum=4
        )
        result.spearman_interval = interval_of(_resampled_spearman(x, y, indices), settings, n, minimum=4)
    return result


def spearman_interval(
    x: Floats, y: Floats, settings: AnalysisSettings, *names: str, drawn: Callable[[], Floats] | None = None
) -> Interval:
    """Bootstrap interval of Spearman's rho over configurations; ranks are taken anew in every resample.

    Above 500 configurations the ranks of the whole sample are kept, which changes nothing visible there
    and saves sorting every resample; ``drawn`` then gives how often each configuration was drawn, (resamples, n),
    where several intervals share their resamples.
    """
    n = len(x)
    if n <= _RANKED_ANEW:
        return interval_of(_resampled_spearman(x, y, draw(settings, n, *names)), settings, n, minimum=4)
    a, b = stats.rankdata(x), stats.rankdata(y)
    a, b = a - a.mean(), b - b.mean()
    weights = drawn() if drawn is not None else drawn_counts(draw(settings, n, *names), n)
    means = weights @ np.column_stack([a, b, a * a, b * b, a * b]) / n
    covariance = means[:, 4] - means[:, 0] * means[:, 1]
    spread = (means[:, 2] - means[:, 0] ** 2) * (means[:, 3] - means[:, 1] ** 2)
    draws = np.divide(covariance, np.sqrt(spread), out=np.full(len(spread), np.nan), where=spread > 0)
    result = interval_of(draws, settings, n, minimum=4)
    result.method = "percentile bootstrap, ranks of the whole sample"
    return result


def _resampled_spearman(x: Floats, y: Floats, indices: NDArray[np.intp]) -> Floats:
    """Spearman's rho in each resample (resamples, n) of the points, ranks taken anew; NaN where one is constant.

    The ranks follow from how often each point was drawn, by a running sum over the points in order, so that no
    resample has to be sorted.
    """
    counts = drawn_counts(indices, len(x))
    middle = (indices.shape[1] + 1) / 2
    a, b = (_resampled_ranks(values, counts) - middle for values in (x, y))
    weighted = counts * a
    top = np.einsum("ij,ij->i", weighted, b)
    spread = np.einsum("ij,ij->i", weighted, a) * np.einsum("ij,ij,ij->i", counts, b, b)
    return np.divide(top, np.sqrt(spread), out=np.full(len(top), np.nan), where=spread > 0)


def _resampled_ranks(values: Floats, counts: Floats) -> Floats:
    """Mean rank of each of the n ``values`` in resamples that draw it ``counts`` (resamples, n) times."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    new = np.r_[True, ordered[1:] != ordered[:-1]]
    drawn = counts[:, order]
    if not new.all():
        drawn = np.add.reduceat(drawn, np.flatnonzero(new), axis=1)
    ranks = np.cumsum(drawn, axis=1)
    ranks -= drawn / 2 - 0.5
    place = np.empty(len(values), dtype=np.intp)
    place[order] = np.cumsum(new) - 1
    return ranks[:, place]


def drawn_counts(indices: NDArray[np.intp], n: int) -> Floats:
    """How often each of ``n`` units occurs in each resample: (resamples, n)."""
    rows = np.repeat(np.arange(len(indices)), indices.shape[1])
    counts = np.bincount(rows * n + indices.ravel(), minlength=len(indices) * n)
    return counts.reshape(len(indices), n).astype(np.float64)


def roc_auc(score: Floats, damaged: NDArray[np.bool_]) -> float | None:
    """Chance that a damaged run scores higher than another, ties half; None where one class is empty."""
    positive, negative = int(damaged.sum()), int((~damaged).sum())
    if not positive or not negative:
        return None
    ranks = stats.rankdata(score)
    return (float(ranks[damaged].sum()) - positive * (positive + 1) / 2) / (positive * negative)


def roc_auc_draws(score: Floats, damaged: NDArray[np.bool_], weights: Floats) -> Floats:
    """ROC areas of ``score`` (runs,) under run weights (resamples, runs): (resamples,), ties half (Mann and Whitney, 1947).

    NaN where a resample has one class only.
    """
    positive, negative = np.flatnonzero(damaged), np.flatnonzero(~damaged)
    negative = negative[np.argsort(score[negative], kind="stable")]
    # running[:, k]: the weight of the k lowest undamaged runs.
    running = np.zeros((len(weights), len(negative) + 1))
    np.cumsum(weights[:, negative], axis=1, out=running[:, 1:])
    drawn = weights[:, positive]
    below = np.searchsorted(score[negative], score[positive], side="left")
    upto = np.searchsorted(score[negative], score[positive], side="right")
    top = np.einsum("ij,ij->i", drawn, running[:, below])
    if (below == upto).all():
        top = 2 * top
    else:
        top += np.einsum("ij,ij->i", drawn, running[:, upto])
    bottom = 2 * drawn.sum(axis=1) * running[:, -1]
    return np.divide(top, bottom, out=np.full(len(top), np.nan), where=bottom > 0)


def repeated_measures_anova(values: Floats) -> dict[str, float]:
    """One-way repeated-measures ANOVA of ``values`` (subjects, conditions); Greenhouse-Geisser beside it.

    Equals ``statsmodels.stats.anova.AnovaRM``, in closed form. Raises ValueError, saying why, where
    there are fewer than three subjects or nothing varies but the subjects.
    """
    n, k = values.shape
    if n < MINIMUM_PAIRS:
        raise ValueError(f"n = {n}: needs at least {MINIMUM_PAIRS} subjects")
    grand = values.mean()
    condition = values.mean(axis=0)
    residual = values - values.mean(axis=1, keepdims=True) - condition + grand
    between = n * float(((condition - grand) ** 2).sum())
    error = float((residual**2).sum())
    if error <= 1e-20 * max(float((values**2).sum()), 1e-300):
        raise ValueError("the subjects do not differ in how the groups differ (no error variance)")
    df, df_error = k - 1, (k - 1) * (n - 1)
    f = (between / df) / (error / df_error)
    covariance = np.cov(values, rowvar=False)
    centred = covariance - covariance.mean(axis=0) - covariance.mean(axis=1)[:, None] + covariance.mean()
    epsilon = float(np.trace(centred) ** 2 / (df * (centred**2).sum()))
    epsilon = min(1.0, max(1.0 / df, epsilon))
    return {
        "f": f,
        "df": float(df),
        "df_error": float(df_error),
        "p": float(stats.f.sf(f, df, df_error)),
        "epsilon": epsilon,
        "p_greenhouse_geisser": float(stats.f.sf(f, df * epsilon, df_error * epsilon)),
        "partial_eta_squared": between / (between + error),
    }
