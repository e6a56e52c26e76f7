"""The published values: the 39 reference records, and the tables of the original study."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from original_study import EXPERIMENTS, PRINTED_CHANGES, original_study_tables
from reference_records import convert, read_records, reference_analysis, reference_folder
from scipy.stats import ttest_1samp

from attndrift.analysis import Analysis, analyze
from attndrift.results.tables import Tables


@pytest.fixture(scope="module")
def reference() -> Analysis:
    return reference_analysis()


# method, rate, test accuracy, sd, entropy change, sd, last block, retention, sd, weight drift, embedding drift, CKA
PUBLISHED = """
full|3e-6|96.81|0.07|+1.53|0.25|+3.39|55.0|4.3|0.0022|0.632|0.844
full|1e-5|97.19|0.33|+0.99|0.17|+1.24|41.2|2.3|0.0042|0.726|0.802
full|3e-5|95.98|1.36|+0.06|0.21|-2.39|22.3|4.5|0.0083|0.730|0.762
full|1e-4|94.02|0.43|-2.34|0.40|-7.75|3.7|0.6|0.0222|0.731|0.731
last block + projection|1e-5|88.57|0.57|-0.05|0.01|-0.67|97.1|0.3|0.0040|0.513|0.981
last block + projection|1e-4|94.38|0.48|-0.39|0.04|-4.86|83.8|2.2|0.0109|0.718|0.952
linear probe|1e-3|85.11|0.23|+0.00|0.00|+0.00|100.0|0.0|0.0000|0.000|1.000
LoRA r=8|3e-6|45.54|0.80|+0.01|0.02|+0.00|99.6|0.4|0.0003|0.007|0.999
LoRA r=8|1e-5|78.83|1.54|+0.16|0.07|+0.37|98.2|0.7|0.0010|0.074|0.970
LoRA r=8|3e-5|91.73|0.19|+0.71|0.08|+2.04|94.5|0.4|0.0024|0.325|0.927
LoRA r=8|1e-4|95.16|0.44|+0.98|0.03|+1.71|86.4|1.1|0.0042|0.530|0.900
LoRA r=8, frozen projection|1e-5|22.63|5.69|+0.05|0.10|+0.25|98.6|0.4|0.0010|0.033|0.983
LoRA r=8, frozen projection|1e-4|92.67|0.17|+1.39|0.30|+3.23|76.6|2.6|0.0063|0.458|0.885
"""


def row_of(analysis: Analysis, variant: str, rate: float) -> dict[str, Any]:
    rows = [
        row
        for row in analysis.tables["configurations"].rows
        if row["variant"] == variant and row["learning_rate"] == pytest.approx(rate)
    ]
    assert len(rows) == 1
    return rows[0]


@pytest.mark.parametrize("line", PUBLISHED.strip().splitlines(), ids=lambda line: "|".join(line.split("|")[:2]))
def test_the_reference_table(reference: Analysis, line: str) -> None:
    variant, rate, *printed = line.split("|")
    row = row_of(reference, variant, float(rate))
    assert row["n_seeds"] == row["n_runs"] == 3
    got = [
        f"{100 * row['test_accuracy']:.2f}",
        f"{100 * row['test_accuracy_sd']:.2f}",
        f"{row['entropy_change_pct']:+.2f}",
        f"{row['entropy_change_pct_sd']:.2f}",
        f"{row['entropy_last_layer_change_pct']:+.2f}",
        f"{row['transfer_cifar100_zero_shot_retention_pct']:.1f}",
        f"{row['transfer_cifar100_zero_shot_retention_pct_sd']:.1f}",
        f"{row['weight_drift']:.4f}",
        f"{row['embedding_drift']:.3f}",
        f"{row['cka_mean']:.3f}",
    ]
    assert got == printed


def rows_of(analysis: Analysis, table: str, **wanted: Any) -> list[dict[str, Any]]:
    rows = analysis.tables[table].rows
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def test_the_paired_comparison_and_why_its_p_differs(reference: Analysis) -> None:
    """Published over 12 cells, where the effect of the rate counts as error; here over seeds."""
    wanted = {"first": "full", "second": "LoRA r=8", "contrast": "mean of rates"}
    found = {row["measure"]: row for row in rows_of(reference, "differences", **wanted)}
    entropy, kept, cka = (
        found[name] for name in ("entropy_change_pct", "transfer_cifar100_zero_shot_retention_pct", "cka_mean")
    )
    assert (entropy["n_rates"], entropy["n_seeds"]) == (4, 3)
    assert f"{entropy['estimate']:.3f}" == "-0.406"
    assert f"{kept['estimate']:.1f}" == "-64.2"
    assert f"{cka['estimate']:.3f}" == "-0.164"
    # Published p = 0.49 and d_z = -0.21 and -4.14: the spread of those is that of the rates.
    runs = convert(read_records(reference_folder())).runs
    table = runs[
        runs["entropy_change_pct"].notna() & (runs["method"].isin(["full", "lora"])) & runs["train_projection"]
    ]
    cells = table.pivot(
        index=["learning_rate", "seed"], columns="method", values=["entropy_change_pct", kept["measure"]]
    )
    d = cells.xs("full", axis=1, level=1) - cells.xs("lora", axis=1, level=1)
    assert [f"{d[name].mean() / d[name].std():.2f}" for name in ("entropy_change_pct", kept["measure"])] == [
        "-0.21",
        "-4.14",
    ]
    assert f"{ttest_1samp(d['entropy_change_pct'].astype(float), 0).pvalue:.2f}" == "0.49"
    assert f"{entropy['p']:.3f}" == "0.035"


@pytest.mark.parametrize(
    ("method", "measure", "rho"),
    [
        ("full", "entropy_change_pct", "-0.972"),
        ("LoRA r=8", "entropy_change_pct", "+0.972"),
        ("full", "transfer_cifar100_zero_shot_retention_pct", "-0.972"),
        ("LoRA r=8", "transfer_cifar100_zero_shot_retention_pct", "-0.972"),
    ],
)
def test_spearman_against_the_rate(reference: Analysis, method: str, measure: str, rho: str) -> None:
    (found,) = rows_of(reference, "changes", variant=method, measure=measure, contrast="per tenfold rate")
    assert f"{found['spearman']:+.3f}" == rho
    assert found["low"] * found["high"] > 0


def test_the_pareto_front(reference: Analysis) -> None:
    front = {
        (row["variant"], row["learning_rate"])
        for row in reference.tables["pareto"].rows
        if row["pareto"] and row["transfer_set"] == "cifar100"
    }
    assert front == {
        ("full", 1e-5),
        ("full", 3e-6),
        ("LoRA r=8", 1e-4),
        ("LoRA r=8", 3e-5),
        ("last block + projection", 1e-5),
        ("linear probe", 1e-3),
    }


def test_the_selection_rules(reference: Analysis) -> None:
    found = rows_of(reference, "selection_rules", transfer_set="cifar100", margin_points=2.0)
    assert {row["n_runs"] for row in found} == {8}
    rules = {row["rule"]: row["retention_pct"] for row in found}
    names = (
        "oracle",
        "random",
        "lowest embedding_drift",
        "lowest weight_drift",
        "highest cka_mean",
        "lowest abs_entropy_change",
    )
    assert [f"{rules[name]:.1f}" for name in names] == ["58.1", "41.2", "56.9", "56.9", "50.1", "24.0"]


def test_the_interpolation_sweep(reference: Analysis) -> None:
    rows = reference.tables["interpolation"].rows
    assert [row["alpha"] for row in rows] == [0.0, 0.25, 0.5, 0.75, 1.0]
    kept = [row["transfer_cifar100_zero_shot_retention_pct"] for row in rows]
    assert kept == pytest.approx([100.0, 98.9075493233, 90.4777433559, 71.9223870863, 45.3448556987])
    choices = {(row["wanted_pct"], row["rule"]): row for row in reference.tables["interpolation_choice"].rows}
    best = choices[90.0, "cka"]["best_alpha"]
    share = (90.4777433559 - 90) / (90.4777433559 - 71.9223870863)
    assert best == pytest.approx(0.5 + 0.25 * share)
    by_cka = 0.25 + 0.25 * (0.9468358556 - 0.9) / (0.9468358556 - 0.8760523399)
    assert choices[90.0, "cka"]["alpha"] == pytest.approx(by_cka)
    assert choices[90.0, "cka"]["retained"]
    # The sweep's own training is no fourth run of its configuration.
    assert [item.run_id for item in reference.data.excluded] == ["INT_eurosat_full_ft_lr1e-5_seed7"]


def test_change_per_layer_agrees_with_the_records(reference: Analysis) -> None:
    """At the selected epoch, which is not the last one in half of the runs."""
    groups: dict[tuple[str, float], list[list[float]]] = {}
    for record in read_records(reference_folder()):
        if "sweep" not in record:
            key = (record["config"]["method"], record["config"]["lr"])
            groups.setdefault(key, []).append(record["final"]["delta_entropy_per_layer_pct"])
    names = {
        "full_ft": "full",
        "last_block": "last block + projection",
        "linear_probe": "linear probe",
        "lora_r8": "LoRA r=8",
        "lora_r8_frozen_proj": "LoRA r=8, frozen projection",
    }
    rows = {
        (row["variant"], row["learning_rate"]): row
        for row in reference.tables["change_per_layer"].rows
        if row["metric"] == "entropy"
    }
    assert len(rows) == len(groups) == 13
    for (method, rate), values in groups.items():
        row = rows[names[method], rate]
        mean, sd = np.mean(values, axis=0), np.std(values, axis=0, ddof=1)
        assert [row[f"layer_{place}"] for place in range(1, 13)] == pytest.approx(mean.tolist(), abs=1e-9)
        assert [row[f"layer_{place}_sd"] for place in range(1, 13)] == pytest.approx(sd.tolist(), abs=1e-9)


def test_convergence_agrees_with_the_records(reference: Analysis) -> None:
    rows = {row["run_id"]: row for row in reference.tables["dynamics_runs"].rows}
    for record in read_records(reference_folder()):
        if "sweep" in record:
            continue
        accuracies = [entry["val_acc"] for entry in record["history"]]
        first = next(place for place, a in enumerate(accuracies, 1) if a >= max(accuracies) - 0.01 - 1e-9)
        assert rows[record["run_id"]]["converged_epoch_best"] == first
        changes = [entry["delta_entropy_pct"] for entry in record["history"]]
        onset = next((place for place, c in enumerate(changes, 1) if c <= -1), None)
        assert rows[record["run_id"]]["onset_epoch"] == onset


def interval(value: float) -> tuple[float, float]:
    return value - 0.0005, value + 0.0005


@pytest.mark.parametrize("metric", ["entropy", "erf95", "gini", "head_diversity"])
def test_printed_changes_lie_within_their_rounded_inputs(metric: str) -> None:
    for name, printed in PRINTED_CHANGES[metric].items():
        before, after = EXPERIMENTS[name][metric]
        (b_low, b_high), (a_low, a_high) = interval(before), interval(after)
        low, high = 100 * (a_low / b_high - 1), 100 * (a_high / b_low - 1)
        assert low - 0.005 <= printed <= high + 0.005, (name, metric, low, printed, high)


@pytest.fixture(scope="module")
def original_study() -> Analysis:
    return analyze(Tables(runs=original_study_tables()))


def test_the_rate_sweep_of_the_original_study(original_study: Analysis) -> None:
    (found,) = rows_of(original_study, "changes", measure="entropy_change_pct", contrast="per tenfold rate")
    assert f"{found['pearson']:.3f}" == "-0.893"
    assert found["spearman"] == pytest.approx(-1.0)
    assert found["rates"] == "1e-6, 5e-6, 1e-5, 5e-5, 1e-4"
    assert (found["p"], found["verdict"]) == (None, "no test")
    assert found["reason"] == "1 seed at all 5 rates: a test needs 3"


def test_the_sweeps_of_the_original_study_are_found_by_their_columns(original_study: Analysis) -> None:
    def settings(name: str) -> list[list[str]]:
        groups: dict[str, list[str]] = {}
        for row in original_study.tables[f"sweep_{name}"].rows:
            groups.setdefault(row["sweep"], []).append(row["setting"])
        return list(groups.values())

    assert settings("rate") == [["1e-6", "5e-6", "1e-5", "5e-5", "1e-4"]]
    assert settings("rank") == [["4", "8", "16"]]
    assert settings("freezing") == [["0", "3", "6", "9"]]
    assert settings("targets") == [["q,v", "q,k,v,out"]]
    assert settings("weight_decay") == [["0", "0.01", "0.1"]]
    assert settings("loss") == [
        [
            "none",
            "attention_preservation 0.01",
            "attention_preservation 0.1",
            "attention_preservation 1",
            "entropy_floor 0.01",
            "entropy_floor 0.1",
        ]
    ]


def test_preserving_means_a_change_near_zero(original_study: Analysis) -> None:
    rows = {row["setting"]: row for row in original_study.tables["sweep_loss"].rows}
    assert [name for name, row in rows.items() if row["preserves_best"]] == ["attention_preservation 1"]


def test_one_seed_supports_nothing(original_study: Analysis) -> None:
    assert {f.strength for f in original_study.findings} <= {"descriptive"}
    assert original_study.data.single_seed
    assert all("one seed" in str(row["note"]) for row in original_study.tables["configurations"].rows)


def test_the_original_study_has_one_matched_cell_of_full_and_lora(original_study: Analysis) -> None:
    """E5 ran at 1e-4, and so did one of A1: one cell of one seed, which no sentence may rest on."""
    (found,) = rows_of(original_study, "differences", first="full", second="LoRA r=8", measure="entropy_change_pct")
    assert (found["n_rates"], found["n_seeds"], found["learning_rate"]) == (1, 1, 1e-4)
    assert found["estimate"] == pytest.approx(-10.40 - 0.58)
    assert (found["p"], found["low"], found["reason"]) == (None, None, "1 seed: a test needs 3")


def test_methods_without_a_shared_rate_are_not_compared_at_one() -> None:
    runs = original_study_tables()
    result = analyze(Tables(runs=runs[runs["run_id"].isin(["E2", "E3", "E4", "E5", "E6", "E7"])]))
    assert not rows_of(result, "differences", first="full")
    assert any("share" in note for note in result.tables["differences"].notes) or result.tables["differences"].rows


def test_published_baseline_from_its_layers() -> None:
    layers = {
        "entropy": [3.676, 3.828, 3.852, 3.696, 3.712, 3.694, 3.578, 3.658, 3.671, 3.643, 3.609, 3.580],
        "erf95": [0.813, 0.915, 0.928, 0.851, 0.873, 0.872, 0.817, 0.861, 0.876, 0.865, 0.842, 0.836],
        "gini": [0.263, 0.174, 0.149, 0.289, 0.280, 0.313, 0.396, 0.351, 0.341, 0.359, 0.391, 0.405],
        "head_diversity": [0.169, 0.022, 0.024, 0.183, 0.144, 0.062, 0.140, 0.041, 0.023, 0.030, 0.026, 0.038],
    }
    frame = pd.DataFrame(
        [
            {"run_id": "E1", "step": 0, "layer": place, "metric": metric, "value": value}
            for metric, values in layers.items()
            for place, value in enumerate(values, 1)
        ]
    )
    runs = pd.DataFrame([{"run_id": "E1", "dataset": "eurosat", "method": "none", "seed": 42}])
    rows = {row["metric"]: row for row in analyze(Tables(runs=runs, layers=frame)).tables["baseline"].rows}
    printed = {"entropy": 3.683, "erf95": 0.862, "gini": 0.309, "head_diversity": 0.075}
    for metric, value in printed.items():
        assert f"{rows[metric]['mean']:.3f}" == f"{value:.3f}"
        assert rows[metric]["sd_layers"] == pytest.approx(np.std(layers[metric], ddof=1))
        assert rows[metric]["n_layers"] == 12
