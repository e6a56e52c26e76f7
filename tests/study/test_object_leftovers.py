"""What a killed driver left in an object store of runs that are done goes with the next driver; other states stay."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from made_runs import MadeRuns, study_of
from rich.console import Console

from attndrift.cli.progress import StudyConsole
from attndrift.study.object_storage import ObjectStorage
from attndrift.study.runner import run_study

LEFT = {
    "a whole state": [".states/{run}/000001-ab.tar", ".states/{run}/000001-ab.json"],
    "a state without its checksum": [".states/{run}/000002-ab.tar"],
    "a checksum without its state": [".states/{run}/000002-ab.json"],
    "a worker": [".workers/{run}"],
    "all of it": [".states/{run}/000001-a.tar", ".states/{run}/000001-a.json", ".states/{run}/x", ".workers/{run}"],
}


def _run(storage: ObjectStorage, seeds: int, tmp_path: Path) -> dict[str, str]:
    console = StudyConsole(console=Console(file=io.StringIO()))
    return dict(run_study(study_of(seeds), storage, MadeRuns(tmp_path / "tally"), console).statuses)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("left", LEFT)
def test_states_of_runs_that_are_done_go_with_the_next_driver(
    left: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATTNDRIFT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tally").mkdir()
    storage = ObjectStorage(f"memory://left/{tmp_path.name}")
    _run(storage, 2, tmp_path)
    done, other = study_of(2).runs[0].run_id, "run-of-another-study"
    for run in (done, other):
        for name in LEFT[left]:
            storage.store.write(storage.store.path(name.format(run=run)), b"x")
    assert set(_run(storage, 2, tmp_path).values()) == {"kept"}
    hidden = [name for name in storage.store.files(storage.store.root) if name.startswith(".")]
    assert sorted(hidden) == sorted(name.format(run=other) for name in LEFT[left]), (
        "a run without a record keeps its states"
    )
