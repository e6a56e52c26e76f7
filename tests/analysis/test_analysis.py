"""The analysis as a whole: order, seeds, and everything that may be missing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from typer.testing import CliRunner

from attndrift.analysis import (
    Analysis,
    AnalysisSettings,
    analyze,
    load_tables,
    parse_analysis_settings,
    read_analysis,
)
from attndrift.analysis.configurations import prepare
from attndrift.analysis.formats import to_markdown
from attndrift.analysis.interpolation import largest_alpha
from attndrift.analysis.operating import on_front
from attndrift.analysis.schema import schema_markdown, table_meanings, tables_markdown
from attndrift.analysis.storing import all_tables, write_analysis
from attndrift.cli.main import app
from attndrift.results.tables import Tables, write_tables
from benchmarks.synthetic import synthetic_tables

QUICK = AnalysisSettings()


def tables(**options: Any) -> Tables:
    return synthetic_tables(**({"evaluations": 4, "layers": 6} | options))


@pytest.fixture(scope="module")
def usual() -> Tables:
    return tables()


@pytest.fixture(scope="module")
def result(usual: Tables) -> Analysis:
    return analyze(usual, settings=QUICK)


def shuffled(frame: pd.DataFrame, seed: int) -> pd.DataFrame:
    return frame.sample(frac=1, random_state=seed).reset_index(drop=True)


@pytest.mark.slow
def test_the_order_of_rows_and_columns_does_not_matter(usual: Tables, result: Analysis) -> None:
    other = Tables(
        runs=shuffled(usual.runs, 1)[list(reversed(usual.runs.columns))],
        history=shuffled(usual.history, 2),
        layers=shuffled(usual.layers, 3),
    )
    assert analyze(other, settings=QUICK).to_json() == result.to_json()


@pytest.mark.slow
def test_the_input_is_left_alone(usual: Tables) -> None:
    before = [frame.copy() for frame in (usual.runs, usual.history, usual.layers)]
    analyze(usual, settings=QUICK)
    for old, new in zip(before, (usual.runs, usual.history, usual.layers), strict=True):
        pd.testing.assert_frame_equal(old, new)


def test_written_and_read_again(result: Analysis, tmp_path: Path) -> None:
    paths = write_analysis(result, tmp_path)
    assert read_analysis(tmp_path) == result
    assert {path.suffix for path in paths} == {".json", ".csv", ".md", ".tex"}
    again = {path: path.read_bytes() for path in paths}
    write_analysis(result, tmp_path)
    assert {path: path.read_bytes() for path in paths} == again
    json.loads((tmp_path / "analysis.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    frame = pd.read_csv(tmp_path / "tables" / "configurations.csv")
    assert len(frame) == len(result.tables["configurations"].rows)
    assert frame["test_accuracy"].dropna().max() <= 1


def test_tables_of_an_earlier_analysis_go_and_strangers_stay(result: Analysis, tmp_path: Path) -> None:
    more = result.model_copy(deep=True)
    more.tables["old"] = more.tables["pareto"].model_copy(update={"name": "old"})
    write_analysis(more, tmp_path)
    (tmp_path / "tables" / "mine.csv").write_text("x\n")
    write_analysis(result, tmp_path)
    assert not (tmp_path / "tables" / "old.csv").exists()
    assert (tmp_path / "tables" / "mine.csv").exists()


def test_another_schema_version_is_refused(result: Analysis, tmp_path: Path) -> None:
    content = json.loads(result.to_json()) | {"schema_version": "0.1"}
    (tmp_path / "analysis.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"0\.1"):
        read_analysis(tmp_path)
    with pytest.raises(FileNotFoundError, match="attndrift analyze"):
        read_analysis(tmp_path / "nowhere")


@pytest.mark.slow
def test_from_parquet_with_all_of_layers_equals_the_cut_down_reading(tmp_path: Path) -> None:
    given_tables = tables(heads=3, seeds=2)
    middle = given_tables.layers.assign(step=50, value=given_tables.layers["value"] * 3)
    layers = pd.concat([given_tables.layers, middle[middle["run_id"].str.contains("full")]], ignore_index=True)
    whole = Tables(runs=given_tables.runs, history=given_tables.history, layers=shuffled(layers, 0))
    write_tables(whole, tmp_path)
    cut = load_tables(tmp_path)
    assert 0 < len(cut.layers) < len(whole.layers)
    mine, theirs = (json.loads(analyze(t, settings=QUICK).to_json()) for t in (cut, whole))
    assert mine["data"].pop("n_layer_rows") < theirs["data"].pop("n_layer_rows")
    assert mine == theirs
    assert mine["tables"]["baseline_heads"]["rows"]


def rows_of(result: Analysis, table: str, **wanted: Any) -> list[dict[str, Any]]:
    rows = result.tables[table].rows
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def everything_null_has_a_reason(result: Analysis) -> None:
    for name in ("differences", "changes", "operating_differences"):
        for row in result.tables[name].rows:
            assert row["p"] is not None or row["reason"], (name, row)
            assert (row["low"] is None) == (row["verdict"] == "no test"), (name, row)
    for name in ("signals", "signal_differences", "partial_associations", "early_warning"):
        for row in result.tables[name].rows:
            assert row["low"] is not None or row["reason"], (name, row)
            assert row["verdict"], (name, row)
    for row in result.tables["operating_points"].rows:
        assert row["low"] is not None or row["reason"]
    for table in result.tables.values():
        assert table.rows or table.notes, table.name
    assert len({f.id for f in result.findings}) == len(result.findings)
    for f in result.findings:
        assert "nan" not in f.sentence.lower().split()
        assert "None" not in f.sentence
        assert all(0 <= number < len(result.tables[f.table].rows) for number in f.rows)


def no_runs() -> Tables:
    return Tables(runs=pd.DataFrame({"run_id": [], "dataset": [], "method": [], "seed": []}))


def bare() -> Tables:
    return Tables(
        runs=pd.DataFrame({"run_id": ["a", "b"], "dataset": ["d", "d"], "method": ["full", "lora"], "seed": [0, 0]})
    )


def small(**options: Any) -> Tables:
    return tables(**({"datasets": ("eurosat",), "rates": 3, "seeds": 2, "layers": 4} | options))


def with_runs(**changes: Any) -> Tables:
    made = small()
    runs = made.runs.copy()
    for column, value in changes.items():
        runs[column] = value(runs) if callable(value) else value
    return Tables(runs=runs, history=made.history, layers=made.layers)


def some_null(runs: pd.DataFrame) -> pd.Series:
    return runs["cka_mean"].where(np.arange(len(runs)) % 3 != 0)


CASES = {
    "no runs": no_runs,
    "bare": bare,
    "one run": lambda: small(methods=("full",), rates=1, seeds=1, baseline=False),
    "one seed": lambda: small(seeds=1),
    "two datasets": lambda: small(datasets=("eurosat", "pets")),
    "one method": lambda: small(methods=("full",)),
    "one rate": lambda: small(rates=1),
    "two rates": lambda: small(rates=2),
    "two layers": lambda: small(layers=2),
    "seven layers": lambda: small(layers=7),
    "no layers": lambda: small(layers=0),
    "one evaluation": lambda: small(evaluations=1),
    "no transfer": lambda: small(transfer=()),
    "two transfer sets": lambda: small(transfer=("cifar100", "cifar10")),
    "only baselines": lambda: with_only_baselines(),
    "all diverged": lambda: with_runs(status="diverged"),
    "constant retention": lambda: with_runs(transfer_cifar100_zero_shot_retention_pct=100.0),
    "constant everything": lambda: with_runs(
        entropy_change_pct=0.0, cka_mean=1.0, best_val_accuracy=0.5, test_accuracy=0.5, embedding_drift=0.0
    ),
    "null signal in some": lambda: with_runs(cka_mean=some_null),
    "null rates": lambda: with_runs(learning_rate=None),
    "null validation": lambda: with_runs(best_val_accuracy=None),
    "null test accuracy": lambda: with_runs(test_accuracy=None),
    "null retention": lambda: with_runs(transfer_cifar100_zero_shot_retention_pct=None),
    "null structure": lambda: with_runs(
        **{
            f"{m}_{e}": None
            for m in ("entropy", "erf95", "gini", "head_diversity")
            for e in ("change_pct", "baseline", "final")
        }
    ),
    "ties": lambda: with_runs(
        best_val_accuracy=lambda r: r["best_val_accuracy"].round(1),
        entropy_change_pct=lambda r: r["entropy_change_pct"].round(0),
    ),
}


def with_only_baselines() -> Tables:
    made = small()
    runs = made.runs[made.runs["method"] == "none"]
    return Tables(runs=runs, layers=made.layers[made.layers["run_id"].isin(runs["run_id"])])


RARE = ("two rates", "seven layers", "two transfer sets", "constant retention", "null validation", "null structure")


@pytest.mark.one_in(8)
@pytest.mark.parametrize("case", [pytest.param(one, marks=pytest.mark.slow if one in RARE else ()) for one in CASES])
def test_nothing_missing_is_a_crash_or_a_silence(case: str, tmp_path: Path) -> None:
    found = analyze(CASES[case](), settings=QUICK)
    everything_null_has_a_reason(found)
    write_analysis(found, tmp_path)
    assert read_analysis(tmp_path) == found


@pytest.mark.slow
def test_history_and_layers_may_be_absent(usual: Tables) -> None:
    found = analyze(Tables(runs=usual.runs), settings=QUICK)
    everything_null_has_a_reason(found)
    assert any("`history` is empty" in note for note in found.notes)
    assert not rows_of(found, "signals", when="first epoch")


@pytest.mark.slow
def test_diverged_runs_are_listed_and_left_out(usual: Tables, result: Analysis) -> None:
    runs = usual.runs.copy()
    lost = runs.index[(runs["method"] == "full") & (runs["seed"] == 0)]
    runs.loc[lost, "status"] = "diverged"
    runs.loc[lost, "entropy_change_pct"] = -99.0
    found = analyze(Tables(runs=runs, history=usual.history, layers=usual.layers), settings=QUICK)
    assert {item.run_id for item in found.data.excluded} == set(runs.loc[lost, "run_id"])
    assert {row["run_id"] for row in found.tables["runs"].rows} == {row["run_id"] for row in result.tables["runs"].rows}
    for row in rows_of(found, "differences", measure="entropy_change_pct", contrast="mean of rates"):
        assert (row["n_rates"], row["n_seeds"]) == (4, 2)
        assert abs(row["first_mean"]) < 20
    rows = [row for row in found.tables["configurations"].rows if row["variant"] == "full"]
    assert {row["n_runs"] for row in rows} == {2}


def test_each_dataset_is_compared_by_itself(usual: Tables, result: Analysis) -> None:
    """Never one mean over several targets; unequal seeds are paired by those that both have."""
    runs = usual.runs[usual.runs["method"] != "none"]
    found = rows_of(result, "differences", measure="entropy_change_pct", contrast="mean of rates")
    assert [row["dataset"] for row in found] == ["eurosat", "pets"]
    for row in found:
        own = runs[runs["dataset"] == row["dataset"]]
        a, b = (own[own["method"] == m].groupby("seed")["entropy_change_pct"].mean() for m in ("full", "lora"))
        assert row["estimate"] == pytest.approx((a - b).mean())
        assert row["sd"] == pytest.approx((a - b).std())
    fewer = runs[~((runs["method"] == "lora") & (runs["seed"] == 2) & (runs["dataset"] == "pets"))]
    again = analyze(Tables(runs=fewer), settings=QUICK)
    counts = {
        row["dataset"]: row["n_seeds"] for row in rows_of(again, "differences", measure="cka_mean", contrast="one rate")
    }
    assert counts == {"eurosat": 3, "pets": 2}


@pytest.mark.slow
def test_runs_that_differ_in_another_setting_are_no_pair(usual: Tables) -> None:
    runs = usual.runs.copy()
    runs.loc[runs["method"] == "lora", "batch_size"] = 64
    found = analyze(Tables(runs=runs), settings=QUICK)
    assert found.tables["differences"].rows == []
    assert any("share dataset, settings and learning rate" in note for note in found.notes)


@pytest.mark.slow
def test_methods_without_a_shared_seed_are_compared_all_the_same(usual: Tables) -> None:
    runs = usual.runs[usual.runs["method"] != "none"].copy()
    lora = runs["method"] == "lora"
    runs.loc[lora, "seed"] += 100
    found = analyze(Tables(runs=runs), settings=QUICK)
    (row,) = rows_of(found, "differences", measure="cka_mean", contrast="mean of rates", dataset="pets")
    own = runs[runs["dataset"] == "pets"]
    a, b = (own[own["method"] == m].groupby("seed")["cka_mean"].mean() for m in ("full", "lora"))
    expected = stats.ttest_ind(a, b, equal_var=False)
    assert row["method"] == "Welch's t, no shared seed"
    assert row["p"] == pytest.approx(expected.pvalue)
    assert (row["low"], row["high"]) == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_a_large_effect_is_supported_and_noise_is_not() -> None:
    made = tables(datasets=("a", "b"), rates=4, seeds=5)
    runs = made.runs.copy()
    noise = np.random.default_rng(0).standard_normal(len(runs))
    runs["entropy_change_pct"] = 3 * noise
    runs["transfer_cifar100_zero_shot_retention_pct"] = np.where(runs["method"] == "full", 20.0, 99.5) + noise
    found = analyze(Tables(runs=runs), settings=QUICK)
    verdicts = {
        (row["dataset"], row["measure"]): row["verdict"]
        for row in rows_of(found, "differences", contrast="mean of rates")
    }
    assert {verdicts[name, "transfer_cifar100_zero_shot_retention_pct"] for name in "ab"} == {"lower"}
    assert {verdicts[name, "entropy_change_pct"] for name in "ab"} == {"no evidence"}
    told = [f for f in found.findings if f.topic == "methods"]
    assert told
    assert {f.strength for f in told} == {"supported"}
    assert all(f.sentence.startswith(("On a: ", "On b: ")) for f in found.findings)
    kept = rows_of(found, "changes", variant="LoRA r=8", measure="transfer_cifar100_zero_shot_retention_pct")
    assert {row["verdict"] for row in kept if row["contrast"] == "mean of rates"} == {"equivalent"}
    assert any("preserves the zero-shot accuracy on cifar100 within 2 points" in f.sentence for f in found.findings)


@pytest.mark.slow
def test_equal_answers_of_two_weight_decays_are_one_test(usual: Tables, result: Analysis) -> None:
    again = usual.runs[usual.runs["method"] != "none"].copy()
    again["run_id"], again["weight_decay"] = again["run_id"] + "_wd", 0.1
    found = analyze(Tables(runs=pd.concat([usual.runs, again], ignore_index=True)), settings=QUICK)
    for name in ("differences", "changes", "operating_differences"):
        counts = [len([row for row in r.tables[name].rows if "blocks" not in row["measure"] and "late" not in row["measure"]])
                  for r in (found, result)]  # fmt: skip
        assert counts[0] == counts[1], name
    assert any("repeat the numbers of another one of a different weight decay" in note for note in found.notes)


def test_findings_name_dataset_and_model_where_there_are_two(usual: Tables) -> None:
    other = usual.runs[(usual.runs["dataset"] == "pets") & (usual.runs["method"] != "none")].copy()
    other["run_id"], other["model"] = other["run_id"] + "_b", "vit-b"
    one = usual.runs[(usual.runs["dataset"] == "pets") & (usual.runs["method"] != "none")]
    found = analyze(Tables(runs=pd.concat([one, other], ignore_index=True)), settings=QUICK)
    assert {f.sentence.split(":")[0] for f in found.findings} == {"On synthetic-vit", "On vit-b"}


NUMBER = re.compile(r"(?<![\w.-])[-+]?\d[\d.]*(?:e-?\d+)?")


@pytest.mark.one_in(3)
@pytest.mark.parametrize("options", [{"seeds": 1}, {"seeds": 3}, {"seeds": 5, "datasets": ("a",)}])
def test_findings_are_short_and_name_their_rows(options: dict[str, Any]) -> None:
    found = analyze(tables(transfer=("objects",), **options), settings=QUICK)
    assert {"transfer", "methods", "entropy"} <= {f.topic for f in found.findings}
    for finding in found.findings:
        text = finding.sentence.replace("LoRA r=8", "LoRA")
        assert len(NUMBER.findall(text)) <= 4, finding.sentence
        assert len(re.findall(r"\.(?: |$)", text)) <= 2, finding.sentence
        assert finding.table in found.tables
        assert finding.rows or "no run beside" in finding.sentence
    # The caveat of one seed is said once.
    assert sum("another seed moved the retention by" in note for note in found.notes) == (options["seeds"] == 1)
    assert not any("seed" in f.sentence for f in found.findings)


def test_no_word_stands_against_its_interval(result: Analysis) -> None:
    for name in ("differences", "changes", "operating_differences"):
        for row in result.tables[name].rows:
            if row["low"] is None:
                assert row["verdict"] == "no test"
            elif row["low"] > 0 or row["high"] < 0:
                assert row["verdict"] != "no evidence", row
            else:
                assert row["verdict"] in ("no evidence", "equivalent"), row


def test_one_seed_is_never_supported() -> None:
    found = analyze(tables(seeds=1, rates=6), settings=QUICK)
    assert {f.strength for f in found.findings} == {"descriptive"}
    assert found.data.single_seed
    assert {row["verdict"] for row in found.tables["differences"].rows} == {"no test"}
    # What seeds would do is taken from published runs, and said to be.
    assert {row["source"] for row in found.tables["power"].rows} == {
        "39 published runs (CLIP ViT-B/32, EuroSAT, three seeds)"
    }
    assert all("Single-seed study" in to_markdown(table) for table in all_tables(found).values())


def test_selection_rules_share_ties() -> None:
    runs = pd.DataFrame(
        {
            "run_id": list("abcd"),
            "dataset": "d",
            "method": "full",
            "seed": range(4),
            "best_val_accuracy": [0.90, 0.89, 0.88, 0.80],
            "embedding_drift": [0.5, 0.1, 0.1, 0.0],
            "transfer_s_zero_shot_retention_pct": [10.0, 30.0, 50.0, 99.0],
        }
    )
    found = rows_of(analyze(Tables(runs=runs), settings=QUICK), "selection_rules", margin_points=2.0)
    rules = {row["rule"]: row for row in found}
    assert {row["n_runs"] for row in found} == {3}
    assert (rules["oracle"]["retention_pct"], rules["random"]["retention_pct"]) == (50.0, 30.0)
    tied = rules["lowest embedding_drift"]
    assert (tied["n_tied"], tied["retention_pct"]) == (2, 40.0)
    assert tied["reason"] is not None


def test_retention_is_never_invented(usual: Tables) -> None:
    """Null retention beside accuracies means: pretrained too close to chance. It stays null."""
    runs = usual.runs.assign(transfer_cifar100_zero_shot_retention_pct=None)
    found = analyze(Tables(runs=runs), settings=QUICK)
    assert not found.tables["signals"].rows
    assert any("at chance" in note for note in found.notes)


@pytest.mark.slow
def test_contradicting_changes_are_named(usual: Tables) -> None:
    runs = usual.runs.copy()
    runs.loc[runs["run_id"] == "pets_full_1e-05_1", "gini_change_pct"] += 5
    notes = analyze(Tables(runs=runs), settings=QUICK).notes
    assert any("pets_full_1e-05_1" in note and "contradicts" in note for note in notes)


def test_which_blocks_are_early_and_late_is_said_of_every_model() -> None:
    parts, names = [], [("a", 7), ("b", 7), ("c", 12), ("d", 2), (None, 8)]
    for name, layers in names:
        one = tables(layers=layers, datasets=("eurosat",), methods=("full",), rates=1, seeds=1, evaluations=2)
        one.runs["model"] = name
        for frame in (one.runs, one.history, one.layers):
            frame["run_id"] += f"_{name}"
        parts.append(one)
    runs, history, layers = (
        pd.concat([getattr(one, name) for one in parts], ignore_index=True) for name in ("runs", "history", "layers")
    )
    notes = analyze(Tables(runs=runs, history=history, layers=layers), settings=QUICK).notes
    assert [note for note in notes if note.startswith("Blocks of")] == [
        "Blocks of `d` (2): too few for early, middle, late.",
        "Blocks of `a`, `b` (7): early 1-3, middle 4-5, late 6-7.",
        "Blocks of a model without a name (8): early 1-3, middle 4-6, late 7-8.",
        "Blocks of `c` (12): early 1-4, middle 5-8, late 9-12.",
    ]


def test_onset_and_convergence(usual: Tables) -> None:
    runs = usual.runs[usual.runs["run_id"] == "pets_full_1e-05_1"]
    history = pd.DataFrame(
        {
            "run_id": "pets_full_1e-05_1",
            "step": [0, 10, 20, 30, 40],
            "epoch": [0, 1, 2, 3, 4],
            "entropy_change_pct": [0.0, -0.9, -1.0, -0.2, -3.0],
            "val_accuracy": [None, 0.5, 0.893, 0.90, 0.88],
        }
    )
    (row,) = analyze(Tables(runs=runs, history=history), settings=QUICK).tables["dynamics_runs"].rows
    assert (row["onset_step"], row["onset_epoch"], row["collapsed"]) == (20, 2, True)
    assert (row["converged_epoch_best"], row["converged_epoch_final"]) == (2, 2)
    assert (row["best_val_accuracy"], row["final_val_accuracy"]) == (0.90, 0.88)


points = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=15)


@settings(max_examples=100, deadline=None)
@given(points)
def test_front_is_what_nothing_dominates(items: list[tuple[int, int]]) -> None:
    a, b = (np.array(column, dtype=float) for column in zip(*items, strict=True))
    slow = [not any((x >= p and y >= q) and (x > p or y > q) for x, y in items) for p, q in items]
    assert (on_front(a, b) > 0).tolist() == slow


def test_alpha_keeps_all_the_way() -> None:
    alpha = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
    assert largest_alpha(alpha, np.array([100, 95, 80, 97, 60.0]), 90) == pytest.approx(0.25 + 0.25 * 5 / 15)
    assert largest_alpha(alpha, np.array([100, 99, 98, 97, 96.0]), 90) == 1.0
    assert largest_alpha(alpha, np.array([80, 99, 98, 97, 96.0]), 90) is None
    assert largest_alpha(alpha, np.full(5, np.nan), 90) is None


def test_spellings_of_one_setting_are_one_configuration(usual: Tables) -> None:
    runs = usual.runs[usual.runs["method"] == "lora"].copy()
    first = runs["seed"] == 0
    runs["lora_targets"] = np.where(first, "['q_proj', 'v_proj']", "v,q")
    runs["lora_alpha"] = runs["lora_alpha"].where(first)
    runs["learning_rate"] = runs["learning_rate"] * np.where(first, 1 + 1e-12, 1.0)
    runs["freeze_layers"] = pd.array(np.where(first, 0, -1), dtype="Int64").astype("Int64")
    runs.loc[runs["freeze_layers"] == -1, "freeze_layers"] = pd.NA
    found = analyze(Tables(runs=runs), settings=QUICK)
    assert {row["n_seeds"] for row in found.tables["configurations"].rows} == {3}
    assert found.data.methods == ["LoRA r=8"]


def test_alpha_is_chosen_by_the_predictions_that_stay() -> None:
    """On the transfer images without their labels; what it kept is read off the labels afterwards."""
    run = {"run_id": "a", "dataset": "d", "method": "full", "seed": 0, "transfer_s_zero_shot_pretrained": 0.6}
    sweep = pd.DataFrame(
        {
            "run_id": "a",
            "alpha": [0.0, 0.5, 1.0],
            "test_accuracy": [0.1, 0.7, 0.9],
            "transfer_s_zero_shot_accuracy": [0.6, 0.57, 0.3],
            "transfer_s_zero_shot_agreement": [1.0, 0.92, 0.52],
        }
    )
    runs = pd.DataFrame(
        [run | {"transfer_s_zero_shot_accuracy": 0.3, "transfer_s_zero_shot_retention_pct": 50.0, "test_accuracy": 0.9}]
    )
    found = analyze(Tables(runs, interpolation=sweep), settings=QUICK)
    rows = {(r["wanted_pct"], r["rule"]): r for r in found.tables["interpolation_choice"].rows}
    row = rows[90.0, "agreement"]
    assert row["alpha"] == pytest.approx(0.5 + 0.5 * 0.02 / 0.4)
    assert row["retention_pct"] == pytest.approx(95 - 45 * (row["alpha"] - 0.5) / 0.5)
    assert row["best_alpha"] == pytest.approx(0.5 + 0.5 * 5 / 45)
    assert row["retained"]
    assert rows[95.0, "agreement"]["alpha"] == pytest.approx(0.5 * 0.05 / 0.08)
    assert rows[90.0, "cka"]["reason"] == "`cka_mean` was not measured along alpha"


def test_settings_from_text() -> None:
    made = parse_analysis_settings(["damaged_below_pct=60", "least_accuracies=0.8, 0.9"])
    assert (made.damaged_below_pct, made.least_accuracies) == (60.0, (0.8, 0.9))
    for wrong, said in (
        ("damaged=60", "did you mean `damaged_below_pct`"),
        ("level=2", "`level` is '2': must be a number, above 0.5 and below 1"),
        ("max_sweeps=1.5", "`max_sweeps` is '1.5': must be a whole number, at least 1"),
        ("alpha", "NAME=VALUE"),
    ):
        with pytest.raises(ValueError, match=said):
            parse_analysis_settings([wrong])


def test_the_command_prints_json_for_programs(tmp_path: Path) -> None:
    write_tables(small(), tmp_path)
    arguments = [
        "analyze",
        str(tmp_path),
        "--json",
        "--set",
        "damaged_below_pct=80",
    ]
    printed = CliRunner().invoke(app, arguments)
    assert printed.exit_code == 0, printed.output
    assert json.loads(printed.stdout) == json.loads((tmp_path / "analysis.json").read_text())
    assert json.loads(printed.stdout)["settings"]["damaged_below_pct"] == 80


def test_unknown_settings_are_errors() -> None:
    with pytest.raises(ValueError, match="damaged_below"):
        AnalysisSettings(damaged_below=10)  # type: ignore[call-arg]


def test_the_schema_page_is_current_and_complete(result: Analysis) -> None:
    page = Path(__file__).parents[2] / "docs" / "analysis-schema.md"
    assert page.read_text(encoding="utf-8") == schema_markdown(), (
        "write it again: python -c 'from attndrift.analysis.schema import schema_markdown as s; print(s(), end=\"\")'"
    )
    # Made only where the runs have their columns.
    optional = {
        "corruption",
        "transfer_agreement",
        "damage",
        "reported_means",
        "reported_differences",
        "suites",
        "transfer_matrix",
    }
    assert set(result.tables) <= set(table_meanings())
    assert set(table_meanings()) - set(result.tables) <= optional
    page = page.with_name("tables.md")
    assert page.read_text(encoding="utf-8") == tables_markdown(), (
        "write it again: python -c 'from attndrift.analysis.schema import tables_markdown as s; print(s(), end=\"\")'"
    )


def test_runs_with_several_losses_are_a_method_of_their_own() -> None:
    """They are neither the plain runs nor those with one of the losses."""
    losses = [
        None,
        "attention_preservation:0.1",
        "attention_preservation:0.1+entropy_floor:0.01",
        "attention_preservation:0",
    ]
    rows = [
        {
            "run_id": f"r{n}",
            "dataset": "d",
            "method": "full",
            "seed": 0,
            "learning_rate": 1e-5,
            "loss": loss,
            "test_accuracy": 0.9,
        }
        for n, loss in enumerate(losses)
    ]
    variants = prepare(Tables(runs=pd.DataFrame(rows))).runs.sort_values("run_id")["variant"].tolist()
    assert variants == ["full", "full + APR 0.1", "full + attention_preservation:0.1+entropy_floor:0.01", "full"]
