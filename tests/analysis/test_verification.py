"""`attndrift verify`: results beside published values."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from reference_records import convert, read_records, reference_folder
from scipy import stats
from typer.testing import CliRunner

from attndrift.analysis.verification import LEVEL, Verification, verify, welch_tolerance
from attndrift.cli.main import app
from attndrift.results.tables import Tables, columns_of, write_tables
from attndrift.study.expected_values import expected_values, parse_expected, verified_presets
from attndrift.study.loading import StudyError, load_study, parse_study
from attndrift.study.setting_columns import setting_columns

STUDY = """
name: small
shared: {dataset: tiles, epochs: 3, transfer: [objects]}
runs:
  - {method: full, grid: {learning_rate: [1e-5, 1e-4], seed: [0, 1, 2]}}
  - {method: linear_probe, seed: 0}
"""
EXPECTED = """
sources: {paper: "Somebody 2020, table 1"}
tables:
  - source: paper
    n: 3
    where: {dataset: tiles}
    columns: [method, learning_rate, test_accuracy, cka_mean]
    rows:
      - [full, 1e-5, 90.0 ± 1.0, 0.90]
      - [full, 1e-4, 95.0 ± 1.0, ""]
  - {source: paper, where: {method: linear_probe}, columns: [test_accuracy, transfer_objects_zero_shot_accuracy], rows: [["80.0", "60.0"]]}
tolerances:
  - {quantity: cka_mean, sd: 0.02, df: 8, why: "a deviation over seeds that somebody gave"}
  - {quantity: test_accuracy, within: 0.5, why: "a number of one seed, whatever it is"}
not_comparable:
  - {quantity: "transfer_*", why: "measured through no adapter"}
"""


def results(values: dict[tuple[str, float | None], list[float]], **changed: Any) -> Tables:
    """Test accuracies by (method, rate), a run each, of the study above; ``changed``: other columns of all of them."""
    rows = []
    for run in load_small().runs:
        own = values.get((run.settings.method, run.settings.learning_rate), [])
        if run.settings.seed < len(own):
            measured = {
                "test_accuracy": own[run.settings.seed],
                "cka_mean": 0.9,
                "transfer_objects_zero_shot_accuracy": 0.1,
            }
            rows.append(
                setting_columns(run.settings)
                | {"run_id": f"theirs-{len(rows)}", "status": "finished"}
                | measured
                | changed
            )
    return Tables(runs=pd.DataFrame(rows or {"run_id": [], "method": []}))


@functools.cache
def load_small() -> Any:
    return parse_study(STUDY, where="small.yaml")


def verdicts(found: Verification) -> list[tuple[str, str]]:
    return [(row.quantity, row.verdict) for row in found.rows]


@pytest.mark.parametrize(
    ("sd", "n", "own_sd", "m"), [(1.0, 3, 1.0, 3), (4.3, 3, 2.0, 5), (0.2, 5, 0.7, 2), (0.07, 3, 0.0, 3)]
)
def test_the_tolerance_is_where_welchs_p_is_one_percent(sd: float, n: int, own_sd: float, m: int) -> None:
    edge = welch_tolerance(sd, n, n - 1, own_sd, m)
    found = stats.ttest_ind_from_stats(edge, sd, n, 0.0, own_sd, m, equal_var=False)
    assert found.pvalue == pytest.approx(1 - LEVEL)


def test_one_run_of_ours_has_the_published_deviation() -> None:
    """A prediction interval: t of the published degrees of freedom, sd * sqrt(1/n + 1)."""
    assert welch_tolerance(2.0, 3, 2, None, 1) == pytest.approx(stats.t.ppf(0.995, 2) * 2.0 * np.sqrt(1 / 3 + 1))
    assert welch_tolerance(0.25, 1, 16, None, 1) == pytest.approx(stats.t.ppf(0.995, 16) * 0.25 * np.sqrt(2))
    assert welch_tolerance(0.0, 3, 2, None, 1) == 0.0


def test_one_exact_repetition_in_a_hundred_is_out_of_tolerance() -> None:
    draw = np.random.default_rng(0).normal(size=(4000, 2, 5))
    mean, sd = draw.mean(-1), draw.std(-1, ddof=1)
    out = [abs(m[0] - m[1]) > welch_tolerance(s[0], 5, 4, s[1], 5) for m, s in zip(mean, sd, strict=True)]
    assert 0.005 < np.mean(out) < 0.014


def test_verdicts_of_made_results() -> None:
    values = {("full", 1e-5): [0.89, 0.90, 0.91], ("full", 1e-4): [0.80, 0.81, 0.80], ("linear_probe", 1e-5): [0.806]}
    found = verify(load_small(), parse_expected(EXPECTED, "made"), results(values))
    assert verdicts(found) == [
        ("test_accuracy", "within"),
        ("cka_mean", "within"),
        ("test_accuracy", "out of tolerance"),
        ("test_accuracy", "out of tolerance"),
        ("transfer_objects_zero_shot_accuracy", "not comparable"),
    ]
    first, second = found.rows[0], found.rows[1]
    # A printed deviation of 1.0 may be 1.05; a printed 90.0 may be 90.05.
    assert first.ours == pytest.approx(90.0)
    assert first.tolerance == pytest.approx(welch_tolerance(1.05, 3, 2, 1.0, 3) + 0.05)
    # Ours do not vary: the whole variance is the published one.
    assert second.tolerance == pytest.approx(stats.t.ppf(0.995, 8) * 0.02 / np.sqrt(3) + 0.005)
    assert found.rows[4].why == "measured through no adapter"
    assert (found.missing, found.others, found.out_of_tolerance) == ([], [], True)


@pytest.mark.parametrize("kept", range(4))
def test_a_missing_run_is_never_within(kept: int) -> None:
    values = {("full", 1e-5): [0.90] * kept}
    found = verify(load_small(), parse_expected(EXPECTED, "made"), results(values))
    verdict = {0: "missing", 1: "incomplete", 2: "incomplete", 3: "within"}[kept]
    assert [row.verdict for row in found.rows[:2]] == [verdict] * 2
    assert [row.verdict for row in found.rows[2:4]] == ["missing"] * 2
    assert (found.rows[0].found, found.rows[0].runs) == (kept, 3)
    assert len(found.missing) == 7 - kept
    assert not found.out_of_tolerance


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("column", "value"),
    [("epochs", 20), ("batch_size", 8), ("weight_decay", 0.1), ("model", "other"), ("dataset", "critters"), ("selection", "test"),
     ("loss", "l2_sp:1"), ("head", "cosine"), ("freeze_layers", 2), ("train_projection", False), ("seed", 9), ("outcome", "ema:0.9"),
     ("status", "diverged")],
)  # fmt: skip
def test_results_of_other_settings_are_no_results_of_the_study(column: str, value: Any) -> None:
    found = verify(
        load_small(), parse_expected(EXPECTED, "made"), results({("full", 1e-5): [0.9] * 3}, **{column: value})
    )
    assert {row.verdict for row in found.rows} <= {"missing", "not comparable"}
    assert len(found.others) == (0 if column == "status" else 3), (
        "a run that diverged has no result, and is none of another study"
    )


def test_a_result_that_does_not_say_its_epochs_is_taken_to_have_them() -> None:
    tables = results({("full", 1e-5): [0.9] * 3}, epochs=None, weight_decay=None, model=None)
    assert verdicts(verify(load_small(), parse_expected(EXPECTED, "made"), tables))[0] == ("test_accuracy", "within")


@pytest.mark.parametrize("preset", verified_presets())
def test_the_expected_values_of_presets(preset: str) -> None:
    """Every number is about runs that the preset has, names a column, a source, and a tolerance or a reason."""
    study, values = load_study(preset), expected_values(preset)
    runs = [setting_columns(run.settings) | {"run_id": run.run_id} for run in study.runs]
    names = {
        f"transfer_{name}_zero_shot_{end}"
        for run in study.runs
        for name in run.settings.transfer
        for end in ("accuracy", "retention_pct")
    }
    frame = pd.DataFrame(runs).assign(**dict.fromkeys(names, None))
    known = {column.name for column in columns_of("runs", frame)} | {"mean_linear_probe_change_points"}
    assert {value.quantity for value in values} <= known
    assert all(len(value.source) > 20 for value in values)
    found = verify(study, values, Tables(runs=frame.assign(status="finished")))
    assert {row.verdict for row in found.rows} <= {"missing", "not comparable"}
    printed = {(tuple(value.where.items()), value.quantity) for value in values}
    assert len(printed) == len(values), "a number stands twice"


def test_a_mean_over_transfer_sets_needs_all_of_them() -> None:
    text = """
sources: {paper: "Somebody 2020, table 1"}
tables:
  - source: paper
    where: {method: full, learning_rate: 1e-5}
    columns: [mean_zero_shot_accuracy, mean_zero_shot_change_points]
    rows: [[40.0, -10.0]]
tolerances: [{quantity: "*", within: 0.5, why: "a number of one seed, whatever it is"}]
"""
    study = parse_study(STUDY.replace("[objects]", "[objects, critters]"), where="small.yaml")
    sets = {"objects": (0.5, -5.0), "critters": (0.3, -15.0)}
    columns = {f"transfer_{name}_zero_shot_accuracy": value for name, (value, _) in sets.items()}
    columns |= {f"transfer_{name}_zero_shot_change_points": value for name, (_, value) in sets.items()}
    tables = results({("full", 1e-5): [0.9] * 3}, **columns)
    found = verify(study, parse_expected(text, "made"), tables)
    assert [(row.ours, row.verdict) for row in found.rows] == [
        (pytest.approx(40.0), "within"),
        (pytest.approx(-10.0), "within"),
    ]
    tables.runs["transfer_critters_zero_shot_accuracy"] = None
    found = verify(study, parse_expected(text, "made"), Tables(runs=tables.runs))
    assert [row.verdict for row in found.rows] == ["missing", "within"]


def test_the_transfer_of_the_original_study_is_not_comparable() -> None:
    values = [value for value in expected_values("collapse-21") if value.quantity.startswith("transfer_")]
    assert len(values) == 4
    assert all("artefact" in value.not_comparable for value in values)


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["verify", *map(str, arguments)])


def test_the_39_published_records(tmp_path: Path) -> None:
    """Imported as anyone's records are: the part on EuroSAT with ViT-B/32 is within, the rest is missing."""
    records = [record for record in read_records(reference_folder()) if "sweep" not in record]
    convert(records).runs.dropna(axis=1, how="all").to_csv(tmp_path / "runs.csv", index=False)
    imported = CliRunner().invoke(app, ["import", str(tmp_path / "runs.csv"), "--output", str(tmp_path / "imported")])
    assert imported.exit_code == 0, imported.output
    printed = invoke("dose-response-84", "--results", tmp_path / "imported", "--json")
    assert printed.exit_code == 0, printed.output
    found = json.loads(printed.stdout)
    assert found["counts"] == {"within": 104, "missing": 96}
    rows = found["rows"]
    here = [row["where"]["dataset"] == "eurosat" and row["where"]["model"].endswith("patch32") for row in rows]
    assert [row["verdict"] == "within" for row in rows] == here
    # The same runs: what is left is the rounding of the publication.
    assert all(abs(row["difference"]) <= 0.51 * 10 ** -row["digits"] for row in rows if row["verdict"] == "within")
    assert len(found["missing"]) == 84 - 39


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A study file with its published values beside it, and results in a folder."""
    (tmp_path / "small.yaml").write_text(STUDY)
    (tmp_path / "small.expected.yaml").write_text(EXPECTED)
    write_tables(results({("full", 1e-5): [0.89, 0.90, 0.91]}), tmp_path / "results")
    return tmp_path / "small.yaml"


def test_a_study_of_ones_own_has_published_values_beside_it(small: Path) -> None:
    printed = invoke(small, "--results", small.parent / "results")
    assert printed.exit_code == 0, printed.output
    for text in ("2 within, 2 missing, 1 not comparable", "Test accuracy", "90.0 ± 1.0", "measured through no adapter",
                 "Somebody 2020", "tiles_linear-probe_"):  # fmt: skip
        assert text in printed.stdout
    write_tables(results({("full", 1e-5): [0.5, 0.5, 0.5]}), small.parent / "results")
    printed = invoke(small, "--results", small.parent / "results")
    assert printed.exit_code == 3
    assert "1 out of tolerance" in printed.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no-such-preset"], "no-such-preset"),
        (["demo"], "preset demo has no published values; collapse-21"),
        (["collapse-21"], "attndrift run collapse-21"),
        (["collapse-21", "--results", "nowhere"], "no runs.parquet here"),
        (["small.yaml", "--results", "small.yaml"], "small.yaml"),
        (["alone.yaml"], "alone.expected.yaml: no such file"),
    ],
)
def test_bad_input_exits_with_2(small: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str) -> None:
    monkeypatch.chdir(small.parent)
    (small.parent / "alone.yaml").write_text(STUDY)
    printed = invoke(*arguments)
    assert printed.exit_code == 2, printed.output
    assert said in " ".join(printed.stderr.split())


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("90.0 ± 1.0", "ninety", "'ninety' in column `test_accuracy` is no number"),
        ("[full, 1e-4, 95.0 ± 1.0, \"\"]", "[full, 1e-4]", "row 2 of a table has 2 cells for 4 columns"),
        ("source: paper\n    n", "source: papre\n    n", "papre"),
        ("where: {dataset: tiles}", "where: {datset: tiles}", "datset"),
        ("why: \"measured through no adapter\"", "why: no", "not_comparable.0.why"),
        ("sd: 0.02, df: 8", "sd: 0.02", "tolerances.0"),
        ("within: 0.5, ", "", "tolerances.1"),
        ("not_comparable:\n", "not_comparable:\n  - {quantity: cka_last, why: nobody measured it}\n", "no table has such a column"),
        ("  - {quantity: cka_mean, sd: 0.02, df: 8, why: \"a deviation over seeds that somebody gave\"}\n", "", "no deviation, no tolerance"),
        ("test_accuracy, cka_mean]", "test_accuracy, test_accuracy]", "name `test_accuracy` more than once"),
        ("columns: [test_accuracy, transfer", "columns: [method, method, transfer", "name `method` more than once"),
        ("tolerances:\n", "tolerances:\n  - {quantity: test_accuracy, where: {method: lora}, within: 1, why: nobody published it}\n", "about `test_accuracy` where {method: lora}, and no row"),
        ("not_comparable:\n", "not_comparable:\n  - {quantity: cka_mean, where: {seed: 4}, why: nobody published it}\n", "where {seed: 4}, and no row"),
        ("[[\"80.0\", \"60.0\"]]", "[[\"80.0\", \"60.0\"]]}\n  - {source: paper, columns: [entropy_change_pct], rows: [[37.50 ± 0.10]]", "`entropy_change_pct` 37.50 ± 0.10 is of one seed, which has no deviation; give the table `n`"),
        ("{dataset: tiles}", "{dataset: 1:30}", "a number to some YAML readers"),
    ],
)  # fmt: skip
def test_damaged_files_of_published_values(old: str, new: str, said: str) -> None:
    assert old in EXPECTED
    with pytest.raises(StudyError) as refused:
        parse_expected(EXPECTED.replace(old, new), "made.expected.yaml")
    assert "made.expected.yaml" in str(refused.value)
    assert said in str(refused.value)


def test_a_condition_that_no_run_meets_is_named() -> None:
    values = parse_expected(EXPECTED.replace("[full, 1e-4,", "[full, 3e-4,"), "made")
    with pytest.raises(ValueError, match=r"learning_rate 0\.0003: no run of the study small is that"):
        verify(load_small(), values, results({}))


@pytest.mark.parametrize(
    ("quantity", "said"),
    [
        ("cka_maen", "there is no quantity `cka_maen`; did you mean `cka_mean`?"),
        ("transfer_objcets_zero_shot_accuracy", "did you mean `transfer_objects_zero_shot_accuracy`?"),
        ("mean_knn_accuracy", "there is no quantity `mean_knn_accuracy`"),
        ("run_id", "column `run_id` of the table runs holds no numbers"),
        ("status", "column `status` of the table runs holds no numbers"),
        ("maker", "column `maker` of the table runs holds no numbers"),
    ],
)
def test_a_quantity_that_is_no_number_of_the_runs_is_refused(small: Path, quantity: str, said: str) -> None:
    write_tables(results({("full", 1e-5): [0.9]}, maker="somebody"), small.parent / "results")
    beside = small.parent / "small.expected.yaml"
    beside.write_text(EXPECTED.replace("cka_mean", quantity))
    printed = invoke(small, "--results", small.parent / "results")
    assert printed.exit_code == 2, printed.output
    assert said in " ".join(printed.stderr.split())


@pytest.mark.parametrize(
    ("column", "value", "verdict"),
    [
        ("transfer_objects_zero_shot_n", 500, "within"),
        ("transfer_mine_zero_shot_n", 500, "within"),
        ("their_number", 500, "within"),
        ("transfer_objects_zero_shot_pretrained", None, "missing"),
    ],
)
def test_every_number_column_is_compared(column: str, value: Any, verdict: str) -> None:
    """One of a planned transfer set may be absent: its runs may not be there yet."""
    text = f"""
sources: {{paper: "Somebody 2020, table 1"}}
tables: [{{source: paper, where: {{method: full, learning_rate: 1e-5}}, columns: [{column}], rows: [[500]]}}]
tolerances: [{{quantity: "*", within: 0.5, why: "a number of one seed, whatever it is"}}]
"""
    tables = results({("full", 1e-5): [0.9] * 3}, **({} if value is None else {column: value}))
    assert verdicts(verify(load_small(), parse_expected(text, "made"), tables)) == [(column, verdict)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it is empty; give `sources`, `tables`"),
        ("# nothing", "it is empty"),
        ("[a]", "it holds no names with values"),
    ],
)
def test_a_file_that_is_no_mapping_says_what_belongs_there(text: str, said: str) -> None:
    with pytest.raises(StudyError, match=r"made\.yaml: ") as refused:
        parse_expected(text, "made.yaml")
    assert said in str(refused.value)


def test_a_deviation_is_printed_as_published(small: Path) -> None:
    text = EXPECTED.replace("90.0 ± 1.0", "90.0 ± 0.25").replace("95.0 ± 1.0", "95.0 ± 3")
    (small.parent / "small.expected.yaml").write_text(text)
    values = {("full", 1e-5): [0.89, 0.90, 0.91], ("full", 1e-4): [0.94, 0.95, 0.96]}
    write_tables(results(values), small.parent / "results")
    printed = invoke(small, "--results", small.parent / "results").stdout
    for said in ("90.0 ± 0.25", "90.0 ± 1.00", "95.0 ± 3 ", "95.0 ± 1 "):
        assert said in printed


def near_chance(small: Path, **columns: Any) -> Any:
    """What `verify --json` says of a mean over `objects` and `critters`, of which the second has no retention."""
    text = """
sources: {paper: "Somebody 2020, table 1"}
tables: [{source: paper, where: {method: full, learning_rate: 1e-5}, columns: [mean_zero_shot_retention_pct, cka_mean], rows: [[50, 0.9]]}]
tolerances: [{quantity: "*", within: 0.5, why: "a number of one seed, whatever it is"}]
"""
    small.write_text(STUDY.replace("[objects]", "[objects, critters]"))
    (small.parent / "small.expected.yaml").write_text(text)
    measured = {"transfer_objects_zero_shot_retention_pct": 50.0, "transfer_critters_zero_shot_accuracy": 0.1} | columns
    write_tables(results({("full", 1e-5): [0.9] * 3}, **measured), small.parent / "results")
    return invoke(small, "--results", small.parent / "results")


def test_a_mean_over_sets_names_those_without_retention(small: Path) -> None:
    printed = near_chance(small)
    assert printed.exit_code == 0, printed.output
    for said in ("1 not measured, 1 within", "Not measured: mean zero shot retention pct: no retention on critters: "):
        assert said in printed.stdout
    assert "Published values without a result" not in printed.stdout


@pytest.mark.parametrize("columns", [{}, {"cka_mean": None}])
def test_nothing_compared_is_no_success(small: Path, columns: dict[str, Any]) -> None:
    """Without any run, and with runs that have none of the numbers."""
    printed = near_chance(small, **columns, **({} if columns else {"epochs": 9}))
    assert printed.exit_code == 2
    assert "nothing was compared: " in printed.stderr
