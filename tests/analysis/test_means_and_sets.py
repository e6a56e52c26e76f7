"""Rows that are means over seeds, corrupted images, agreement of transfer sets, damaged and healthy runs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from typer.testing import CliRunner

from attndrift.analysis import Analysis, analyze
from attndrift.analysis.storing import all_tables
from attndrift.cli.main import app
from attndrift.report.page import Page
from attndrift.report.records import Records
from attndrift.report.registry import build_sections
from attndrift.results.tables import Tables, read_tables, write_tables
from benchmarks.synthetic import synthetic_tables

RETENTION = "transfer_cifar100_zero_shot_retention_pct"


def _means(runs: pd.DataFrame, measures: list[str]) -> pd.DataFrame:
    """Each configuration of ``runs`` as one row: a mean with its standard deviation and number of seeds."""
    keys = ["dataset", "method", "learning_rate", "lora_rank"]
    groups = runs[runs["method"] != "none"].groupby(keys, dropna=False)
    rows = groups[["model", "selection", "epochs", "batch_size", "weight_decay", "n_train", "status"]].first()
    rows = (
        rows.join(groups[measures].mean()).join(groups[measures].std().add_suffix("_sd")).assign(n_seeds=groups.size())
    )
    rows = rows.reset_index()
    return rows.assign(run_id=[f"row {place}" for place in range(len(rows))])


@pytest.fixture(scope="module")
def single() -> Tables:
    return synthetic_tables(rates=3, seeds=4, layers=0, evaluations=0, baseline=False)


MEASURES = ["test_accuracy", RETENTION, "entropy_change_pct", "cka_mean", "weight_drift"]


@pytest.fixture(scope="module")
def means(single: Tables) -> Tables:
    """The configurations of ``single``, a row each."""
    return Tables(runs=_means(single.runs, ["best_val_accuracy", *MEASURES]))


@pytest.fixture(scope="module")
def told(means: Tables) -> Analysis:
    return analyze(means)


@pytest.fixture(scope="module")
def alone(single: Tables) -> Analysis:
    return analyze(single)


@pytest.fixture(scope="module")
def wide() -> tuple[Tables, Analysis]:
    """Rates at which full fine-tuning damages the model, and others."""
    tables = synthetic_tables(rates=8, seeds=2, layers=0, evaluations=0)
    return tables, analyze(tables)


def _rows(tables: Tables, name: str) -> list[dict[str, Any]]:
    return analyze(tables).tables[name].rows


@pytest.mark.parametrize("measure", MEASURES)
def test_means_are_analysed_as_the_runs_behind_them(measure: str, told: Analysis, alone: Analysis) -> None:
    key = ("dataset", "variant", "learning_rate")
    runs = {tuple(row[k] for k in key): row for row in alone.tables["configurations"].rows}
    for row in told.tables["configurations"].rows:
        same = runs[tuple(row[k] for k in key)]
        assert row["n_seeds"] == same["n_seeds"] == 4
        assert row[measure] == pytest.approx(same[measure])
        assert row[f"{measure}_sd"] == pytest.approx(same[f"{measure}_sd"])


def test_means_are_no_study_of_one_seed(told: Analysis) -> None:
    assert told.data.n_seeds == 4
    assert not told.data.single_seed
    assert "one seed" not in told.data.label
    assert not any("name no seed" in note or "one seed" in note.lower() for note in told.notes)
    for table in all_tables(told).values():
        said = [*table.notes, *(value for row in table.rows for value in row.values() if isinstance(value, str))]
        assert not any("single-seed" in text.lower() or "one seed" in text.lower() for text in said), table.name


def test_findings_about_means_use_the_deviations_that_were_given(single: Tables, told: Analysis) -> None:
    """Its own retention by Student's t, two methods by Welch's, as from the runs behind the means."""
    runs = single.runs[single.runs["dataset"] == "eurosat"]

    def at_best(method: str) -> np.ndarray:
        own = runs[runs["method"] == method]
        best = own.groupby("learning_rate")["best_val_accuracy"].mean().idxmax()
        return own.loc[own["learning_rate"] == best, RETENTION].to_numpy(dtype=float)

    full, lora = at_best("full"), at_best("lora")
    low, high = stats.t.interval(0.95, 3, full.mean(), full.std(ddof=1) / 2)
    said = {f.table: f for f in reversed(told.findings) if f.sentence.startswith("On eurosat")}
    assert f"retains {full.mean():.1f}%" in said["operating_points"].sentence
    assert f"(interval {low:.1f}% to {high:.1f}%)" in said["operating_points"].sentence
    assert said["operating_points"].strength == "supported"
    expected = stats.ttest_ind(lora, full, equal_var=False)
    limits = expected.confidence_interval()
    assert f"(interval {limits.low:.1f} to {limits.high:.1f})" in said["operating_differences"].sentence
    row = told.tables["operating_differences"].rows[said["operating_differences"].rows[0]]
    assert (row["n_seeds"], row["method"]) == (4, "Welch's t, given means")
    assert row["p"] == pytest.approx(expected.pvalue)
    rows = [row for row in told.tables["changes"].rows if row["measure"] == RETENTION and row["contrast"] == "one rate"]
    assert {row["n_seeds"] for row in rows} == {4}
    assert all(row["low"] is not None for row in rows)
    assert not any("1 seed" in str(row["reason"]) for row in rows)


def test_two_means_of_one_configuration_are_pooled(single: Tables, told: Analysis) -> None:
    runs = single.runs[single.runs["method"] == "full"]
    halves = [_means(runs[runs["seed"].isin(seeds)], ["test_accuracy"]) for seeds in ([0, 1], [2, 3])]
    both = pd.concat([half.assign(run_id=half["run_id"] + f" {i}") for i, half in enumerate(halves)], ignore_index=True)
    whole = {row["configuration"]: row for row in told.tables["configurations"].rows}
    for row in _rows(Tables(runs=both), "configurations"):
        same = whole[row["configuration"]]
        assert (row["n_seeds"], row["n_runs"]) == (4, 2)
        assert row["test_accuracy"] == pytest.approx(same["test_accuracy"])
        assert row["test_accuracy_sd"] == pytest.approx(same["test_accuracy_sd"])


def test_intervals_of_means_are_those_of_the_runs(single: Tables, told: Analysis) -> None:
    tables = told.tables
    runs = single.runs[(single.runs["dataset"] == "eurosat") & (single.runs["learning_rate"] == 1e-6)]
    full, lora = (runs.loc[runs["method"] == name, RETENTION].to_numpy(dtype=float) for name in ("full", "lora"))
    low, high = stats.t.interval(0.95, 3, full.mean(), full.std(ddof=1) / math.sqrt(4))
    mine = [row for row in tables["reported_means"].rows if row["mean"] == pytest.approx(full.mean())]
    assert [(row["low"], row["high"]) for row in mine] == [(pytest.approx(low), pytest.approx(high))]
    found = stats.ttest_ind(full, lora, equal_var=False).confidence_interval()
    mine = [
        row
        for row in tables["reported_differences"].rows
        if abs(row["difference"]) == pytest.approx(abs(full.mean() - lora.mean()))
    ]
    limits = sorted(abs(limit) for row in mine for limit in (row["low"], row["high"]))
    assert limits == pytest.approx(sorted([abs(found.low), abs(found.high)]))


def test_means_go_through_the_command_line(tmp_path: Path) -> None:
    text = "method;lr;acc;cifar100 zero-shot\nfull;1e-5;95,1 ± 0,3;7,4 ± 1,2\nlora;1e-5;93,0 ± 0,4;51,0 ± 2,1\nzero-shot;;;61,3\n"
    (tmp_path / "table 2.csv").write_text(text)
    renames = ["lr=learning_rate", "acc=test_accuracy", "cifar100 zero-shot=transfer_cifar100_accuracy"]
    options = [part for rename in renames for part in ("--rename", rename)]
    options += [
        "--number-rows",
        "--map",
        "method:zero-shot=none",
        "--set",
        "n_seeds=5",
        "--set",
        "transfer_cifar100_pretrained=0.613",
    ]
    options += ["--scale", "test_accuracy=0.01", "--scale", "transfer_cifar100_zero_shot_accuracy=0.01"]
    result = CliRunner().invoke(app, ["import", str(tmp_path / "table 2.csv"), "-o", str(tmp_path / "out"), *options])
    assert result.exit_code == 0, result.exception
    result = CliRunner().invoke(app, ["analyze", str(tmp_path / "out"), "--json"])
    assert result.exit_code == 0, result.exception
    found = json.loads(result.stdout)
    assert found["data"]["n_seeds"] == 5
    assert not found["data"]["single_seed"]
    rows = {row["configuration"]: row for row in found["tables"]["configurations"]["rows"]}
    assert any(row["test_accuracy_sd"] == pytest.approx(0.003) for row in rows.values())
    runs = read_tables(tmp_path / "out").runs
    assert runs["transfer_cifar100_zero_shot_retention_pct"].round(1).tolist() == [12.1, 83.2, 100.0]


def test_the_report_shows_the_tables_that_there_are(
    means: Tables, told: Analysis, wide: tuple[Tables, Analysis]
) -> None:
    def titles(tables: Tables, analysis: Analysis) -> set[str]:
        sections = build_sections(Page(analysis, tables, Records()))
        return {getattr(block, "title", "") for one in sections if one.key == "tables" for block in one.blocks}

    given = {"Means over seeds, as they were given", "Differences of reported means under equal settings"}
    classes = "Damaged and healthy configurations"
    shown = titles(means, told)
    assert given <= shown
    assert classes not in shown
    made = titles(*wide)
    assert classes in made
    assert not given & made


# Sets


@pytest.mark.slow
def test_corrupted_accuracies_are_a_table(single: Tables, tmp_path: Path) -> None:
    n = len(single.runs)
    runs = single.runs.assign(
        corruption_gaussian_noise_accuracy=np.linspace(0.3, 0.5, n),
        corruption_jpeg_compression_accuracy=np.linspace(0.8, 0.9, n),
    )
    write_tables(Tables(runs=runs), tmp_path)
    rows = _rows(read_tables(tmp_path), "corruption")
    assert len(rows) == n / 4
    row = next(
        row for row in rows if (row["dataset"], row["variant"], row["learning_rate"]) == ("eurosat", "full", 1e-6)
    )
    own = runs[(runs["dataset"] == "eurosat") & (runs["method"] == "full") & (runs["learning_rate"] == 1e-6)]
    both = own[["corruption_gaussian_noise_accuracy", "corruption_jpeg_compression_accuracy"]]
    assert row["corruption_mean"] == pytest.approx(both.to_numpy().mean())
    assert row["corruption_loss"] == pytest.approx(own["test_accuracy"].mean() - row["corruption_mean"])
    assert "corruption" not in analyze(single).tables


@pytest.mark.slow
def test_transfer_sets_agree_or_not() -> None:
    tables = synthetic_tables(rates=4, seeds=2, layers=0, evaluations=0, transfer=("cifar100", "cifar10"))
    row = _rows(tables, "transfer_agreement")[0]
    runs = tables.runs[tables.runs["method"] != "none"]
    both = [f"transfer_{name}_zero_shot_retention_pct" for name in (row["first"], row["second"])]
    means = runs.groupby(["dataset", "method", "learning_rate"])[both].mean()
    assert row["spearman"] == pytest.approx(stats.spearmanr(means[both[0]], means[both[1]]).statistic)
    assert row["n_configurations"] == len(means)
    counts = [row[name] for name in ("both_damaged", "first_alone", "second_alone", "neither")]
    damaged = runs[both] < 50
    assert counts[0] == damaged.all(axis=1).sum()
    assert sum(counts) == len(runs)
    assert "transfer_agreement" not in analyze(synthetic_tables(rates=2, seeds=1, layers=0, evaluations=0)).tables


def test_damaged_and_healthy_configurations_have_their_means(wide: tuple[Tables, Analysis]) -> None:
    tables, analysis = wide
    rows = {row["measure"]: row for row in analysis.tables["damage"].rows}
    runs = tables.runs[tables.runs["method"] != "none"]
    means = runs.groupby(["dataset", "method", "learning_rate"])[[RETENTION, "weight_drift"]].mean()
    hurt = means[RETENTION] < 50
    row = rows["weight_drift"]
    assert (row["n_damaged"], row["n_healthy"]) == (hurt.sum(), (~hurt).sum())
    assert row["damaged_mean"] == pytest.approx(means.loc[hurt, "weight_drift"].mean())
    assert row["healthy_sd"] == pytest.approx(means.loc[~hurt, "weight_drift"].std())
    assert row["difference"] > 0 > rows[RETENTION]["difference"]
