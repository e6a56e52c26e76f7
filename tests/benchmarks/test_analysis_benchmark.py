"""The benchmark of the analysis measures two analyses of one study, each of all its runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from attndrift.results.tables import read_tables
from benchmarks.analysis import SHAPES, in_fresh_process, measure, write_study
from benchmarks.pandas_baseline import pandas_analysis


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
    counts = pandas_analysis(tmp_path)
    assert counts["runs"] == count
    assert counts["configurations"] == 20
    assert counts["layer_changes"] > 0
    assert counts["correlations"] > 0
    own, other = in_fresh_process("attndrift", tmp_path), measure("pandas", str(tmp_path))
    # The pretrained row is analysed too.
    assert own["runs"] == count + 1
    assert other["runs"] == count
    assert own["megabytes"] > 10
    assert own["seconds"] > 0


@pytest.mark.slow
def test_a_child_that_fails_is_told(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the process for attndrift ended with 1"):
        in_fresh_process("attndrift", tmp_path / "absent")
