"""Tables of names and runs in a terminal of 80 columns: no name is broken over lines."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from attndrift.cli.catalogue import KINDS, print_catalogue
from attndrift.cli.showing import print_study
from attndrift.study.loading import load_study
from attndrift.study.plan import PlannedRun, print_plan


def _narrow() -> Console:
    return Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)


def _lines(console: Console) -> list[str]:
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize(
    "kind", ["models", "metrics", "methods", "heads", "losses", "measures", "launchers", "settings"]
)
def test_every_name_stands_whole_on_a_line_that_fits(kind: str) -> None:
    console, rows = _narrow(), KINDS[kind]()
    print_catalogue({kind: rows}, console)
    lines = _lines(console)
    assert max(map(len, lines)) <= 80
    begun = [line.split("  ")[0].split(" │")[0].strip() for line in lines]
    for row in rows:
        assert row["name"] in begun
        whole = " ".join(" ".join(lines).replace("│", " ").split())
        assert all(len(word) > 20 or word in whole for word in row["what"].split()), "no word is broken"


def test_a_dry_run_names_every_run_whole() -> None:
    console, study = _narrow(), load_study("collapse-21")
    empty = dict.fromkeys(name for name in PlannedRun.__dataclass_fields__ if name not in ("run_id", "images", "note"))
    planned = [PlannedRun(run_id=run.run_id, **{**empty, "epochs": 5}) for run in study.runs]  # type: ignore[arg-type]
    print_plan(study, planned, console)
    lines = _lines(console)
    assert {run.run_id for run in study.runs} <= set(lines)
    assert "    images ?  steps ?  trainable ?  a step -  time ?  memory ?  disk ?" in lines


def test_the_runs_of_a_study_are_shown_with_every_value_beside_its_name() -> None:
    console = _narrow()
    run = {
        "run_id": "E2_tiles_full_lr3e-4_s42", "status": "finished", "test_accuracy": 0.742, "cka_mean": 0.805,
        "retention_pct": {"objects_zero_shot": 50.9}, "entropy_change_pct": 0.2, "embedding_drift": 0.573,
    }  # fmt: skip
    print_study([run] * 2, console)
    lines = _lines(console)
    assert max(map(len, lines)) <= 80
    assert sum("objects retention 50.9%" in line for line in lines) == 2
    assert sum("Embedding drift 0.573" in line for line in lines) == 2
