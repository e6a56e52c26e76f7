"""The statistics against plain numpy, against other implementations and against closed forms."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score
from statsmodels.stats.anova import AnovaRM
from statsmodels.stats.multitest import multipletests

from attndrift.analysis import AnalysisSettings
from attndrift.analysis import bootstrap as resampling
from attndrift.analysis import hypothesis_tests as own
from attndrift.analysis.result import Test

SETTINGS = AnalysisSettings(bootstrap_resamples=400)
floats = st.floats(-100, 100).map(lambda v: round(v, 2))


def ranks(values: np.ndarray) -> np.ndarray:
    return np.array([np.sum(values < v) + (np.sum(values == v) + 1) / 2 for v in values])


def slow_pearson(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(), y - y.mean()
    return float(np.sum(x * y) / math.sqrt(np.sum(x * x) * np.sum(y * y)))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(floats, floats), min_size=3, max_size=8))
def test_spearman_is_pearson_of_ranks_with_exact_p(pairs: list[tuple[float, float]]) -> None:
    x, y = (np.array(column) for column in zip(*pairs, strict=True))
    found = own.spearman(x, y)
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert found.statistic is None
        assert found.reason is not None
        assert "constant" in found.reason
        return
    rho = slow_pearson(ranks(x), ranks(y))
    assert found.statistic == pytest.approx(rho, abs=1e-12)
    a, b = ranks(x) - ranks(x).mean(), ranks(y) - ranks(y).mean()
    orders = np.array(list(itertools.permutations(range(len(x)))))
    every = b[orders] @ a / math.sqrt(np.sum(a * a) * np.sum(b * b))
    assert found.p == pytest.approx(np.mean(np.abs(every) >= abs(rho) - 1e-9))


@pytest.mark.parametrize("n", [9, 12, 30])
def test_spearman_above_eight_points_is_scipys(n: int) -> None:
    generator = np.random.default_rng(n)
    x, y = np.repeat(np.arange(n / 3), 3)[:n], generator.standard_normal(n)
    expected = stats.spearmanr(x, y)
    found = own.spearman(x, y)
    assert found.statistic == pytest.approx(expected.statistic)
    assert found.p == pytest.approx(expected.pvalue)


def test_a_perfect_order_gets_no_p_of_zero() -> None:
    assert own.spearman(np.arange(5.0), np.arange(5.0)).p == pytest.approx(2 / math.factorial(5))
    assert own.spearman(np.arange(10.0), np.arange(10.0)).p == pytest.approx(2 / math.factorial(10))
    tied = np.repeat(np.arange(3.0), 3)
    assert own.spearman(tied, tied).p == pytest.approx(2 * 6**3 / math.factorial(9))
    line = own.pearson(np.arange(4.0), 2 * np.arange(4.0) + 1)
    assert line.statistic == pytest.approx(1)
    assert line.p is None
    assert line.reason is not None


def test_pearson_is_the_textbook_formula() -> None:
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((2, 11))
    found = own.pearson(x, y)
    r = slow_pearson(x, y)
    assert found.statistic == pytest.approx(r)
    assert found.p == pytest.approx(2 * stats.t.sf(abs(r) * math.sqrt(9 / (1 - r * r)), 9))


def test_differences_are_the_textbook_formulas() -> None:
    generator = np.random.default_rng(1)
    first, second = generator.standard_normal(9), generator.standard_normal(9) + 0.7
    found = own.difference("cells", first, second, first - second)
    d = first - second
    sd = math.sqrt(np.sum((d - d.mean()) ** 2) / 8)
    assert found.mean == pytest.approx(d.mean())
    assert found.sd == pytest.approx(sd)
    assert found.d_z == pytest.approx(d.mean() / sd)
    pooled = math.sqrt((first.var(ddof=1) + second.var(ddof=1)) / 2)
    assert found.cohen_d == pytest.approx((first.mean() - second.mean()) / pooled)
    paired, wilcoxon, welch, mann_whitney = found.tests
    t = d.mean() / (sd / 3)
    assert paired.statistic == pytest.approx(t)
    assert paired.p == pytest.approx(2 * stats.t.sf(abs(t), 8))
    one, two = first.var(ddof=1) / 9, second.var(ddof=1) / 9
    t = (first.mean() - second.mean()) / math.sqrt(one + two)
    df = (one + two) ** 2 / (one**2 / 8 + two**2 / 8)
    assert welch.statistic == pytest.approx(t)
    assert welch.p == pytest.approx(2 * stats.t.sf(abs(t), df))
    assert mann_whitney.statistic == np.sum(first[:, None] > second[None, :])
    assert wilcoxon.p == pytest.approx(stats.wilcoxon(d).pvalue)
    assert (found.below_zero, found.above_zero) == (np.sum(d < 0), np.sum(d > 0))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-4, 4), min_size=3, max_size=8))
def test_wilcoxon_with_ties_and_zeros_tries_every_sign(values: list[int]) -> None:
    d = np.array(values, dtype=float)
    found = own.difference("cells", None, None, d).tests[1]
    d = d[d != 0]
    if not len(d):
        assert found.p is None
        assert found.reason is not None
        assert "zero" in found.reason
        return
    r = ranks(np.abs(d))
    above = float(np.sum(r[d > 0]))
    every = np.array([np.dot(signs, r) for signs in itertools.product((0, 1), repeat=len(d))])
    assert found.p == pytest.approx(np.mean(np.abs(every - r.sum() / 2) >= abs(above - r.sum() / 2) - 1e-9))
    assert found.statistic == min(above, float(r.sum()) - above)


@pytest.mark.parametrize("n", [8, 20, 60])
def test_wilcoxon_without_ties_is_scipys(n: int) -> None:
    d = np.random.default_rng(n).standard_normal(n) + 0.2
    found = own.difference("cells", None, None, d).tests[1]
    assert found.p == pytest.approx(stats.wilcoxon(d).pvalue)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 2.0]])
def test_too_few_differences_have_no_p(values: list[float]) -> None:
    d = np.array(values)
    found = own.difference("configurations", d, d * 0, d)
    assert found.n == len(values)
    assert found.reason is not None
    assert all(test.p is None and test.reason for test in found.tests)


def test_equal_differences_have_no_p_and_no_effect_size() -> None:
    d = np.full(5, 0.3)
    found = own.difference("cells", d + 1, np.ones(5), d)
    assert found.sd == 0
    assert found.d_z is None
    assert found.cohen_d is None
    assert found.reason is not None
    assert found.tests[0].p is None
    assert own.difference("cells", None, None, np.zeros(4)).tests[1].p is None


@pytest.mark.parametrize(("subjects", "conditions"), [(3, 3), (12, 3), (7, 4)])
def test_anova_is_statsmodels(subjects: int, conditions: int) -> None:
    values = np.random.default_rng(subjects).standard_normal((subjects, conditions)) + np.arange(conditions) / 2
    frame = pd.DataFrame(
        [(s, c, values[s, c]) for s in range(subjects) for c in range(conditions)], columns=["s", "c", "v"]
    )
    table = AnovaRM(frame, "v", "s", within=["c"]).fit().anova_table
    found = own.repeated_measures_anova(values)
    assert found["f"] == pytest.approx(table["F Value"].iloc[0])
    assert found["p"] == pytest.approx(table["Pr > F"].iloc[0])
    assert (found["df"], found["df_error"]) == (table["Num DF"].iloc[0], table["Den DF"].iloc[0])
    assert 1 / (conditions - 1) <= found["epsilon"] <= 1
    assert found["p_greenhouse_geisser"] >= found["p"] or found["f"] < 1


def test_anova_of_two_conditions_is_the_squared_paired_t() -> None:
    values = np.random.default_rng(3).standard_normal((6, 2))
    found = own.repeated_measures_anova(values)
    t = stats.ttest_rel(values[:, 0], values[:, 1])
    assert found["f"] == pytest.approx(t.statistic**2)
    assert found["p"] == pytest.approx(t.pvalue)
    assert found["epsilon"] == pytest.approx(1)


def test_anova_names_what_makes_it_impossible() -> None:
    with pytest.raises(ValueError, match="n = 2"):
        own.repeated_measures_anova(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="no error variance"):
        own.repeated_measures_anova(np.tile([1.0, 2.0, 3.0], (5, 1)))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=12))
def test_roc_areas_of_resamples_are_sklearns(items: list[tuple[int, bool]]) -> None:
    score = np.array([float(item[0]) for item in items])
    damaged = np.array([item[1] for item in items])
    counts = np.random.default_rng(0).integers(0, 3, (5, len(score))).astype(float)
    counts[0] = 1
    for row, area in zip(counts, resampling.roc_area_draws(score, damaged, counts), strict=True):
        repeated = np.repeat(np.arange(len(score)), row.astype(int))
        if len(set(damaged[repeated])) < 2:
            assert np.isnan(area)
        else:
            assert area == pytest.approx(roc_auc_score(damaged[repeated], score[repeated]))


def mean_draws(values: np.ndarray, settings: AnalysisSettings, *names: str) -> np.ndarray:
    return resampling.bootstrap((values,), np.nanmean, settings, *names)


def test_bootstrap_resamples_the_units_of_the_last_axis_together() -> None:
    """Three configurations of two measures, the second one not measured in the third configuration."""
    values = np.array([[1.0, 10.0, 100.0], [2.0, 20.0, np.nan]])
    draws = mean_draws(values, SETTINGS, "test")
    assert draws.shape == (2, SETTINGS.bootstrap_resamples)
    picks = [np.array(pick) for pick in itertools.product(range(3), repeat=3)]
    with np.errstate(invalid="ignore"):
        pairs = {tuple(np.round([values[0, p].mean(), float(np.nansum(values[1, p]))], 6)) for p in picks}
    for first, second in zip(*draws, strict=True):
        near = [pair for pair in pairs if pair[0] == pytest.approx(first)]
        assert near
        assert np.isnan(second) == all(pair[1] == 0 for pair in near)
    found = resampling.percentile_interval(draws[0], SETTINGS, 3)
    assert found.unit == "configuration"
    assert (found.low, found.high) == tuple(np.percentile(draws[0], [2.5, 97.5]))


def test_every_resample_draws_as_many_units_as_there_are() -> None:
    counts = resampling.resample_counts(SETTINGS, 7, "test")
    assert counts.shape == (400, 7)
    assert set(counts.sum(axis=1)) == {7.0}
    # Each unit is drawn once on average; 400 resamples give the mean to 0.05.
    assert counts.mean(axis=0) == pytest.approx(np.ones(7), abs=0.2)


def test_equal_seeds_and_names_give_equal_draws() -> None:
    values = np.arange(5.0)
    assert np.array_equal(mean_draws(values, SETTINGS, "a", "b"), mean_draws(values, SETTINGS, "a", "b"))
    assert not np.array_equal(mean_draws(values, SETTINGS, "a", "b"), mean_draws(values, SETTINGS, "a", "c"))
    other = AnalysisSettings(bootstrap_resamples=400, bootstrap_seed=1)
    assert not np.array_equal(mean_draws(values, SETTINGS, "a"), mean_draws(values, other, "a"))


def test_interval_says_why_there_is_none() -> None:
    few = resampling.percentile_interval(np.ones(10), SETTINGS, 2)
    assert few.low is None
    assert few.reason is not None
    assert "needs at least" in few.reason
    undefined = resampling.percentile_interval(np.full(10, np.nan), SETTINGS, 5)
    assert undefined.low is None
    same = resampling.percentile_interval(np.ones(10), SETTINGS, 5)
    assert same.reason is not None
    assert "same value" in same.reason


def rank_correlations(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> np.ndarray:
    ranks = (resampling.resampled_ranks(values, counts) for values in (x, y))
    return resampling.rank_correlation_draws(*ranks, counts)


def test_the_interval_of_rank_correlation_is_scipys() -> None:
    """scipy's bootstrap, which ranks every resample by sorting it, gives the same limits to Monte Carlo error."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(40)
    y = x + rng.standard_normal(40)
    chosen = AnalysisSettings(bootstrap_resamples=4000)
    draws = rank_correlations(x, y, resampling.resample_counts(chosen, 40, "a"))
    found = resampling.percentile_interval(draws, chosen, 40)
    theirs = stats.bootstrap(
        (x, y),
        lambda a, b: stats.spearmanr(a, b).statistic,
        paired=True,
        vectorized=False,
        method="percentile",
        n_resamples=1000,
        rng=rng,
    ).confidence_interval
    assert found.low == pytest.approx(theirs.low, abs=0.05)
    assert found.high == pytest.approx(theirs.high, abs=0.05)


def test_holm_is_the_step_down_rule() -> None:
    p = [0.01, 0.04, 0.03, 0.005]
    tests = [Test(name="t", p=value) for value in p]
    nothing = Test(name="t", reason="n = 2")
    own.correct_family([*tests, nothing], "four")
    order = np.argsort(p)
    expected = np.empty(4)
    running = 0.0
    for place, index in enumerate(order):
        running = max(running, min(1.0, (4 - place) * p[index]))
        expected[index] = running
    assert [test.p_holm for test in tests] == pytest.approx(expected.tolist())
    assert [test.p_holm for test in tests] == pytest.approx(multipletests(p, method="holm")[1].tolist())
    assert {test.family_size for test in tests} == {4}
    assert nothing.p_holm is None
    assert nothing.family is None


@pytest.mark.parametrize("ties", [False, True])
def test_ranks_of_resamples_are_those_of_sorting_each(ties: bool) -> None:
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=12), rng.normal(size=12)
    if ties:
        x, y = np.round(x), np.round(2 * y)
    indices = rng.integers(0, 12, (300, 12))
    # One resample of a single point is constant.
    indices[0] = 3
    counts = np.stack([np.bincount(row, minlength=12) for row in indices]).astype(float)
    found = rank_correlations(x, y, counts)
    wanted = [stats.pearsonr(stats.rankdata(x[row]), stats.rankdata(y[row])).statistic for row in indices[1:]]
    assert np.isnan(found[0])
    np.testing.assert_allclose(found[1:], wanted, rtol=0, atol=1e-12)
