"""Conditions on runs, and several studies as one: read from folders, through the command line and Python."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from attndrift.analysis.filters import ConditionError, matching
from attndrift.analysis.joined import load_studies
from attndrift.cli.main import app
from attndrift.results.tables import TableError, Tables, write_tables
from benchmarks.synthetic import synthetic_tables

RUNS = pd.DataFrame(
    {
        "run_id": ["a", "b", "c", "d"],
        "method": ["full", "lora", "lora", "none"],
        "learning_rate": [1e-5, 1e-5, 1e-4, None],
        "seed": pd.array([0, 1, 2, None], dtype="Int64"),
        "train_projection": pd.array([True, False, True, None], dtype="boolean"),
        "loss": ["entropy_floor:0.1", None, "entropy_floor:0.1+attention_preservation:1", None],
        "best_val_accuracy": [0.9, 0.8, 0.7, None],
        "test_accuracy": [0.8, 0.8, 0.9, None],
    }
)


@pytest.mark.parametrize(
    ("condition", "kept"),
    [
        ("method == 'lora'", "bc"),
        ('method != "lora"', "ad"),
        ("method == 'lora' and learning_rate < 5e-5", "b"),
        ("learning_rate == 0.00001", "ab"),
        ("1e-5 < learning_rate", "c"),
        ("0 <= seed <= 1", "ab"),
        ("seed in [0, 2]", "ac"),
        ("seed not in (0, 2)", "bd"),
        ("method in ('full', 'none')", "ad"),
        ("not (method == 'lora' or method == 'none')", "a"),
        ("train_projection", "ac"),
        ("not train_projection", "bd"),
        ("train_projection == False", "b"),
        ("loss == None", "bd"),
        ("loss is not None and seed > 0", "c"),
        ("'attention' in loss", "c"),
        ("'attention' not in loss", "abd"),
        ("test_accuracy > best_val_accuracy", "c"),
        ("test_accuracy == best_val_accuracy", "b"),
        ("learning_rate != 1e-5", "cd"),
        ("seed > -1", "abc"),
    ],
)
def test_a_condition_keeps_the_runs_that_meet_it(condition: str, kept: str) -> None:
    assert "".join(RUNS["run_id"][matching(RUNS, condition)]) == kept


@pytest.mark.parametrize(
    ("condition", "what"),
    [
        ("metod == 'lora'", "no column of the table runs `metod`; did you mean `method`?"),
        ("method == lora", "no column of the table runs `lora`; text stands in quotation marks: 'lora'"),
        ("seed == '1'", "`seed` is a number, and compared with text; it has 0, 1, 2, None"),
        ("method == 1", "`method` is text, and compared with a number"),
        ("method", "`method` is text; compare it"),
        ("method = 'lora'", "cannot be read"),
        ("method == 'lora' and", "cannot be read"),
        ("", "cannot be read"),
        ("1 == 1", "both no column"),
        ("seed + 1 == 2", "is no value"),
        ("method.upper() == 'LORA'", "is no value"),
        ("__import__('os').system('true')", "is no condition"),
        ("[x for x in (1,)] == method", "is no value"),
        ("(lambda: 1)() == seed", "is no value"),
        ("f'{seed}' == method", "is no value"),
        ("method < None", "smaller or larger"),
        ("train_projection > True", "smaller or larger"),
        ("method in 'lora'", "COLUMN in"),
        ("seed == [1]", "on the right of `in`"),
        ("seed == 0 " + "or seed == 1 " * 500, "characters"),
        ("(" * 500 + "seed" + ")" * 500, "cannot be read"),
        ("seed == 1\0", "cannot be read"),
    ],
)
def test_what_is_no_condition_is_named(condition: str, what: str) -> None:
    with pytest.raises(ConditionError, match=what):
        matching(RUNS, condition)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("studies") / "first"
    write_tables(synthetic_tables(rates=2, seeds=2, layers=2, heads=2, evaluations=2), folder)
    return folder


def _analysis(*arguments: str | Path) -> dict:
    result = CliRunner().invoke(app, ["analyze", *map(str, arguments), "--json"])
    assert result.exit_code == 0, result.exception
    return json.loads(result.stdout)


def test_an_analysis_of_some_runs_is_that_of_a_study_with_no_others(study: Path, tmp_path: Path) -> None:
    condition = "dataset == 'eurosat' and (method == 'full' or method == 'none')"
    chosen = _analysis(study, "--where", condition, "-o", tmp_path / "chosen")
    tables = synthetic_tables(rates=2, seeds=2, layers=2, heads=2, evaluations=2)
    kept = set(tables.runs["run_id"][matching(tables.runs, condition)])
    names = ("runs", "history", "layers")
    write_tables(
        Tables(**{n: getattr(tables, n)[getattr(tables, n)["run_id"].isin(kept)] for n in names}), tmp_path / "alone"
    )
    alone = _analysis(tmp_path / "alone", "-o", tmp_path / "analysed")
    assert chosen["notes"][0] == f"Only runs where `{condition}`: 5 of 18."
    chosen["notes"] = chosen["notes"][1:]
    assert chosen == alone


def test_a_condition_that_no_run_meets_says_what_there_is(study: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConditionError, match=r"none of 18 runs meets it. `method` has 'full', 'lora', 'none'; `seed` has 0, 1"
    ):
        load_studies([study], "method == 'lora' and seed == 7")


@pytest.mark.parametrize("command", ["figures", pytest.param("report", marks=pytest.mark.slow)])
def test_figures_and_report_show_the_chosen_runs_alone(command: str, study: Path, tmp_path: Path) -> None:
    only = ["--only", "pareto_front"] if command == "figures" else []
    condition = "dataset == 'eurosat'"
    result = CliRunner().invoke(app, [command, str(study), "--where", condition, "-o", str(tmp_path), *only])
    assert result.exit_code == 0, result.exception
    text = "".join(path.read_text() for path in tmp_path.rglob("*") if path.suffix in (".md", ".csv", ".html"))
    assert "eurosat" in text
    assert "pets_full" not in text
    assert "pets · " not in text


@pytest.mark.slow
def test_several_studies_are_one_and_their_runs_are_kept_apart(study: Path, tmp_path: Path) -> None:
    other = synthetic_tables(rates=2, seeds=2, layers=2, heads=2, evaluations=2, seed=1)
    runs = other.runs.assign(study="second", seed=other.runs["seed"] + 10)
    write_tables(Tables(runs=runs, history=other.history, layers=other.layers), tmp_path / "second")
    both = load_studies([study, tmp_path / "second"])
    assert set(both.tables.runs["run_id"].str.partition("/")[0]) == {"synthetic", "second"}
    assert len(both.tables.runs) == 36
    assert set(both.tables.history["run_id"]) <= set(both.tables.runs["run_id"])
    analysis = _analysis(study, tmp_path / "second", "-o", tmp_path / "out", "--where", "method != 'lora'")
    assert analysis["data"]["n_runs"] == 20
    assert analysis["data"]["n_seeds"] == 4
    assert "2 studies are analysed as one: synthetic, second" in analysis["notes"][0]
    report = CliRunner().invoke(app, ["report", str(study), str(tmp_path / "second"), "-o", str(tmp_path / "report")])
    assert report.exit_code == 0, report.exception
    assert "second/eurosat_full" in (tmp_path / "report" / "report.html").read_text()


def test_folders_that_do_not_go_together_are_named(study: Path, tmp_path: Path) -> None:
    tables = synthetic_tables(rates=1, seeds=1, layers=0, evaluations=0)
    for name, values in (("numbers", 1.5), ("words", "high")):
        write_tables(Tables(runs=tables.runs.assign(theirs=values)), tmp_path / name)
    with pytest.raises(TableError, match="`theirs` holds numbers in study `numbers` and text in study `words`"):
        load_studies([tmp_path / "numbers", tmp_path / "words"])
    with pytest.raises(TableError, match="given twice"):
        load_studies([study, study])
    result = CliRunner().invoke(app, ["analyze", str(study), str(tmp_path / "words")])
    assert result.exit_code == 1
    assert "--output" in result.output


def test_studies_of_one_name_are_called_by_their_folders(study: Path, tmp_path: Path) -> None:
    write_tables(synthetic_tables(rates=1, seeds=1, layers=0, evaluations=2), tmp_path / "other")
    both = load_studies([study, tmp_path / "other"], whole=True)
    assert {run.partition("/")[0] for run in both.tables.runs["run_id"]} == {"first", "other"}
