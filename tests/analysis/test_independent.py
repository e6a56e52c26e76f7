"""The numbers of the 39 reference records, computed anew from their JSON with pandas, scipy and statsmodels.

Nothing of the package computes the expected side: not its tables, not its statistics.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import pytest
from reference_records import read_records, reference_analysis, reference_folder
from scipy import stats
from sklearn.metrics import roc_auc_score
from statsmodels.stats.multitest import multipletests

from attndrift.analysis import Analysis

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
    return reference_analysis()


def rows_of(result: Analysis, table: str, **wanted: Any) -> list[dict[str, Any]]:
    rows = result.tables[table].rows
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def grid(records: pd.DataFrame, variant: str, measure: str) -> pd.DataFrame:
    """Seeds x rates; accuracies in percent."""
    own = records[records["variant"] == variant].pivot(index="seed", columns="rate", values=measure)
    return 100 * own if measure.endswith("accuracy") else own


def agrees(row: dict[str, Any], values: pd.Series) -> None:
    """Mean, spread, interval and p of one number a seed, by scipy."""
    expected = stats.ttest_1samp(values, 0.0)
    low, high = expected.confidence_interval(0.95)
    assert row["n_seeds"] == len(values) == 3
    assert row["estimate"] == pytest.approx(values.mean())
    assert row["sd"] == pytest.approx(values.std())
    assert (row["low"], row["high"]) == pytest.approx((low, high))
    assert row["p"] == pytest.approx(expected.pvalue)


@pytest.mark.parametrize("measure", ["entropy_change_pct", "gini_change_pct", "cka_mean", "test_accuracy", RETENTION])
def test_differences_are_those_of_one_number_a_seed(records: pd.DataFrame, result: Analysis, measure: str) -> None:
    full, lora = (grid(records, name, measure) for name in ("full", "LoRA r=8"))
    d = full - lora
    wanted = {"first": "full", "second": "LoRA r=8", "measure": measure}
    (mean,) = rows_of(result, "differences", contrast="mean of rates", **wanted)
    agrees(mean, d.mean(axis=1))
    assert (mean["first_mean"], mean["second_mean"]) == pytest.approx((full.to_numpy().mean(), lora.to_numpy().mean()))
    (slope,) = rows_of(result, "differences", contrast="per tenfold rate", **wanted)
    agrees(slope, d.apply(lambda seed: np.polyfit(np.log10(d.columns.to_numpy()), seed, 1)[0], axis=1))
    for rate in d.columns:
        (one,) = rows_of(result, "differences", contrast="one rate", learning_rate=rate, **wanted)
        agrees(one, d[rate])


def test_changes_of_blocks_are_contrasts_over_seeds(records: pd.DataFrame, result: Analysis) -> None:
    """What the rate does to late blocks against early ones is an effect, not an error."""
    own = records[records["variant"] == "full"]
    layers = np.stack(own["layers"])
    late_less_early = layers[:, 8:].mean(axis=1) - layers[:, :4].mean(axis=1)
    values = own.assign(v=late_less_early).pivot(index="seed", columns="rate", values="v")
    wanted = {"variant": "full", "measure": "entropy_late_less_early_pct"}
    (mean,) = rows_of(result, "changes", contrast="mean of rates", **wanted)
    agrees(mean, values.mean(axis=1))
    (slope,) = rows_of(result, "changes", contrast="per tenfold rate", **wanted)
    agrees(slope, values.apply(lambda seed: np.polyfit(np.log10(values.columns.to_numpy()), seed, 1)[0], axis=1))
    assert slope["high"] < 0


def test_retention_is_compared_with_all_of_it(records: pd.DataFrame, result: Analysis) -> None:
    (row,) = rows_of(result, "changes", variant="LoRA r=8", measure=RETENTION, contrast="one rate", learning_rate=1e-5)
    agrees(row, grid(records, "LoRA r=8", RETENTION)[1e-5] - 100)


@pytest.mark.parametrize("table", ["differences", "changes", "operating_differences"])
def test_holm_over_each_family(result: Analysis, table: str) -> None:
    """A family is one measure and contrast, and one method with all others; each is corrected as statsmodels does."""
    names = {
        "differences": ("measure", "contrast", "first"),
        "changes": ("measure", "contrast"),
        "operating_differences": ("transfer_set", "measure", "rule", "first"),
    }[table]
    families: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in result.tables[table].rows:
        if row["p"] is not None:
            families.setdefault(tuple(row[name] for name in names), []).append(row)
    assert len(families) > 6
    for name, rows in families.items():
        corrected = multipletests([row["p"] for row in rows], method="holm")[1]
        np.testing.assert_allclose([row["p_holm"] for row in rows], corrected, rtol=1e-6, err_msg=str(name))
        assert {row["family_size"] for row in rows} == {len(rows)}, name


def test_one_transfer_set_is_one_test(result: Analysis) -> None:
    """Its accuracy and its retention are the same numbers in two units."""
    measures = {row["measure"] for row in result.tables["differences"].rows}
    assert RETENTION in measures
    assert not [name for name in measures if name.startswith("transfer") and name.endswith("_accuracy")]
    assert "best_val_accuracy" not in measures


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
    (found,) = rows_of(result, "signals", transfer_set="cifar100", when=when, signal=signal)
    absolute = signal.startswith("abs_")
    values = records[column].abs() if absolute else records[column]
    kept = records[RETENTION]
    assert found["rho_runs"] == pytest.approx(stats.spearmanr(values, kept).statistic)
    table = pd.DataFrame({"v": values, "k": kept}).groupby([records["variant"], records["rate"]]).mean().round(12)
    expected = stats.spearmanr(table["v"], table["k"])
    assert (found["rho"], found["p"]) == (pytest.approx(expected.statistic), pytest.approx(expected.pvalue))
    rho = groups_of(records, column, absolute)
    assert found["n_groups"] == len(rho)
    assert found["within_mean"] == pytest.approx(np.mean(rho))
    assert found["within_mean_absolute"] == pytest.approx(np.mean(np.abs(rho)))
    (warning,) = rows_of(result, "early_warning", transfer_set="cifar100", when=when, signal=signal)
    damaged = table["k"] < 50
    assert warning["auc"] == pytest.approx(roc_auc_score(damaged, -sign * table["v"]))
    assert warning["n_damaged"] == damaged.sum() == 3


def test_signals_against_each_other(records: pd.DataFrame, result: Analysis) -> None:
    means = records.groupby(["variant", "rate"])[["cka_mean", "weight_drift", RETENTION]].mean()
    rho = means.corr(method="spearman")
    cka, drift = rho.loc["cka_mean", RETENTION], -rho.loc["weight_drift", RETENTION]
    (found,) = rows_of(
        result, "signal_differences", transfer_set="cifar100", when="final", first="cka_mean", second="weight_drift"
    )
    assert found["difference"] == pytest.approx(cka - drift)
    values = [means["cka_mean"], -means["weight_drift"], means[RETENTION]]
    right = [
        np.sign(values[0].iloc[i] - values[0].iloc[j]) == np.sign(values[2].iloc[i] - values[2].iloc[j])
        for i, j in itertools.combinations(range(len(means)), 2)
        if np.prod([np.sign(v.iloc[i] - v.iloc[j]) for v in values[:2]]) < 0
    ]
    assert (found["pairs_won"], found["pairs_differing"]) == (sum(right), len(right))
    (given,) = rows_of(
        result, "partial_associations", transfer_set="cifar100", when="final", signal="cka_mean", given="weight_drift"
    )
    x, z, y = (stats.rankdata(column) for column in values)
    rest = [v - np.polyval(np.polyfit(z, v, 1), z) for v in (x, y)]
    assert given["rho"] == pytest.approx(np.corrcoef(*rest)[0, 1])


@pytest.mark.parametrize("margin", [1, 2, 3, 5])
def test_selection_within_points_of_the_best(records: pd.DataFrame, result: Analysis, margin: int) -> None:
    rules = {
        row["rule"]: row for row in rows_of(result, "selection_rules", transfer_set="cifar100", margin_points=margin)
    }
    best = records["best_val_accuracy"].max()
    near = records[records["best_val_accuracy"] >= best - margin / 100 - 1e-9]
    assert rules["oracle"]["n_runs"] == len(near)
    assert rules["oracle"]["retention_pct"] == pytest.approx(near[RETENTION].max())
    assert rules["random"]["retention_pct"] == pytest.approx(near[RETENTION].mean())
    for rule, score in (
        ("lowest embedding_drift", near["embedding_drift"]),
        ("lowest weight_drift", near["weight_drift"]),
        ("highest cka_mean", -near["cka_mean"]),
        ("lowest abs_entropy_change", near["entropy_change_pct"].abs()),
    ):
        assert rules[rule]["retention_pct"] == pytest.approx(near.loc[score.idxmin(), RETENTION]), rule


def test_best_validation_and_the_difference_there(records: pd.DataFrame, result: Analysis) -> None:
    chosen: dict[str, pd.Series] = {}
    for variant in ("full", "LoRA r=8"):
        accuracy, kept = grid(records, variant, "best_val_accuracy").mean(), grid(records, variant, RETENTION)
        chosen[variant] = kept[accuracy.idxmax()]
        (row,) = rows_of(result, "operating_points", rule="best validation", variant=variant, transfer_set="cifar100")
        assert row["learning_rate"] == accuracy.idxmax()
        assert row["accuracy"] == pytest.approx(accuracy.max())
        assert row["retention_pct"] == pytest.approx(chosen[variant].mean())
    (row,) = rows_of(
        result, "operating_differences", rule="best validation", first="full", second="LoRA r=8", measure="retention",
        transfer_set="cifar100",
    )  # fmt: skip
    agrees(row, chosen["full"] - chosen["LoRA r=8"])


def test_equal_accuracy_is_compared_where_a_method_keeps_most(records: pd.DataFrame, result: Analysis) -> None:
    """Full fine-tuning has the accuracy that both reach at three rates, and keeps 55% at the lowest, 3.7% at the highest."""
    curves = {name: grid(records, name, "best_val_accuracy").mean() for name in ("full", "LoRA r=8")}
    least = min(curve.max() for curve in curves.values())
    (row,) = rows_of(
        result, "operating_differences", rule="best retention", first="full", second="LoRA r=8", transfer_set="cifar100"
    )
    assert row["least_accuracy"] == pytest.approx(least)
    for end, variant in (("first", "full"), ("second", "LoRA r=8")):
        kept = grid(records, variant, RETENTION).mean()[curves[variant] >= least - 1e-9]
        assert row[f"{end}_rate"] == kept.idxmax()
        assert row[f"{end}_mean"] == pytest.approx(kept.max())
    assert row["first_mean"] == pytest.approx(55.0, abs=0.05)
    assert row["estimate"] == pytest.approx(55.03 - 86.44, abs=0.02)
    points = rows_of(result, "operating_points", rule="best retention", transfer_set="cifar100", least_accuracy=95.0)
    assert {p["variant"]: round(p["retention_pct"], 1) for p in points} == {"full": 55.0}


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


def test_which_came_first_is_read_off_the_histories(result: Analysis) -> None:
    rows = {row["run_id"]: row for row in result.tables["timing"].rows}
    counted: Counter[str] = Counter()
    for record in read_records(reference_folder()):
        if "sweep" in record:
            continue
        lost, fell = (
            next((entry["epoch"] for entry in record["history"] if condition(entry)), None)
            for condition in (
                lambda entry: entry["transfer_track_retention"] < 0.5,
                lambda entry: entry["delta_entropy_pct"] <= -1,
            )
        )
        row = rows[record["run_id"]]
        assert (row["lost_epoch"], row["fell_epoch"], row["lost"]) == (lost, fell, lost is not None)
        if lost is not None:
            order = (
                "never" if fell is None else "before" if fell < lost else "after" if fell > lost else "same evaluation"
            )
            assert row["order"] == order
            counted[order] += 1
    (told,) = [f for f in result.findings if f.table == "timing"]
    assert f"Of {counted.total()} runs" in told.sentence
    assert f"had fallen before in {counted['before']}" in told.sentence
    assert len(told.rows) == counted.total()
    same = [rows[row] for row in rows if rows[row]["order"] == "same evaluation"]
    assert f"at the same evaluation in {counted['same evaluation']} (" in told.sentence
    assert same[0]["run_id"] in told.sentence
    assert f"later in {counted['after']}, and never in {counted['never']}." in told.sentence


def test_the_sweeps_take_no_place_among_the_first_findings(result: Analysis) -> None:
    """One finding of each topic comes first, in the order of importance: the choice of an alpha is the last of them."""
    topics = [f.topic for f in result.findings]
    assert "interpolation" in topics
    first = list(dict.fromkeys(topics))
    assert first[-1] == "interpolation"
    assert not [f for f in result.findings if f.topic == "preservation" and f.table == "interpolation_choice"]


def test_variance_components_are_those_of_a_nested_anova(records: pd.DataFrame, result: Analysis) -> None:
    rows = {row["variant"]: row for row in result.tables["variance_components"].rows if row["measure"] == RETENTION}
    groups = records.groupby(["variant", "rate"])[RETENTION]
    assert rows[None]["sd_seed"] == pytest.approx(math.sqrt(groups.var().mean()))
    between = groups.mean().var() - groups.var().mean() / 3
    assert rows[None]["sd_configuration"] == pytest.approx(math.sqrt(between))
    assert (rows[None]["freedom"], rows[None]["n_configurations"], rows[None]["sd_dataset"]) == (26, 13, None)
    # What the package cites for a study of one seed.
    cited = {"full": 3.3, "LoRA r=8": 0.7, "last block + projection": 1.6}
    assert {name: round(rows[name]["sd_seed"], 1) for name in cited} == pytest.approx(cited, abs=0.11)


def test_no_finding_is_made_where_a_method_fails(result: Analysis) -> None:
    """At 3e-6 LoRA has 45% accuracy, at 1e-4 full fine-tuning has lost its transfer: no sentence compares them there."""
    assert not [f for f in result.findings if "which suits both" in f.sentence and "LoRA" in f.sentence]
    assert any(
        "No shared rate suits both full (best at 1e-5) and LoRA r=8 (best at 1e-4)" in f.sentence
        for f in result.findings
    )
    told = [f.sentence for f in result.findings if f.topic == "methods"]
    assert any(s.startswith("Each at its best validation rate, LoRA r=8 retains") for s in told)
