"""The engine with a stand-in for training: what is kept, what is repeated, what is refused."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from rich.console import Console

from attndrift.cli.progress import StudyConsole
from attndrift.files import LeftOutWarning, read_json
from attndrift.results.tables import read_tables
from attndrift.study.collect import StudyFolderError, collect, gather
from attndrift.study.loading import parse_overrides, parse_study
from attndrift.study.runner import StudyFolderConflict, run_study
from attndrift.study.settings import NamedRun, Study

TEXT = "name: three\nruns:\n  - {dataset: tiles, grid: {seed: [1, 2, 3]}}\n"


def _study(text: str = TEXT, **overrides: str) -> Study:
    return parse_study(text, where="f", overrides=parse_overrides([f"{k}={v}" for k, v in overrides.items()]))


def _console() -> StudyConsole:
    return StudyConsole(console=Console(file=io.StringIO()))


class Executor:
    """Finishes every run at once, but for those that it is told to fail or stop at."""

    def __init__(self, fail: tuple[int, ...] = (), stop: tuple[int, ...] = ()) -> None:
        self.fail, self.stop = fail, stop
        self.executed: list[str] = []

    def __call__(self, run: NamedRun, folder: Path, reporter: Any) -> dict[str, Any]:
        self.executed.append(run.run_id)
        if run.settings.seed in self.fail:
            raise RuntimeError("the disk is full")
        if run.settings.seed in self.stop:
            raise KeyboardInterrupt
        (folder / "history.jsonl").write_text('{"step": 0, "epoch": 0.0, "entropy": 3.5}\n')
        row = {"dataset": "tiles", "method": "full", "seed": run.settings.seed, "status": "finished"}
        return {"status": "finished", "run_id": run.run_id, "row": row}


def test_every_run_has_a_record_and_a_row(tmp_path: Path) -> None:
    outcome = run_study(_study(), tmp_path / "s", Executor(), _console())
    assert outcome.count("finished") == 3
    tables = read_tables(tmp_path / "s")
    assert tables.runs["seed"].tolist() == [1, 2, 3]
    assert tables.runs["study"].unique().tolist() == ["three"]
    assert len(tables.history) == 3


def test_a_run_that_fails_leaves_the_others_and_is_tried_again(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    outcome = run_study(_study(), folder, Executor(fail=(2,)), _console())
    assert list(outcome.statuses.values()) == ["finished", "failed", "finished"]
    runs = read_tables(folder).runs
    assert runs["status"].tolist() == ["finished", "failed", "finished"]
    record = read_json(folder / "runs" / runs["run_id"][1] / "record.json")
    assert record["problem"] == "RuntimeError: the disk is full"
    again = Executor()
    run_study(_study(), folder, again, _console())
    assert again.executed == [runs["run_id"][1]]
    assert read_tables(folder).runs["status"].tolist() == ["finished"] * 3


def test_an_interrupted_study_goes_on_where_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    with pytest.raises(KeyboardInterrupt):
        run_study(_study(), folder, Executor(stop=(2,)), _console())
    tables, missing = gather(folder)
    assert tables.runs["seed"].tolist() == [1]
    assert len(missing) == 2
    again = Executor()
    run_study(_study(), folder, again, _console())
    assert len(again.executed) == 2


def test_a_run_that_another_process_holds_is_left_to_it(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    study = _study()
    held = folder / "runs" / study.runs[1].run_id
    run_study(study.select([study.runs[0].run_id]), folder, Executor(), _console())
    held.mkdir(parents=True)
    with FileLock(held / ".lock"):
        executor = Executor()
        outcome = run_study(study, folder, executor, _console())
    assert list(outcome.statuses.values()) == ["kept", "busy", "finished"]
    assert held.name not in executor.executed


def test_changed_settings_are_refused_by_name_and_nothing_is_touched(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    run_study(_study(), folder, Executor(), _console())
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    with pytest.raises(StudyFolderConflict, match=r"`epochs` was 20, now 5"):
        run_study(_study(epochs="5"), folder, Executor(), _console())
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_a_study_may_gain_runs(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    run_study(_study(), folder, Executor(), _console())
    executor = Executor()
    run_study(_study(TEXT.replace("[1, 2, 3]", "[1, 2, 3, 4]")), folder, executor, _console())
    assert len(executor.executed) == 1
    assert read_tables(folder).runs["seed"].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("name", ["other", "three"])
def test_a_folder_with_something_else_is_not_written_into(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "s"
    if name == "other":
        run_study(_study(), folder, Executor(), _console())
        study = _study(TEXT.replace("three", "other"))
    else:
        folder.mkdir()
        (folder / "thesis.tex").write_text("precious")
        study = _study()
    with pytest.raises(StudyFolderConflict):
        run_study(study, folder, Executor(), _console())


def test_equal_studies_collect_to_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run_study(_study(), tmp_path / name, Executor(), _console())
    for table in ("runs", "history", "layers"):
        assert (tmp_path / "a" / f"{table}.parquet").read_bytes() == (tmp_path / "b" / f"{table}.parquet").read_bytes()


def test_a_history_that_was_damaged_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    run_study(_study(), folder, Executor(), _console())
    path = next((folder / "runs").iterdir()) / "history.jsonl"
    path.write_text('{"step": 0}\n{"step"')
    with pytest.warns(LeftOutWarning, match=r"history.jsonl:2.*is left out of the tables"):
        found = collect(folder)
    assert path.parent.name not in set(read_tables(folder).runs["run_id"])
    assert found.missing == []


def test_collect_needs_a_study_folder(tmp_path: Path) -> None:
    with pytest.raises(StudyFolderError, match="not a study folder"):
        collect(tmp_path)


def test_damaged_descriptions_are_named_with_the_remedy(tmp_path: Path) -> None:
    run_study(_study(), tmp_path / "s", Executor(), _console())
    record = next((tmp_path / "s" / "runs").iterdir()) / "record.json"
    record.write_text(record.read_text()[:20])
    with pytest.raises(ValueError, match=r"record\.json: not valid JSON.*remove the run's folder"):
        run_study(_study(), tmp_path / "s", Executor(), _console())
    (tmp_path / "s" / "study.json").write_text("{}")
    with pytest.raises(StudyFolderConflict, match=r"study\.json: not the description of a study"):
        run_study(_study(), tmp_path / "s", Executor(), _console())
