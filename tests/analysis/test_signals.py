"""Signals of retention: targets apart, held-out warnings, thresholds in the signal's unit, and no shared images."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import roc_auc_score
from statsmodels.stats.multitest import multipletests

from attndrift.analysis import Analysis, AnalysisSettings, analyze
from attndrift.analysis.configurations import prepare
from attndrift.analysis.dynamics import order_history
from attndrift.analysis.early_warning import WARNS, calibrate, choose_alerts
from attndrift.analysis.held_out import (
    best_threshold,
    confusion,
    falling_curve,
    folds_of,
    held_out_errors,
    held_out_warnings,
)
from attndrift.analysis.rank_intervals import area_limits, difference_limits, roc_area
from attndrift.analysis.signals import PREDICTS, RANKS
from attndrift.drift import Alert, watchable
from attndrift.results.tables import Tables
from benchmarks.synthetic import synthetic_tables

RETENTION = "transfer_s_zero_shot_retention_pct"


def study(
    *, datasets: tuple[str, ...] = ("a",), shift: float = 0.0, rates: int = 12, noise: float = 0.0, disjoint: Any = None
) -> Tables:
    """Two methods at ``rates`` rates with two seeds: the retention falls as CKA does, on other datasets ``shift`` lower."""
    rng = np.random.default_rng(0)
    runs: list[dict[str, Any]] = []
    history: list[dict[str, Any]] = []
    for place, dataset in enumerate(datasets):
        for method in ("full", "lora"):
            for step, rate in enumerate(np.geomspace(1e-6, 1e-3, rates)):
                for seed in range(2):
                    name = f"{dataset}-{method}-{rate:g}-{seed}"
                    kept = 97.0 - 80.0 * (step + 0.5 * (method == "full")) / rates + rng.normal(0, 0.1)
                    cka = min(max(kept / 100 - shift * place + noise * rng.normal(), 0.0), 1.0)
                    sign = 1 if method == "full" else -1
                    runs.append(
                        {"run_id": name, "dataset": dataset, "method": method, "learning_rate": rate, "seed": seed,
                         "cka_mean": cka, "entropy_change_pct": sign * (kept - 100) / 10, "weight_drift": rng.uniform(),
                         "best_val_accuracy": 0.9, "test_accuracy": rng.uniform(), RETENTION: kept,
                         "monitor_disjoint": disjoint}
                    )  # fmt: skip
                    for at, share in ((0, 0.0), (50, 0.3), (100, 1.0)):
                        history.append(
                            {"run_id": name, "step": at, "epoch": at / 50, "cka_mean": 1 - share * (1 - cka),
                             "train_loss": 1.0 - share * 0.5, "weight_drift": rng.uniform() if at else 0.0,
                             "monitor_zero_shot_retention_pct": 100 - share * (100 - kept)}
                        )  # fmt: skip
    return Tables(runs=pd.DataFrame(runs), history=pd.DataFrame(history))


@functools.cache
def analysed(**options: Any) -> Analysis:
    """The analysis of such a study, made once."""
    return analyze(study(**options))


def rows_of(result: Analysis, table: str, **wanted: Any) -> list[dict[str, Any]]:
    rows = result.tables[table].rows
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("told", "there"),
    [(True, True), (False, False), (None, False), ("some", True)],
    ids=["told", "shared", "unknown", "some"],
)
def test_a_monitor_that_may_share_images_with_the_outcome_is_no_signal(told: Any, there: bool) -> None:
    if told is None:
        result = analysed()
    else:
        tables = study(disjoint=None if told == "some" else told)
        if told == "some":
            tables.runs.loc[tables.runs["method"] == "full", "monitor_disjoint"] = True
        result = analyze(tables)
    rows = rows_of(result, "signals", signal="monitor_zero_shot_retention")
    assert bool(rows) is there
    assert any("no predictor" in note for note in result.notes) is (told is not True)
    assert {row["n_runs"] for row in rows} <= {24 if told == "some" else 48}
    assert any("zero-shot monitor" in f.sentence for f in result.findings) <= there


def test_datasets_are_never_pooled_and_one_tells_of_another() -> None:
    result = analysed(datasets=("a", "b", "c"))
    rows = rows_of(result, "signals", when="final", signal="cka_mean")
    assert [row["dataset"] for row in rows] == ["a", "b", "c"]
    assert {row["n_configurations"] for row in rows} == {24}
    assert all(row["other_datasets_error"] < 2 for row in rows)
    moved = rows_of(analyze(study(datasets=("a", "b"), shift=0.5)), "signals", when="final", signal="cka_mean")
    # In its own dataset CKA still predicts; the curve of the other one is of no use.
    assert all(
        row["verdict"] == PREDICTS and row["held_out_error"] < 5 < 15 < row["other_datasets_error"] for row in moved
    )


def test_the_words_say_predict_only_of_configurations_left_out() -> None:
    result = analysed(noise=0.02)
    (cka,) = rows_of(result, "signals", when="final", signal="cka_mean")
    assert (cka["verdict"], cka["n_seeds"]) == (PREDICTS, 2)
    (sentence,) = [f for f in result.findings if f.topic == "warning" and "most closely" in f.sentence]
    assert "It predicts" in sentence.sentence
    assert sentence.strength == "supported"
    drift = rows_of(result, "signals", signal="weight_drift", when="final")[0]
    assert drift["verdict"] not in (PREDICTS, RANKS)
    one_seed = study(noise=0.02)
    one_seed.runs = one_seed.runs[one_seed.runs["seed"] == 0]
    found = analyze(Tables(runs=one_seed.runs))
    assert {row["verdict"] for name in ("signals", "early_warning") for row in found.tables[name].rows} == {
        "descriptive"
    }
    assert {f.strength for f in found.findings if f.topic == "warning"} == {"descriptive"}


def test_a_signed_signal_that_turns_between_methods_is_warned_of() -> None:
    result = analysed()
    (signed,), (size,) = (
        rows_of(result, "signals", when="final", signal=n) for n in ("entropy_change", "abs_entropy_change")
    )
    assert "rises with the retention in full, falls with it in LoRA" in signed["warning"]
    assert "abs_entropy_change" in signed["warning"]
    assert size["warning"] is None
    assert abs(size["rho"]) > 0.99 > 0.5 > abs(signed["rho"])
    assert any("changes its sign" in f.sentence for f in result.findings)


def test_training_itself_is_among_the_signals() -> None:
    rows = analysed(noise=0.02).tables["signals"].rows
    training = {row["signal"] for row in rows if not row["measured"]}
    assert {"learning_rate", "train_loss", "test_accuracy"} <= training
    compared = {row["second"] for row in analysed().tables["signal_differences"].rows if row["first"] == "cka_mean"}
    assert {"weight_drift", "test_accuracy", "learning_rate"} <= compared


def test_holm_within_one_target_and_moment() -> None:
    result = analyze(study(datasets=("a", "b"), noise=0.1))
    for name, by in (("signals", ("measured",)), ("early_warning", ("measured",)), ("signal_differences", ())):
        families: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for row in result.tables[name].rows:
            if row["p"] is not None:
                families.setdefault(tuple(row[key] for key in ("dataset", "when", *by)), []).append(row)
        assert len(families) >= 4
        for rows in families.values():
            corrected = multipletests([row["p"] for row in rows], method="holm")[1]
            assert [row["p_holm"] for row in rows] == pytest.approx(list(corrected))
            assert {row["family_size"] for row in rows} == {len(rows)}


@pytest.mark.one_in(3)
@pytest.mark.parametrize("seed", range(5))
def test_thresholds_and_curves_leave_a_configuration_out(seed: int) -> None:
    rng = np.random.default_rng(seed)
    score = rng.normal(size=14).round(1)
    kept = -30 * score + rng.normal(0, 20, 14)
    damaged = kept < np.median(kept)
    warned, (errors, plain) = (
        held_out_warnings(score, damaged, folds_of(14)),
        held_out_errors(score, kept, folds_of(14)),
    )
    for place in range(14):
        rest = np.arange(14) != place
        grid = np.linspace(score.min() - 1, score.max() + 1, 2001)
        quality = [(score[rest & damaged] > t).mean() + (score[rest & ~damaged] <= t).mean() for t in grid]
        threshold = best_threshold(score[rest], damaged[rest])
        reached = (score[rest & damaged] > threshold).mean() + (score[rest & ~damaged] <= threshold).mean()
        assert reached == pytest.approx(max(quality))
        assert warned[place] == (score[place] > threshold)
        curve = IsotonicRegression(increasing=False, out_of_bounds="clip").fit(score[rest], kept[rest])
        assert errors[place] == pytest.approx(abs(curve.predict(score[[place]])[0] - kept[place]))
        assert plain[place] == pytest.approx(abs(kept[rest].mean() - kept[place]))
    assert roc_area(score, damaged) == pytest.approx(roc_auc_score(damaged, score))
    assert np.all(np.diff(falling_curve(score, kept)[1]) <= 1e-9)


def test_a_threshold_without_use_warns_of_nothing() -> None:
    damaged = np.array([True, True, False, False])
    assert best_threshold(np.array([1.0, 1.0, 1.0, 1.0]), damaged) == np.inf
    assert best_threshold(np.array([1.0, 2.0, 3.0, 4.0]), damaged) == np.inf
    assert np.isnan(best_threshold(np.arange(4.0), np.zeros(4, bool)))
    assert best_threshold(np.array([4.0, 3.0, 2.0, 1.0]), damaged) == 2.5
    found = confusion(np.array([1.0, np.nan, 0.0, 1.0]), damaged)
    assert (found["sensitivity"], found["specificity"], found["caught"], found["false_alarms"]) == (1.0, 0.5, 1, 1)


def test_limits_solve_what_defines_them() -> None:
    """Those of the area lie 1.96 of Hanley and McNeil's standard errors off, taken there. Equal signals: around 0."""
    positive = np.arange(40) < 20
    low, high = area_limits(np.where(positive, np.where(np.arange(40) < 4, -1.0, 1.0), 0.0), positive, 0.95)
    for limit in (low, high):
        first, second = limit / (2 - limit), 2 * limit**2 / (1 + limit)
        variance = (limit * (1 - limit) + 19 * (first - limit**2) + 19 * (second - limit**2)) / 400
        assert abs(0.8 - limit) == pytest.approx(1.96 * np.sqrt(variance), abs=1e-3)
    low, high = area_limits(np.arange(13.0), np.arange(13) >= 8, 0.95)
    assert 0.6 < low < 0.8
    assert high == 1
    # With 50 units and more: DeLong's variance from all pairs, on the logit scale.
    rng = np.random.default_rng(0)
    positive = np.arange(60) < 25
    score = positive + rng.standard_normal(60).round(1)
    pairs = (score[positive][:, None] > score[~positive]) + 0.5 * (score[positive][:, None] == score[~positive])
    area = pairs.mean()
    half = 1.96 * np.sqrt(pairs.mean(1).var(ddof=1) / 25 + pairs.mean(0).var(ddof=1) / 35) / (area * (1 - area))
    logit = np.log(area / (1 - area))
    assert area_limits(score, positive, 0.95) == pytest.approx(
        tuple(1 / (1 + np.exp(-end)) for end in (logit - half, logit + half)), abs=1e-4
    )
    low, high = difference_limits(np.array(0.7), np.array(0.7), np.array(0.5), 30, 0.95)
    assert float(low) == pytest.approx(-float(high))
    assert all(np.isnan(end) for end in difference_limits(np.array(0.7), np.array(0.6), np.array(0.5), 9, 0.95))


def test_early_warning_in_the_signals_unit_and_held_out() -> None:
    result = analysed(datasets=("a", "b", "c"))
    for row in rows_of(result, "early_warning", signal="cka_mean"):
        assert (row["direction"], row["verdict"]) == ("below", WARNS)
        assert row["threshold"] == pytest.approx(0.5 if row["when"] == "final" else 0.85, abs=0.05)
        assert row["sensitivity"] == row["specificity"] == 1
        assert min(row["held_out_sensitivity"], row["held_out_specificity"], row["other_sensitivity"]) >= 0.8
        assert row["n_damaged"] < row["n_configurations"] == 24
    fine = analyze(study(), settings=AnalysisSettings(damaged_below_pct=1.0))
    assert not fine.tables["early_warning"].rows
    assert any("nothing to warn of" in note for note in fine.notes)


def test_calibration_makes_alerts_that_would_have_fired() -> None:
    tables = study(noise=0.01)
    prepared = prepare(tables)
    history = order_history(prepared, tables.history)
    table = calibrate(prepared, history, AnalysisSettings(), below_pct=60)
    assert {row["step"] for row in table.rows} == {50, 100}
    assert {row["metric"] for row in table.rows} <= set(watchable())
    alerts = choose_alerts(table)
    assert alerts[0]["signal"] == "cka_mean"
    assert alerts[0]["verdict"] == WARNS
    alert = Alert(alerts[0]["metric"], below=alerts[0]["below"], above=alerts[0]["above"])
    by_then = tables.history[(tables.history["step"] > 0) & (tables.history["step"] <= alerts[0]["step"])]
    worst = by_then.groupby("run_id")["cka_mean"].min()
    fired = worst.map(lambda value: alert.crossed(value) is not None)
    damaged = tables.runs.set_index("run_id")[RETENTION] < 60
    assert (fired.reindex(damaged.index) == damaged).mean() > 0.95
    assert not calibrate(prepared, history, AnalysisSettings(), below_pct=5).rows


def test_a_size_is_an_alert_on_both_sides() -> None:
    made = synthetic_tables(seeds=2, rates=8, datasets=("eurosat",), evaluations=3, layers=2)
    prepared = prepare(made)
    half = float(prepared.adapted["transfer_cifar100_zero_shot_retention_pct"].median())
    table = calibrate(prepared, order_history(prepared, made.history), AnalysisSettings(), below_pct=half)
    rows = [row for row in table.rows if row["signal"].startswith("abs_") and row["threshold"] is not None]
    assert rows
    assert all(row["below"] == -row["above"] < 0 for row in rows)
