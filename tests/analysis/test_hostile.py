"""Random poor tables through the whole way: no crash, no NaN, no p value that means nothing, nothing injected."""

from __future__ import annotations

import json
import math
import re
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hostile_tables import Hostile

from attndrift.analysis import AnalysisSettings, analyze, read_analysis
from attndrift.analysis.storing import write_analysis
from attndrift.figures.draw import draw_figures
from attndrift.report.build import write_report
from attndrift.results.tables import TableError, Tables

QUICK = AnalysisSettings()
NOT_A_NUMBER = re.compile(r"(?<![\w`'\".-])[-+]?(nan|inf|NaN|NaT|None|<NA>)(?![\w`'\"])")


def numbers(value: Any, where: str = "") -> list[str]:
    """Places of numbers that are none."""
    if isinstance(value, float) and not math.isfinite(value):
        return [where]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, item in items for found in numbers(item, f"{where}.{key}")]


def prose(text: str) -> str:
    """``text`` without what stands between backticks, which is foreign."""
    return re.sub(r"`[^`]*`", "", text)


SLOW = pytest.mark.slow


@pytest.mark.one_in(4)
@pytest.mark.parametrize("seed", [*range(6), *(pytest.param(seed, marks=SLOW) for seed in range(6, 14))])
def test_analysis(seed: int, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        # A warning is how numpy says that a NaN was made in silence.
        warnings.simplefilter("error", RuntimeWarning)
        tables = Tables(**Hostile(seed).tables())
        found = analyze(tables, settings=QUICK)
    content = json.loads(found.to_json())
    assert numbers(content) == []
    for name in ("differences", "changes", "operating_differences"):
        for row in found.tables[name].rows:
            assert row["reason"] if row["p"] is None else 0 <= row["p"] <= row["p_holm"] <= 1, row
            assert row["p"] is None or row["n_seeds"] >= 3, row
    for finding in found.findings:
        assert not NOT_A_NUMBER.search(prose(finding.sentence)), finding.sentence
        assert finding.strength == "descriptive" or found.data.n_seeds > 2
    write_analysis(found, tmp_path)
    assert read_analysis(tmp_path) == found
    for path in tmp_path.glob("tables/*.md"):
        heights = {
            len(re.findall(r"(?<!\\)\|", line)) for line in path.read_text().splitlines() if line.startswith("|")
        }
        assert len(heights) <= 1, path.name


@pytest.mark.slow
@pytest.mark.parametrize("seed", [3, pytest.param(9, marks=SLOW)])
def test_figures_and_report(seed: int, tmp_path: Path) -> None:
    tables = Tables(**Hostile(seed).tables())
    found = analyze(tables, settings=QUICK)
    drawn = draw_figures(tables, tmp_path / "figures", analysis=found)
    assert all((figure.left_out is None) != (figure.caption is None) for figure in drawn)
    for figure in drawn:
        assert not NOT_A_NUMBER.search(prose(figure.caption or figure.left_out or "")), figure
    markdown, page = write_report(tmp_path, analysis=found, figures=drawn, tables=tables)
    for line in markdown.read_text().splitlines():
        assert not NOT_A_NUMBER.search(prose(line)), line[:300]
    assert "<script>alert" not in page.read_text()


def test_infinite_numbers_are_nulls_that_are_named() -> None:
    run = {"run_id": "a", "dataset": "d", "method": "full", "seed": 0, "gini_change_pct": math.inf}
    history = pd.DataFrame({"run_id": ["a", "a"], "step": [0, 1], "train_loss": [1.0, math.inf]})
    tables = Tables(pd.DataFrame([run, run | {"run_id": "b", "gini_change_pct": 1.0}]), history)
    assert tables.runs["gini_change_pct"].isna().tolist() == [True, False]
    notes = analyze(tables, settings=QUICK).notes
    assert "`gini_change_pct` is infinite in 1 rows of the table `runs`; read there as null." in notes
    assert "`train_loss` is infinite in 1 rows of the table `history`; read there as null." in notes


def test_runs_without_seeds_or_data_sets_are_read_and_support_nothing() -> None:
    rows = [
        {"run_id": f"{method}{rate}{i}", "method": method, "learning_rate": rate, "entropy_change_pct": 10.0 + i}
        for method in ("full", "lora")
        for rate in (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
        for i in range(3)
    ]
    found = analyze(Tables(pd.DataFrame(rows)), settings=QUICK)
    assert found.data.single_seed
    assert found.data.datasets == ["not given"]
    assert any("42 of 42 runs name no seed" in note for note in found.notes)
    assert any("42 of 42 runs name no data set" in note for note in found.notes)
    assert {f.strength for f in found.findings} <= {"descriptive"}
    assert not any("over 3 seeds" in f.sentence for f in found.findings)


def test_a_run_without_a_method_is_refused_by_name() -> None:
    with pytest.raises(TableError, match="`method`"):
        Tables(pd.DataFrame({"run_id": ["a"]}))
