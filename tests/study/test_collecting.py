"""Collecting a study again reads only what changed, and gives what collecting it anew gives."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_runs import study_of, tables_of

from attndrift.files import LeftOutWarning
from attndrift.formats import numbered
from attndrift.results.tables import read_tables, write_tables
from attndrift.study.collect import collect, gather
from attndrift.study.storage import prepare_folder

RUNS = 5
_times = count()


def put(path: Path, content: str) -> None:
    """Write a file whose time is an hour ago, and another one than that of any other: what has just changed is read twice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    then = path.stat().st_mtime - 3600 + next(_times)
    os.utime(path, (then, then))


def put_run(folder: Path, name: str, seed: int, accuracy: float = 0.5) -> None:
    row = {"dataset": "tiles", "method": "full", "seed": seed, "status": "finished", "test_accuracy": accuracy}
    row |= {"loss": "l2_sp:0.5+attention_preservation:0.1"} if seed == 2 else {}
    row |= {f"extra_{seed}": 1.5} if seed % 2 else {}
    record: dict[str, Any] = {"status": "failed" if seed == 4 else "finished", "run_id": name, "row": row}
    put(folder / "history.jsonl", history(seed))
    put(folder / "record.json", json.dumps(numbered("run", record)))


def history(steps: int) -> str:
    layers = {"entropy": {"layer": [3.0, 2.5], "head": [[3.0, 3.1], [2.4, 2.6]]}}
    rows = [{"step": step, "epoch": step / 3, "entropy": 3.0 - step, "layers": layers} for step in range(steps + 1)]
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    study = study_of(RUNS)
    prepare_folder(study, tmp_path / "study")
    for run in study.runs:
        put_run(tmp_path / "study" / "runs" / run.run_id, run.run_id, run.settings.seed)
    return tmp_path / "study"


def anew(folder: Path, scratch: Path) -> tuple[dict[str, bytes], list[str], set[str]]:
    """Tables, runs without record, and warnings of collecting everything."""
    shutil.rmtree(scratch, ignore_errors=True)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        tables, missing = gather(folder)
    write_tables(tables, scratch)
    return tables_of(scratch), missing, {str(one.message) for one in said}


def again(folder: Path) -> tuple[dict[str, bytes], list[str], set[str]]:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = collect(folder)
    return tables_of(folder), found.missing, {str(one.message) for one in said}


CHANGES: dict[str, Callable[[Path, int], None]] = {
    "longer history": lambda run, n: put(run / "history.jsonl", history(3 + n)),
    "other results": lambda run, n: put_run(run, run.name, n, 0.25 + n / 20),
    "removed": lambda run, n: shutil.rmtree(run, ignore_errors=True),
    "record removed": lambda run, n: (run / "record.json").unlink(missing_ok=True),
    "history removed": lambda run, n: (run / "history.jsonl").unlink(missing_ok=True),
    "record damaged": lambda run, n: put(run / "record.json", "{"),
    "history damaged": lambda run, n: put(run / "history.jsonl", '{"step": 0}\n{"step"'),
    "sweep": lambda run, n: put(run / "interpolation.json", json.dumps({"points": [{"alpha": 0.5, "test_accuracy": 0.4}]})),
    "sweep damaged": lambda run, n: put(run / "interpolation.json", '{"points": 3}'),
    "soups damaged": lambda run, n: put(run / "soups.json", "[]"),
    "outside its range": lambda run, n: put_run(run, run.name, n, 97.0),
    "table removed": lambda run, n: (run.parents[1] / "history.parquet").unlink(missing_ok=True),
    "table changed": lambda run, n: put(run.parents[1] / "layers.parquet", "not a table"),
    "notes damaged": lambda run, n: put(run.parents[1] / ".collected", "not a table"),
    "nothing": lambda run, n: None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("seed", "rounds"), [(0, 2), *(pytest.param(seed, 20, marks=pytest.mark.slow) for seed in range(1, 5))]
)
def test_any_changes_are_collected_as_if_it_were_the_first_time(
    folder: Path, tmp_path: Path, seed: int, rounds: int
) -> None:
    draw = np.random.default_rng(seed)
    runs = sorted((folder / "runs").iterdir())
    for _ in range(rounds):
        changed = []
        for _ in range(int(draw.integers(1, 3))):
            changed.append(str(draw.choice(list(CHANGES))))
            CHANGES[changed[-1]](runs[int(draw.integers(RUNS))], int(draw.integers(RUNS)))
        assert again(folder) == anew(folder, tmp_path / "anew"), changed


def test_only_what_changed_is_read(folder: Path) -> None:
    runs = sorted(path.name for path in (folder / "runs").iterdir())
    assert collect(folder).read == runs
    assert collect(folder).read == []
    put_run(folder / "runs" / runs[2], runs[2], 2, accuracy=0.75)
    assert collect(folder).read == [runs[2]]
    assert read_tables(folder).runs["test_accuracy"].tolist() == [0.5, 0.5, 0.75, 0.5, 0.5]
    shutil.rmtree(folder / "runs" / runs[0])
    found = collect(folder)
    assert (found.read, found.missing, found.rows["runs"]) == ([], [runs[0]], RUNS - 1)
    put(folder / "runs" / runs[3] / "record.json", "{")
    for _ in range(2):
        with pytest.warns(LeftOutWarning, match=f"{runs[3]} is left out of the tables"):
            collect(folder)


def test_what_has_just_changed_is_read_again(folder: Path) -> None:
    """Two changes within one tick of the file system's clock leave equal times behind."""
    collect(folder)
    run = min((folder / "runs").iterdir())
    (run / "record.json").write_text((run / "record.json").read_text())
    assert collect(folder).read == [run.name]
    assert collect(folder).read == [run.name]
