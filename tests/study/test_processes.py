"""Several runs at a time, with a stand-in for training: the same tables, and what happens where a process dies."""

from __future__ import annotations

import io
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from attndrift.cli.progress import StudyConsole
from attndrift.files import read_json
from attndrift.study.launchers.processes import (
    ProcessLauncher,
    jobs_that_fit,
    no_accelerator,
    usable_cores,
)
from attndrift.study.loading import parse_study
from attndrift.study.runner import run_study
from attndrift.study.settings import NamedRun, Study
from attndrift.study.time_limit import parse_time, spoken

TEXT = "name: four\nruns:\n  - {dataset: tiles, threads: 1, device: cpu, grid: {seed: [1, 2, 3, 4]}}\n"


FORKED = "attndrift.study.settings"
"""A module that is quickly imported, for processes that are forked from one that has imported it."""

started_how = pytest.mark.parametrize("preload", [None, FORKED], ids=["spawned", "forked"])
forked_or_slow = pytest.mark.parametrize(
    "preload",
    [
        pytest.param(None, marks=[pytest.mark.slow, pytest.mark.ci("kill")], id="spawned"),
        pytest.param(FORKED, id="forked"),
    ],
)


@dataclass
class StandIn:
    """Finishes every run at once, but for those that it is to fail, to die or to hang at."""

    fail: tuple[int, ...] = ()
    die: tuple[int, ...] = ()
    hang: tuple[int, ...] = ()
    preload: str | None = None

    def __call__(self, run: NamedRun, folder: Path, reporter: Any) -> dict[str, Any]:
        seed = run.settings.seed
        reporter.phase("training")
        reporter.step(1, 2)
        reporter.say(f"parent {os.getppid()} environment {os.environ.get('SAID')} process {os.getpid()}")
        if seed in self.fail:
            raise RuntimeError("the disk is full")
        if seed in self.die:
            os.kill(os.getpid(), signal.SIGKILL)
        if seed in self.hang:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            while True:
                signal.pause()
        (folder / "history.jsonl").write_text('{"step": 0, "epoch": 0.0, "entropy": 3.5}\n')
        return {
            "status": "finished",
            "run_id": run.run_id,
            "row": {"dataset": "tiles", "method": "full", "seed": seed, "status": "finished"},
        }


def _study() -> Study:
    return parse_study(TEXT, where="f")


def _console() -> StudyConsole:
    return StudyConsole(console=Console(file=io.StringIO()))


def _log(folder: Path, run: NamedRun) -> str:
    return (folder / "runs" / run.run_id / "log.txt").read_text()


@started_how
def test_two_at_a_time_give_the_tables_and_logs_of_one_after_the_other(preload, tmp_path: Path) -> None:
    study = _study()
    run_study(study, tmp_path / "one", StandIn(), _console())
    outcome = run_study(study, tmp_path / "two", StandIn(preload=preload), _console(), engine=ProcessLauncher(2))
    assert list(outcome.statuses.items()) == [(run.run_id, "finished") for run in study.runs]
    for table in ("runs", "history", "layers"):
        written = [(tmp_path / name / f"{table}.parquet").read_bytes() for name in ("one", "two")]
        assert written[0] == written[1], table
    processes = {_log(tmp_path / "two", run).split()[-1] for run in study.runs}
    assert len(processes) == 2
    assert str(os.getpid()) not in processes
    again = run_study(study, tmp_path / "two", StandIn(fail=(1, 2, 3, 4)), _console(), engine=ProcessLauncher(2))
    assert again.count("kept") == 4


def test_processes_are_forked_from_one_that_has_imported_and_have_the_environment_of_now(tmp_path, monkeypatch) -> None:
    parents = set()
    for said in ("one", "two"):
        monkeypatch.setenv("SAID", said)
        run_study(_study(), tmp_path / said, StandIn(preload=FORKED), _console(), engine=ProcessLauncher(2))
        logs = [_log(tmp_path / said, run).split() for run in _study().runs]
        parents |= {words[words.index("parent") + 1] for words in logs}
        assert {words[words.index("environment") + 1] for words in logs} == {said}
    assert len(parents) == 1
    assert str(os.getpid()) not in parents


def test_what_may_touch_an_accelerator_is_not_forked(monkeypatch) -> None:
    settings = [run.settings for run in _study().runs]
    on = lambda device: [one.model_copy(update={"device": device}) for one in settings]  # noqa: E731
    assert no_accelerator(on("cpu"))
    assert not no_accelerator(on("cuda"))
    assert not no_accelerator(on("cpu") + on("mps"))
    for there in (False, True):
        monkeypatch.setattr(Path, "exists", lambda path, there=there: there)
        assert no_accelerator(on("auto")) is not there


@forked_or_slow
def test_a_run_that_raises_and_one_whose_process_is_killed_leave_the_others(preload, tmp_path: Path) -> None:
    folder, study = tmp_path / "s", _study()
    execute = StandIn(fail=(2,), die=(3,), preload=preload)
    outcome = run_study(study, folder, execute, _console(), engine=ProcessLauncher(2))
    assert list(outcome.statuses.values()) == ["finished", "failed", "failed", "finished"]
    problems = [read_json(folder / "runs" / run.run_id / "record.json")["problem"] for run in study.runs[1:3]]
    assert problems[0] == "RuntimeError: the disk is full"
    assert problems[1].endswith("the process that ran it was killed by SIGKILL (out of memory?)")
    assert "SIGKILL" in _log(folder, study.runs[2])
    again = run_study(study, folder, StandIn(), _console(), engine=ProcessLauncher(2))
    assert list(again.statuses.values()) == ["kept", "finished", "finished", "kept"]


@forked_or_slow
def test_an_interruption_ends_the_processes_and_the_study_goes_on_later(preload, tmp_path: Path) -> None:
    class Interrupted(StudyConsole):
        def ended(self, run: NamedRun, status: str, detail: str) -> None:
            raise KeyboardInterrupt

    folder = tmp_path / "s"
    interrupted = Interrupted(console=Console(file=io.StringIO()))
    with pytest.raises(KeyboardInterrupt):
        run_study(_study(), folder, StandIn(preload=preload), interrupted, engine=ProcessLauncher(2))
    outcome = run_study(_study(), folder, StandIn(preload=preload), _console(), engine=ProcessLauncher(2))
    assert outcome.count("busy") == 0
    assert outcome.count("finished") + outcome.count("kept") == 4
    assert outcome.count("kept") >= 1


def test_jobs_leave_every_run_its_threads() -> None:
    settings = [run.settings for run in _study().runs]
    wide = [one.model_copy(update={"threads": 1000}) for one in settings]
    assert jobs_that_fit(settings, at_most=64) == min(usable_cores(), 4)
    assert jobs_that_fit(settings, at_most=1) == 1
    assert jobs_that_fit(wide, at_most=64) == 1
    with pytest.raises(ValueError, match="at least 1"):
        ProcessLauncher(0)


@pytest.mark.slow
@pytest.mark.ci("kill")
def test_a_run_that_hangs_is_ended_and_the_others_go_on(tmp_path: Path) -> None:
    study, folder = _study(), tmp_path / "study"
    outcome = run_study(study, folder, StandIn(hang=(2,)), _console(), engine=ProcessLauncher(1, time_limit=5))
    assert list(outcome.statuses.values()) == ["finished", "failed", "finished", "finished"]
    record = read_json(folder / "runs" / study.runs[1].run_id / "record.json")
    assert "it was ended after 5 s (--time-limit); the same command goes on" in record["problem"]
    assert "--time-limit" in _log(folder, study.runs[1])
    again = run_study(study, folder, StandIn(), _console(), engine=ProcessLauncher(2, time_limit=60))
    assert list(again.statuses.values()) == ["kept", "finished", "kept", "kept"]


@pytest.mark.parametrize(
    ("text", "seconds", "words"),
    [("90s", 90, "90 s"), ("30m", 1800, "30 min"), ("2h", 7200, "2 h"), ("1.5", 90, "90 s")],
)
def test_a_time_is_read_and_said(text: str, seconds: float, words: str) -> None:
    assert parse_time(text) == seconds
    assert spoken(seconds) == words


@pytest.mark.parametrize("text", ["", "0", "-3m", "soon", "1d", "1e9h", "٣m", "9" * 400])
def test_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="90s, 30m or 2h"):
        parse_time(text)
