"""The numbers of the 39 reference records, computed anew from their JSON with pandas, scipy and statsmodels.

Nothing of the package computes the expected side: not its tables, not its statistics.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from reference_records import convert, read_records, reference_folder
from scipy import stats
from statsmodels.stats.multitest import multipletests

from attndrift.analysis import Analysis, analyze
from attndrift.analysis.result import Comparison

NAMES = {
    "full_ft": "full",
    "last_block": "last block + projection",
    "linear_probe": "linear probe",
    "lora_r8": "LoRA r=8",
    "lora_r8_frozen_proj": "LoRA r=8, frozen projection",
}
RETENTION = "transfer_cifar100_zero_shot_retention_pct"


@pytest.fixture(scope="module")
def records() -> pd.DataFrame:
    rows = []
    for record in read_records(reference_folder()):
        if "sweep" in record:
            continue
        final, first = record["final"], record["history"][0]
        rows.append(
            {
                "run_id": record["run_id"],
                "variant": NAMES[record["config"]["method"]],
                "rate": record["config"]["lr"],
                "seed": record["config"]["seed"],
                "best_val_accuracy": record["best_val_acc"],
                "test_accuracy": record["test_acc"],
                "entropy_change_pct": final["delta_entropy_pct"],
                "gini_change_pct": final["delta_gini_pct"],
                "cka_mean": final["cka_mean"],
                "embedding_drift": final["embedding_drift"],
                "weight_drift": final["weight_drift_rel"],
                RETENTION: 100 * record["transfer"]["cifar100"]["retention"],
                "early_cka_mean": first["cka_mean"],
                "early_embedding_drift": first["embedding_drift"],
                "early_entropy_change_pct": first["delta_entropy_pct"],
                "layers": final["delta_entropy_per_layer_pct"],
            }
        )
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def result() -> Analysis:
    return analyze(convert(read_records(reference_folder())))


def pair(result: Analysis, measure: str, first: str = "full", second: str = "LoRA r=8") -> Comparison:
    (found,) = [c for c in result.comparisons if (c.first, c.second, c.measure) == (first, second, measure)]
    return found


def cells(records: pd.DataFrame, measure: str) -> tuple[pd.Series, pd.Series]:
    keyed = records.set_index(["rate", "seed"]).sort_index()
    full, lora = (keyed[keyed["variant"] == name][measure] for name in ("full", "LoRA r=8"))
    assert full.index.equals(lora.index)
    return full, lora


@pytest.mark.parametrize("measure", ["entropy_change_pct", "gini_change_pct", "cka_mean", "test_accuracy", RETENTION])
@pytest.mark.parametrize("level", ["cells", "configurations"])
def test_four_tests_and_two_effect_sizes(records: pd.DataFrame, result: Analysis, measure: str, level: str) -> None:
    a, b = cells(records, measure)
    if level == "configurations":
        a, b = (values.groupby("rate").mean() for values in (a, b))
    d = a - b
    found = getattr(pair(result, measure), level)
    assert found.mean == pytest.approx(d.mean())
    assert found.d_z == pytest.approx(d.mean() / d.std())
    assert found.cohen_d == pytest.approx(d.mean() / math.sqrt((a.var() + b.var()) / 2))
    expected = {
        "paired t": stats.ttest_rel(a, b),
        "Wilcoxon": stats.wilcoxon(a, b),
        "Welch t": stats.ttest_ind(a, b, equal_var=False),
        "Mann-Whitney U": stats.mannwhitneyu(a, b),
    }
    for test in found.tests:
        assert test.statistic == pytest.approx(expected[test.name].statistic), test.name
        assert test.p == pytest.approx(expected[test.name].pvalue), test.name
        assert test.n == (len(d) if test.name in ("paired t", "Wilcoxon") else 2 * len(d))


def test_holm_over_each_family(result: Analysis) -> None:
    """Families are named; each is corrected by itself, as statsmodels does."""
    families: dict[str, list[Any]] = {}
    for c in result.comparisons:
        for part in (c.cells, c.configurations):
            for test in part.tests:
                if test.p is not None:
                    families.setdefault(str(test.family), []).append(test)
    for signal in result.signals:
        if signal.scope == "all runs" and signal.spearman_configurations.p is not None:
            families.setdefault(str(signal.spearman_configurations.family), []).append(signal.spearman_configurations)
    assert len(families) > 6
    for name, tests in families.items():
        corrected = multipletests([test.p for test in tests], method="holm")[1]
        assert [test.p_holm for test in tests] == pytest.approx(list(corrected)), name
        assert {test.family_size for test in tests} == {len(tests)}, name


def test_the_interval_resamples_the_four_configurations(records: pd.DataFrame, result: Analysis) -> None:
    """All 4^4 resamples of four configuration means can be listed; the percentile interval is near theirs."""
    a, b = cells(records, RETENTION)
    means = (a - b).groupby("rate").mean().to_numpy()
    every = [np.mean(chosen) for chosen in itertools.product(means, repeat=4)]
    low, high = np.percentile(every, [2.5, 97.5])
    found = pair(result, RETENTION).interval
    assert (found.n, found.unit, found.method) == (4, "configuration", "percentile bootstrap")
    assert found.low == pytest.approx(low, abs=0.15 * (high - low))
    assert found.high == pytest.approx(high, abs=0.15 * (high - low))


def groups_of(records: pd.DataFrame, column: str, absolute: bool) -> list[float]:
    rho = []
    for _, group in records.groupby("variant"):
        signal = group[column].abs() if absolute else group[column]
        if signal.nunique() > 1 and group[RETENTION].nunique() > 1:
            rho.append(float(stats.spearmanr(signal, group[RETENTION]).statistic))
    return rho


@pytest.mark.parametrize(
    ("signal", "when", "column", "sign"),
    [
        ("abs_entropy_change", "final", "entropy_change_pct", -1),
        ("entropy_change", "final", "entropy_change_pct", 1),
        ("cka_mean", "final", "cka_mean", 1),
        ("embedding_drift", "final", "embedding_drift", -1),
        ("cka_mean", "first epoch", "early_cka_mean", 1),
        ("embedding_drift", "first epoch", "early_embedding_drift", -1),
        ("abs_entropy_change", "first epoch", "early_entropy_change_pct", -1),
    ],
)
def test_signals(records: pd.DataFrame, result: Analysis, signal: str, when: str, column: str, sign: int) -> None:
    (found,) = [
        s
        for s in result.signals
        if (s.transfer_set, s.scope, s.when, s.signal) == ("cifar100", "all runs", when, signal)
    ]
    absolute = signal.startswith("abs_")
    values = records[column].abs() if absolute else records[column]
    kept = records[RETENTION]
    overall = stats.spearmanr(values, kept)
    assert found.spearman_runs.statistic == pytest.approx(overall.statistic)
    assert found.spearman_runs.p == pytest.approx(overall.pvalue)
    table = pd.DataFrame({"v": values, "k": kept}).groupby([records["variant"], records["rate"]]).mean().round(12)
    assert found.spearman_configurations.statistic == pytest.approx(stats.spearmanr(table["v"], table["k"]).statistic)
    rho = groups_of(records, column, absolute)
    assert found.n_groups == len(rho)
    assert found.within_mean == pytest.approx(np.mean(rho))
    assert found.within_mean_absolute == pytest.approx(np.mean(np.abs(rho)))
    damaged = kept < 50
    u = stats.mannwhitneyu(-sign * values[damaged], -sign * values[~damaged]).statistic
    assert found.roc_auc == pytest.approx(u / (damaged.sum() * (~damaged).sum()))
    assert found.n_damaged == damaged.sum() == 9


@pytest.mark.parametrize("margin", [1, 2, 3, 5])
def test_selection_within_points_of_the_best(records: pd.DataFrame, result: Analysis, margin: int) -> None:
    (found,) = [s for s in result.selection_rules if (s.transfer_set, s.margin_points) == ("cifar100", margin)]
    best = records["best_val_accuracy"].max()
    near = records[records["best_val_accuracy"] >= best - margin / 100 - 1e-9]
    assert (found.n_runs, found.best_validation) == (len(near), pytest.approx(best))
    assert found.oracle_pct == pytest.approx(near[RETENTION].max())
    assert found.random_pct == pytest.approx(near[RETENTION].mean())
    rules = {choice.rule: choice for choice in found.choices}
    for rule, score in (
        ("lowest embedding_drift", near["embedding_drift"]),
        ("lowest weight_drift", near["weight_drift"]),
        ("highest cka_mean", -near["cka_mean"]),
        ("lowest abs_entropy_change", near["entropy_change_pct"].abs()),
    ):
        assert rules[rule].retention_pct == pytest.approx(near.loc[score.idxmin(), RETENTION]), rule


@pytest.mark.parametrize("target", [0.9, 0.95])
def test_equal_accuracy_in_log_rate(records: pd.DataFrame, result: Analysis, target: float) -> None:
    rows = {
        row["variant"]: row
        for row in result.tables["iso_accuracy"].rows
        if row["target"] == pytest.approx(target) and row["why"] == "setting"
    }
    for variant in ("full", "LoRA r=8"):
        curve = records[records["variant"] == variant].groupby("rate")[["best_val_accuracy", RETENTION]].mean()
        x, y, kept = np.log10(curve.index), curve["best_val_accuracy"].to_numpy(), curve[RETENTION].to_numpy()
        fine = np.linspace(x[0], x[-1], 200_001)
        accuracy = np.interp(fine, x, y)
        crossed = np.flatnonzero(np.diff(np.sign(accuracy - target)) != 0)
        row = rows[variant]
        if not len(crossed):
            assert row["learning_rate"] is None
            assert "not reached" in row["reason"]
            continue
        at = fine[crossed[0]]
        assert math.log10(row["learning_rate"]) == pytest.approx(at, abs=2e-5)
        assert row[RETENTION] == pytest.approx(np.interp(at, x, kept), abs=0.01)


def test_pareto_front_by_trying_every_pair(records: pd.DataFrame, result: Analysis) -> None:
    means = records.groupby(["variant", "rate"])[["test_accuracy", RETENTION]].mean()
    points = list(means.itertuples(index=True, name=None))
    front = {
        key
        for key, accuracy, kept in points
        if not any(a >= accuracy and k >= kept and (a > accuracy or k > kept) for _, a, k in points)
    }
    rows = [row for row in result.tables["pareto"].rows if row["transfer_set"] == "cifar100"]
    assert {(row["variant"], row["learning_rate"]) for row in rows if row["pareto"]} == front
    assert len(rows) == len(points)


def test_anova_over_blocks_with_runs_as_units(records: pd.DataFrame, result: Analysis) -> None:
    from statsmodels.stats.anova import AnovaRM

    (found,) = [a for a in result.anova if (a.method, a.metric, a.level) == ("full", "entropy", "cells")]
    own = records[records["variant"] == "full"]
    long = pd.DataFrame(
        [
            {"run": run, "group": name, "change": float(np.mean(layers[4 * place : 4 * place + 4]))}
            for run, layers in zip(own["run_id"], own["layers"], strict=True)
            for place, name in enumerate(("early", "middle", "late"))
        ]
    )
    expected = AnovaRM(long, "change", "run", within=["group"]).fit().anova_table.iloc[0]
    assert found.n == 12
    assert found.f == pytest.approx(expected["F Value"])
    assert found.p == pytest.approx(expected["Pr > F"])
