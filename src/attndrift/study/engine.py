"""Running a study so that nothing is lost: one run after the other here, or as another engine has it.

A run is done when its ``record.json`` is there. Whatever else a run's folder holds is either a
resumable state, whole or absent, or is written again. Several processes may work on one study: a run
belongs to the process that has claimed it at the study's place (:mod:`attndrift.study.places`).
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from attndrift.study.places import Busy, Claim, Place, StudyFolderConflict, open_place
from attndrift.study.record import now, read_record, write_record, write_settings
from attndrift.study.settings import NamedRun, Study
from attndrift.words import shown

__all__ = [
    "Ended",
    "Engine",
    "Execute",
    "StudyFolderConflict",
    "StudyOutcome",
    "StudyReporter",
    "failed_record",
    "log",
    "one_after_the_other",
    "record_failure",
    "run_one",
    "run_study",
]

LOG = "log.txt"


class StudyReporter(Protocol):
    """Told how a study goes; a run's own reporter comes from :meth:`run`."""

    def begin(self, study: Study, done: int) -> None:
        """The study starts, ``done`` of its runs being finished already."""

    def run(self, run: NamedRun) -> Any:
        """A context manager that yields the reporter of one run."""

    def ended(self, run: NamedRun, status: str, detail: str) -> None:
        """A run has ended: ``finished``, ``diverged``, ``failed``, ``kept`` (done before) or ``busy``."""


@dataclass
class StudyOutcome:
    """How many runs ended how, and where; ``busy`` ones are with another process."""

    where: str
    statuses: dict[str, str] = field(default_factory=dict)

    def count(self, status: str) -> int:
        """Runs that ended with ``status``."""
        return sum(value == status for value in self.statuses.values())


Execute = Callable[[NamedRun, Path, Any], dict[str, Any]]
"""Runs one run in its folder, telling a reporter, and returns its record."""


Ended = tuple[NamedRun, str, str]
"""A run that has ended, with its status and a detail, as :meth:`StudyReporter.ended` is told."""


class Engine(Protocol):
    """Decides where and when the runs of a study are run; each goes through :func:`run_one`."""

    def __call__(self, study: Study, place: Place, execute: Execute, reporter: StudyReporter) -> Iterator[Ended]:
        """Run every run of ``study``, yielding each when it ends, in any order."""


def one_after_the_other(study: Study, place: Place, execute: Execute, reporter: StudyReporter) -> Iterator[Ended]:
    """The engine that runs everything in this process, in the order of the study."""
    for run in study.runs:
        yield run, *run_one(run, study.name, place, execute, reporter)


def run_study(
    study: Study,
    where: Place | str | Path,
    execute: Execute,
    reporter: StudyReporter,
    *,
    engine: Engine = one_after_the_other,
) -> StudyOutcome:
    """Run every run of ``study`` that is not done, and collect the tables.

    A run that raises is recorded as failed, with its error, and is tried again the next time; the others
    go on. ``KeyboardInterrupt`` stops the study; everything done so far stays.
    """
    place = open_place(where)
    place.prepare(study)
    reporter.begin(study, sum(place.is_done(run.run_id) for run in study.runs))
    statuses = {}
    for run, status, detail in engine(study, place, execute, reporter):
        statuses[run.run_id] = status
        reporter.ended(run, status, detail)
    place.collect()
    return StudyOutcome(place.url, {run.run_id: statuses[run.run_id] for run in study.runs})


def run_one(
    run: NamedRun, study: str, place: Place, execute: Execute, reporter: StudyReporter, *, patience: float = 0.0
) -> tuple[str, str]:
    """Run one run of the study called ``study``, if it is not done, and write its record.

    ``patience``: seconds to wait for another process that is on it. Returns status and detail, as
    :meth:`StudyReporter.ended` is told. Only what is no ``Exception`` is raised.
    """
    try:
        with place.claimed(run.run_id, patience) as claim:
            folder = claim.folder
            record = read_record(folder)
            if record is not None and record["status"] != "failed":
                return "kept", str(record["status"])
            write_settings(folder, run, study)
            with reporter.run(run) as progress:
                watched = _Watched(progress, claim)
                started = now()
                try:
                    record = execute(run, folder, watched)
                except Busy:
                    raise
                except Exception as error:
                    watched.say(traceback.format_exc())
                    record = failed_record(run, study, error)
                row = {**record["row"], "study": study}
                write_record(folder, {**record, "row": row, "started": started, "ended": now()})
                try:
                    claim.finish()
                except OSError as error:
                    return "failed", f"its record could not be sent to {place.url}: {error}"
                return str(record["status"]), str(record.get("problem") or "")
    except Busy as error:
        return "busy", str(error)


class _Watched:
    """The reporter of a run where it is executed: keeps its log, and saves its resumable states."""

    def __init__(self, progress: Any, claim: Claim) -> None:
        self._progress, self._claim = progress, claim

    def step(self, done: int, total: int) -> None:
        self._progress.step(done, total)

    def phase(self, what: str) -> None:
        self._progress.phase(what)

    def say(self, message: str) -> None:
        log(self._claim.folder, message)
        self._progress.say(message)

    def saved(self, step: int) -> None:
        """The resumable state of ``step`` is whole."""
        try:
            self._claim.save()
        except OSError as error:
            # The run itself is well, and its next state may come through.
            self.say(f"the state of step {step} could not be sent to the study's place: {error}")


def log(folder: Path, message: str) -> None:
    """Append a line to the log of the run in ``folder``, printable and without secrets."""
    with (folder / LOG).open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(f"{time.strftime('%H:%M:%S')} {shown(message)}\n")


def record_failure(run: NamedRun, study: str, place: Place, error: BaseException) -> None:
    """Record that ``run`` failed, for a process that died on it; nothing where it is done, or with another."""
    try:
        with place.claimed(run.run_id) as claim:
            record = read_record(claim.folder)
            if record is None or record["status"] == "failed":
                log(claim.folder, str(error))
                write_settings(claim.folder, run, study)
                write_record(claim.folder, {**failed_record(run, study, error), "ended": now()})
                claim.finish()
    except Busy:
        pass  # somebody else has taken it up already


def failed_record(run: NamedRun, study: str, error: BaseException) -> dict[str, Any]:
    """The record of a run that raised."""
    settings = run.settings
    row = {
        "study": study,
        "experiment": settings.experiment,
        "protocol": settings.protocol,
        "model": settings.model,
        "dataset": settings.dataset,
        "method": settings.method,
        "learning_rate": None if settings.method == "none" else settings.learning_rate,
        "seed": settings.seed,
        "data_seed": settings.data_seed,
        "status": "failed",
    }
    return {
        "status": "failed",
        "run_id": run.run_id,
        "problem": f"{type(error).__name__}: {error}",
        "settings": settings.to_json(),
        "row": row,
    }
