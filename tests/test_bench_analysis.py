"""The benchmark of the analysis measures two analyses of one study, each of all its runs."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from attndrift.bench.analysis import SHAPES, _fresh, measure, write_study
from attndrift.bench.plain import plain_analysis
from attndrift.bench.ratios import Ratio
from attndrift.bench.result import TABLES, Result, print_result
from attndrift.tables import read_tables


def test_shapes_hold_the_same_number_of_runs() -> None:
    for shape in SHAPES.values():
        variants = 1 + shape["lora_ranks"]
        assert shape["datasets"] * variants * shape["rates"] * shape["seeds"] == 10_000


def test_one_run_shapes_stay_one_run_when_fewer(tmp_path: Path) -> None:
    count = write_study("10,000 configurations of one run", tmp_path, runs=100, evaluations=4)
    runs = read_tables(tmp_path).runs
    assert count == (runs["method"] != "none").sum() == 100
    assert runs["seed"].nunique() == 1


@pytest.mark.parametrize("shape", list(SHAPES))
def test_a_shape_stays_the_shape_when_there_are_fewer_runs(shape: str, tmp_path: Path) -> None:
    count = write_study(shape, tmp_path, runs=500, evaluations=2)
    runs = read_tables(tmp_path).runs
    adapted = runs[runs["method"] != "none"]
    assert count == len(adapted) == 500
    # One dataset is the least: 20 configurations of 25 runs are what 250 a configuration can come down to.
    seeds = {"40 configurations of 250 runs": 25}.get(shape, SHAPES[shape]["seeds"])
    assert adapted["seed"].nunique() == seeds


@pytest.mark.slow
def test_both_sides_analyse_every_run(tmp_path: Path) -> None:
    count = write_study("40 configurations of 250 runs", tmp_path, runs=100, evaluations=4)
    plain = plain_analysis(tmp_path)
    assert plain["runs"] == count
    assert plain["configurations"] == 20
    assert plain["layer_changes"] > 0
    assert plain["correlations"] > 0
    own, other = _fresh("attndrift", tmp_path), measure("plain", str(tmp_path))
    # The pretrained row is analysed too.
    assert own["runs"] == count + 1
    assert other["runs"] == count
    assert own["megabytes"] > 10
    assert own["seconds"] > 0


def test_result_tells_versions_spread_and_memory() -> None:
    ratio = Ratio("a", "b", 1.5, 1.25, 1.75, 3.0, 2.0, 3, 812.0, 1234.0)
    found = Result("analysis", [ratio], packages=TABLES).to_json()
    assert json.loads(json.dumps(found))["ratios"][0]["megabytes"] == 812.0
    assert {"python", "pandas", "scipy"} <= set(found["versions"])
    out = io.StringIO()
    print_result(found, Console(file=out, width=200))
    printed = out.getvalue()
    for words in ("1.500", "1.250 .. 1.750 (n = 3)", "812 / 1234", "pandas", found["hardware"]["processor"]):
        assert words in printed, printed


def test_a_child_that_fails_is_told(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="bench analysis: the process for attndrift ended with 1"):
        _fresh("attndrift", tmp_path / "absent")
