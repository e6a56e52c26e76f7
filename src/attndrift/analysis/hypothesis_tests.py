"""Tests and effect sizes that refuse to return a number that means nothing.

Every function takes plain float64 arrays without nulls. Where a statistic is undefined (too few
values, a constant column, only zero differences) it is None and ``reason`` says why.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.linalg import helmert

from attndrift.analysis.numbers import Floats, number
from attndrift.analysis.result import Correlation, Difference, Level, Test
from attndrift.analysis.settings import AnalysisSettings
from attndrift.analysis.warnings import quiet

MINIMUM_PAIRS = 3
_EXACT_SPEARMAN = 8
_EXACT_WILCOXON = 13


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
    result = quiet(stats.pearsonr, x, y)
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
    all permutations. ``scipy.stats.permutation_test`` gives the same p for small n in a hundred times as long: it
    lists the permutations anew at each call.
    """
    reason = _undefined(x, y, names)
    if reason:
        return Test(name="Spearman rho", n=len(x), reason=reason)
    n = len(x)
    result = quiet(stats.spearmanr, x, y)
    rho, p = max(-1.0, min(1.0, float(result.statistic))), float(result.pvalue)
    test = Test(name="Spearman rho", statistic=rho, p=p, n=n, method="t distribution")
    if n <= exact_to:
        first, second = (stats.zscore(stats.rankdata(values)) for values in (x, y))
        every = second[_orders(n)] @ first / n
        test.p, test.method = float(np.mean(np.abs(every) >= abs(rho) - 1e-9)), "all permutations"
    elif abs(rho) > 1 - 1e-12:
        # Permutations that keep every value with its equals, in one order or the other.
        same = sum(math.lgamma(count + 1) for count in np.unique(y, return_counts=True)[1])
        test.p, test.method = min(1.0, 2 * math.exp(same - math.lgamma(n + 1))), "count of permutations"
    return test


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
    result = quiet(stats.ttest_1samp, values, 0.0)
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

    scipy's exact test for ties tries the same sign patterns one by one, hundreds of times slower.
    """
    if len(values) > _EXACT_WILCOXON:
        result = quiet(stats.wilcoxon, values)
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
    result = quiet(stats.ttest_ind, first, second, equal_var=False)
    return Test(name="Welch t", statistic=number(result.statistic), p=number(result.pvalue), n=n)


def _mann_whitney(first: Floats, second: Floats) -> Test:
    n = len(first) + len(second)
    reason = _few(min(len(first), len(second)))
    if not reason and is_constant(np.concatenate([first, second])):
        reason = "all values are equal"
    if reason:
        return Test(name="Mann-Whitney U", n=n, reason=reason)
    result = quiet(stats.mannwhitneyu, first, second, alternative="two-sided")
    return Test(name="Mann-Whitney U", statistic=number(result.statistic), p=number(result.pvalue), n=n)


def correlate(level: Level, x: Floats, y: Floats, names: tuple[str, str], settings: AnalysisSettings) -> Correlation:
    """Pearson's and Spearman's correlation with their tests."""
    return Correlation(
        level=level,
        n=len(x),
        pearson=pearson(x, y, names),
        spearman=spearman(x, y, names),
        descriptive=level == "cells" or len(x) < settings.min_configurations,
    )


def repeated_measures_anova(values: Floats) -> dict[str, float]:
    """One-way repeated-measures ANOVA of ``values`` (subjects, conditions); Greenhouse-Geisser beside it.

    From the orthonormal contrasts of each subject (Maxwell and Delaney, ch. 13). ``statsmodels.stats.anova.AnovaRM``
    gives the same F and p, but no epsilon, and makes a column a subject, which a thousand subjects do not allow.
    Raises ValueError, saying why, where there are fewer than three subjects or nothing varies but the subjects.
    """
    n, k = values.shape
    if n < MINIMUM_PAIRS:
        raise ValueError(f"n = {n}: needs at least {MINIMUM_PAIRS} subjects")
    contrasts = values @ helmert(k).T
    covariance = np.atleast_2d(np.cov(contrasts, rowvar=False))
    between, error = n * float((contrasts.mean(axis=0) ** 2).sum()), (n - 1) * float(np.trace(covariance))
    if error <= 1e-20 * max(float((values**2).sum()), 1e-300):
        raise ValueError("the subjects do not differ in how the groups differ (no error variance)")
    df, df_error = k - 1, (k - 1) * (n - 1)
    f = (between / df) / (error / df_error)
    epsilon = float(np.trace(covariance) ** 2 / (df * (covariance**2).sum()))
    return {
        "f": f,
        "df": float(df),
        "df_error": float(df_error),
        "p": float(stats.f.sf(f, df, df_error)),
        "epsilon": epsilon,
        "p_greenhouse_geisser": float(stats.f.sf(f, df * epsilon, df_error * epsilon)),
        "partial_eta_squared": between / (between + error),
    }


def correct_family(tests: Iterable[Any], name: str) -> None:
    """Holm-correct the p values of ``tests`` (objects with ``p``) as one family; nulls are left out.

    Equals ``statsmodels.stats.multitest.multipletests(method="holm")``, which collects garbage at every call: a tenth
    of a second each, most of the time of a small analysis.
    """
    present = sorted((test for test in tests if test.p is not None), key=lambda test: test.p)
    running = 0.0
    for place, test in enumerate(present):
        running = max(running, min(1.0, (len(present) - place) * test.p))
        test.p_holm, test.family, test.family_size = float(running), name, len(present)
