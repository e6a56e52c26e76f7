"""The interval functions against other programs, published examples, and what must hold at the edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize, stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint
from statsmodels.stats.weightstats import ttost_ind, ttost_paired

from attndrift.analysis.intervals import (
    chosen_row,
    equivalence_p,
    holm,
    seeds_needed,
    spearman,
    spearman_limits,
    t_limits,
    t_p,
    t_row,
    welch,
)
from attndrift.retention.image_limits import newcombe_limits, paired_ratio_limits, tango_limits, wilson_limits

VALUES = np.array([3.1, 4.7, 2.2, 5.9, 4.4])


def test_intervals_of_seeds_are_those_of_other_programs() -> None:
    expected = stats.ttest_1samp(VALUES, 0.0)
    assert t_limits(VALUES, 0.9) == pytest.approx(tuple(expected.confidence_interval(0.9)))
    assert t_p(VALUES) == pytest.approx(expected.pvalue)
    assert equivalence_p(VALUES, 6.0) == pytest.approx(ttost_paired(VALUES, np.zeros(5), -6.0, 6.0)[0])
    other = np.array([1.0, 9.0, 4.0])
    expected = stats.ttest_ind(VALUES, other, equal_var=False)
    assert welch(VALUES, other, 0.95)[:3] == pytest.approx((*expected.confidence_interval(0.95), expected.pvalue))
    assert welch(VALUES, other, 0.95, 9.0)[3] == pytest.approx(ttost_ind(VALUES, other, -9.0, 9.0, usevar="unequal")[0])


def test_intervals_of_shares_are_those_of_other_programs() -> None:
    for count, n in ((0, 30), (3, 30), (30, 30), (412, 1000)):
        assert wilson_limits(count, n, 0.95) == pytest.approx(proportion_confint(count, n, 0.05, "wilson"))
    expected = confint_proportions_2indep(56, 70, 48, 80, method="newcomb", compare="diff")
    assert newcombe_limits(56, 70, 48, 80, 0.95) == pytest.approx(expected)


def test_paired_intervals_of_a_published_example() -> None:
    """Airway reactivity of 21 children: 1 both times, 1 before alone, 7 after alone (Fagerland et al. 2014, table 2)."""
    low, high = tango_limits(1, 7, 21, 0.95)
    assert (round(float(low), 3), round(float(high), 3)) == (-0.517, -0.026)
    low, high = paired_ratio_limits(1, 1, 7, 0.95)
    assert (round(float(low), 3), round(float(high), 3)) == (0.068, 0.923)


@pytest.mark.parametrize(("b", "c", "n"), [(12, 3, 80), (0, 9, 300), (40, 41, 1000), (500, 5, 1000)])
def test_tango_limits_solve_the_score_equation(b: int, c: int, n: int) -> None:
    """With the restricted maximum of the likelihood found by a search, not by the closed form."""
    for limit in tango_limits(b, c, n, 0.95):
        d = float(limit)

        def loss(share: float, d: float = d) -> float:
            shares = np.array([share + d, share, 1 - 2 * share - d])
            counts = np.array([b, c, n - b - c])
            return (
                math.inf
                if (shares[counts > 0] <= 0).any()
                else -float((counts * np.log(np.clip(shares, 1e-300, 1))).sum())
            )

        share = optimize.minimize_scalar(
            loss, bounds=(max(0, -d), (1 - d) / 2), method="bounded", options={"xatol": 1e-12}
        ).x
        assert abs(b - c - n * d) / math.sqrt(n * (2 * share + d * (1 - d))) == pytest.approx(1.96, abs=1e-3)


@pytest.mark.parametrize("n", [200, 640, 1000, 10_000])
def test_without_a_discordant_image_the_paired_interval_is_narrow(n: int) -> None:
    low, high = tango_limits(0, 0, n, 0.95)
    assert (-low, high) == pytest.approx([3.8415 / (n + 3.8415)] * 2, rel=1e-3)
    unpaired = newcombe_limits(n // 2, n, n // 2, n, 0.95)
    assert high < 0.25 * unpaired[1]
    ratio = paired_ratio_limits(n // 2, 0, 0, 0.95)
    assert 1 - 6 / n * 2 < ratio[0] < 1 < ratio[1] < 1 + 6 / n * 2.1


def test_a_share_of_none_has_no_ratio_and_nothing_raises() -> None:
    assert all(np.isnan(limit) for limit in paired_ratio_limits(0, 5, 0, 0.95))
    low, high = paired_ratio_limits(0, 0, 50, 0.95)
    assert 0 <= low < high < 0.15


def test_what_has_no_interval_says_why() -> None:
    assert t_row([1.0], 0.95)["reason"] == "1 seed: an interval needs 3"
    assert t_row([1.0, 2.0], 0.95)["reason"] == "2 seeds: an interval needs 3"
    assert t_row([0.1, 0.1, 0.1], 0.95)["reason"] == "all 3 seeds agree"
    assert t_row([0.1, 0.1, 0.1], 0.95)["sd"] == 0
    assert t_row([], 0.95)["mean"] is None
    known = t_row(VALUES, 0.95)
    assert known["reason"] is None
    assert known["low"] < known["mean"] < known["high"]
    assert np.isnan(t_p([1.0, 2.0]))
    assert np.isnan(equivalence_p([0.0, 0.0, 0.0], 1.0))
    assert np.isnan(spearman_limits(0.5, 9, 0.95)).all()
    assert np.isnan(spearman_limits(1.0, 30, 0.95)).all()


def test_a_chosen_setting_is_wider_where_others_might_have_been_chosen() -> None:
    clear = chosen_row(np.c_[VALUES, VALUES - 50], 0.95)
    close = chosen_row(np.c_[VALUES, VALUES[::-1] - 0.1], 0.95)
    assert (clear["chosen"], clear["contenders"]) == (0, 1)
    assert close["contenders"] == 2
    assert close["high"] - close["low"] > clear["high"] - clear["low"]


def test_ranks_and_families_are_those_of_other_programs() -> None:
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((2, 20))
    assert spearman(x, y) == pytest.approx(tuple(stats.spearmanr(x, y)))
    few = stats.permutation_test((x[:6],), lambda v: stats.spearmanr(v, y[:6]).statistic, permutation_type="pairings")
    assert spearman(x[:6], y[:6]) == pytest.approx((few.statistic, few.pvalue))
    assert spearman([1, 2, 3, 4], [5, 6, 7, 8]) == pytest.approx((1.0, 2 / 24))
    assert np.isnan(spearman([1, 2, 3], [4, 4, 4])).all()
    p = [0.01, 0.04, 0.03, 0.005, 0.5]
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])
    assert holm([0.04, np.nan])[0] == 0.04


def test_the_seeds_needed_are_those_of_another_program() -> None:
    for sd, difference in ((3.4, 2.0), (3.4, 5.0), (3.4, 10.0), (1.0, 2.0)):
        expected = math.ceil(TTestPower().solve_power(difference / sd, alpha=0.05, power=0.8))
        assert seeds_needed(sd, difference, alpha=0.05) == max(expected, 3)
    assert seeds_needed(100.0, 0.1, alpha=0.05) is None
