"""Running a study so that nothing is lost: one run after the other here, or as another engine has it.

A run is done when its ``record.json`` is there. Whatever else a run's folder holds is either a
resumable state, whole or absent, or is written again. Which process may execute a run is decided where the study
is kept (:mod:`attndrift.study.storage`).
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from attndrift.sanitize import sanitize
from attndrift.study.driver import DriverReplaced
from attndrift.study.pinning import pin_models
from attndrift.study.record import now, read_record, write_record, write_settings
from attndrift.study.settings import NamedRun, Study
from attndrift.study.storage import RunLocked, RunWorkspace, StudyFolderConflict, StudyStorage
from attndrift.study.storage_url import open_storage

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

    def say(self, message: str) -> None:
        """Something that a user should know of the study as a whole."""

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

EndedRuns = Generator[Ended, None, None]

REPLACED = "replaced"
"""Status of a run that stopped because its driver was taken over: the study stops."""


class Engine(Protocol):
    """Decides where and when the runs of a study are run; each goes through :func:`run_one`."""

    def __call__(self, study: Study, storage: StudyStorage, execute: Execute, reporter: StudyReporter) -> EndedRuns:
        """Run every run of ``study``, yielding each when it ends, in any order."""


def one_after_the_other(study: Study, storage: StudyStorage, execute: Execute, reporter: StudyReporter) -> EndedRuns:
    """The engine that runs everything in this process, in the order of the study."""
    for run in study.runs:
        yield run, *run_one(run, study.name, storage, execute, reporter)


def run_study(
    study: Study,
    where: StudyStorage | str | Path,
    execute: Execute,
    reporter: StudyReporter,
    *,
    engine: Engine = one_after_the_other,
    take_over: bool = False,
) -> StudyOutcome:
    """Run every run of ``study`` that is not done, and collect the tables.

    The models' commits are settled first, once for the study; see :func:`attndrift.study.pinning.pin_models`.
    A run that raises is recorded as failed, with its error, and is tried again the next time; the others
    go on. ``KeyboardInterrupt`` stops the study; everything done so far stays.

    ``take_over``: replace the driver that works on the study in an object store. Raises
    :class:`~attndrift.study.driver.StudyLocked` where there is one otherwise, and
    :class:`~attndrift.study.driver.DriverReplaced` where this one is replaced.
    """
    storage = open_storage(where)
    with storage.driver(reporter.say, take_over=take_over):
        study = pin_models(study, storage.recorded_runs(), storage.is_done)
        storage.prepare(study)
        reporter.begin(study, sum(storage.is_done(run.run_id) for run in study.runs))
        statuses = {}
        # Closed before the study is let go, so that no worker outlives that.
        with closing(engine(study, storage, execute, reporter)) as ended:
            for run, status, detail in ended:
                if status == REPLACED:
                    raise DriverReplaced(detail)
                statuses[run.run_id] = status
                reporter.ended(run, status, detail)
        storage.collect()
    return StudyOutcome(storage.url, {run.run_id: statuses[run.run_id] for run in study.runs})


def run_one(
    run: NamedRun,
    study: str,
    storage: StudyStorage,
    execute: Execute,
    reporter: StudyReporter,
    *,
    patience: float = 0.0,
) -> tuple[str, str]:
    """Run one run of the study called ``study``, if it is not done, and write its record.

    ``patience``: seconds to wait for another process that is on it. Returns status and detail, as
    :meth:`StudyReporter.ended` is told, or :data:`REPLACED` and why. Only what is no ``Exception`` is raised.
    """
    try:
        with storage.open_run(run.run_id, patience) as workspace:
            folder = workspace.folder
            record = read_record(folder)
            if record is not None and record["status"] != "failed":
                return "kept", str(record["status"])
            write_settings(folder, run, study)
            with reporter.run(run) as progress:
                watched = _Watched(progress, workspace)
                started = now()
                try:
                    record = execute(run, folder, watched)
                except (RunLocked, DriverReplaced):
                    raise
                except Exception as error:
                    watched.say(traceback.format_exc())
                    record = failed_record(run, study, error)
                row = {**record["row"], "study": study}
                write_record(folder, {**record, "row": row, "started": started, "ended": now()})
                try:
                    workspace.finish()
                except OSError as error:
                    return "failed", f"its record could not be sent to {storage.url}: {error}"
                return str(record["status"]), str(record.get("problem") or "")
    except RunLocked as error:
        return "busy", str(error)
    except DriverReplaced as error:
        return REPLACED, str(error)


class _Watched:
    """The reporter of a run where it is executed: keeps its log, and saves its resumable states."""

    def __init__(self, progress: Any, workspace: RunWorkspace) -> None:
        self._progress, self._workspace = progress, workspace

    def step(self, done: int, total: int) -> None:
        self._progress.step(done, total)

    def phase(self, what: str) -> None:
        self._progress.phase(what)

    def say(self, message: str) -> None:
        log(self._workspace.folder, message)
        self._progress.say(message)

    def saved(self, step: int) -> None:
        """The resumable state of ``step`` is whole."""
        try:
            self._workspace.save()
        except OSError as error:
            # The run itself is well, and its next state may come through.
            self.say(f"the state of step {step} could not be sent to the study's storage: {error}")


def log(folder: Path, message: str) -> None:
    """Append a line to the log of the run in ``folder``, printable and without secrets."""
    with (folder / LOG).open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(f"{time.strftime('%H:%M:%S')} {sanitize(message)}\n")


def record_failure(run: NamedRun, study: str, storage: StudyStorage, error: BaseException) -> None:
    """Record that ``run`` failed, for a process that died on it; nothing where it is done, or with another.

    Raises :class:`~attndrift.study.driver.DriverReplaced`.
    """
    try:
        with storage.open_run(run.run_id) as workspace:
            record = read_record(workspace.folder)
            if record is None or record["status"] == "failed":
                log(workspace.folder, str(error))
                write_settings(workspace.folder, run, study)
                write_record(workspace.folder, {**failed_record(run, study, error), "ended": now()})
                workspace.finish()
    except RunLocked:
        pass  # somebody else has taken it up already


def failed_record(run: NamedRun, study: str, error: BaseException) -> dict[str, Any]:
    """The record of a run that raised."""
    settings = run.settings
    row = {
        "study": study,
        "experiment": settings.experiment,
        "selection": settings.selection,
        "model": settings.model,
        "model_revision": run.model_revision,
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
