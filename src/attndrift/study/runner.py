"""Runs all runs of a study so that nothing is lost: in sequence in this process, or through another launcher.

A run is done when ``record.json`` exists. A killed run continues from its last complete state; other files are
rewritten. States are removed after the record is written, so a kill costs at most the steps since the last state. Which process may execute a run is decided where the study
is kept (:mod:`attndrift.study.storage`).
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from attndrift.files import LinkError
from attndrift.sanitize import sanitize
from attndrift.study.driver import DriverReplaced
from attndrift.study.inputs import has_states, read_inputs, refuse_changed, write_inputs
from attndrift.study.leftovers import begin_run_folder, end_run_folder
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
    """How many runs ended how, and where; ``busy`` ones are with another process. ``tables``: names of those written."""

    where: str
    statuses: dict[str, str] = field(default_factory=dict)
    tables: tuple[str, ...] = ()

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

CONFLICT = "conflict"
"""Status of a run that was not begun because another driver has changed the study: the study stops."""

_STOPS: dict[str, type[Exception]] = {REPLACED: DriverReplaced, CONFLICT: StudyFolderConflict}


class RunFolderRemoved(RuntimeError):
    """The folder of a run was removed, or replaced by another one, while the run was executed in it."""


class Engine(Protocol):
    """Decides where and when the runs of a study are run; each goes through :func:`run_one`."""

    def __call__(self, study: Study, storage: StudyStorage, execute: Execute, reporter: StudyReporter) -> EndedRuns:
        """Run every run of ``study``, none of which is done, yielding each when it ends, in any order."""


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
    :class:`~attndrift.study.driver.DriverReplaced` where this one is replaced, and :class:`StudyFolderConflict` where
    another driver of other settings is at work.
    """
    storage = open_storage(where)
    with storage.driver(reporter.say, take_over=take_over):
        study = pin_models(study, storage.recorded_runs(), storage.is_done)
        storage.prepare(study)
        statuses, left = {}, []
        done = {run.run_id: storage.status(run.run_id) for run in study.runs if storage.is_done(run.run_id)}
        reporter.begin(study, len(done))
        for run in study.runs:
            if run.run_id in done:
                storage.tidy(run)
                statuses[run.run_id] = "kept"
                reporter.ended(run, "kept", str(done[run.run_id]))
            else:
                left.append(run)
        # Close the engine before the driver's lock is released, so that no worker outlives it.
        with closing(engine(study.model_copy(update={"runs": tuple(left)}), storage, execute, reporter)) as ended:
            for run, status, detail in ended:
                if status in _STOPS:
                    raise _STOPS[status](detail)
                statuses[run.run_id] = status
                reporter.ended(run, status, detail)
        tables = storage.collect()
    return StudyOutcome(storage.url, {run.run_id: statuses[run.run_id] for run in study.runs}, tables)


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
    :meth:`StudyReporter.ended` is told, or :data:`REPLACED` or :data:`CONFLICT` and why. Raises ``OSError`` if the
    record cannot be written. ``KeyboardInterrupt`` and ``SystemExit`` pass through.
    """
    try:
        with storage.open_run(run.run_id, patience) as workspace:
            folder = workspace.folder
            storage.require_same(run, folder)
            record = read_record(folder)
            if record is not None and record["status"] != "failed":
                end_run_folder(folder, run.settings.keep)
                return "kept", str(record["status"])
            begin_run_folder(folder)
            write_settings(folder, run, study)
            with reporter.run(run) as progress:
                with closing(_Watched(progress, workspace, run.run_id, storage)) as watched:
                    record = _executed(run, study, execute, watched)
                write_record(folder, record)
                if record["status"] != "failed":
                    end_run_folder(folder, run.settings.keep)
                try:
                    workspace.finish()
                except OSError as error:
                    return "failed", f"its record could not be sent to {storage.url}: {error}"
                return str(record["status"]), str(record.get("problem") or "")
    except RunLocked as error:
        return "busy", str(error)
    except DriverReplaced as error:
        return REPLACED, str(error)
    except StudyFolderConflict as error:
        return CONFLICT, str(error)
    except RunFolderRemoved as error:
        record_failure(run, study, storage, error)
        return "failed", str(error)


def _executed(run: NamedRun, study: str, execute: Execute, watched: _Watched) -> dict[str, Any]:
    """The record of ``run``, executed; that of a failed one where it raised."""
    started = now()
    try:
        record = execute(run, watched.folder, watched)
        watched.require_folder()
    except (RunLocked, DriverReplaced, RunFolderRemoved):
        raise
    except Exception as error:
        watched.say(traceback.format_exc())
        record = failed_record(run, study, error)
    return {**record, "row": {**record["row"], "study": study}, "started": started, "ended": now()}


class _Watched:
    """The reporter of a run where it is executed: keeps its log, inputs and states, and sees its folder go."""

    def __init__(self, progress: Any, workspace: RunWorkspace, run_id: str, storage: StudyStorage) -> None:
        self._progress, self._workspace, self._run_id, self._storage = progress, workspace, run_id, storage
        self.folder = workspace.folder
        # Held open: while it is, no folder made anew can have the same inode.
        self._held = os.open(self.folder, os.O_RDONLY)

    def close(self) -> None:
        os.close(self._held)

    def require_folder(self) -> None:
        """Raise :class:`RunFolderRemoved` unless the folder is the one in which the run was begun."""
        held = os.fstat(self._held)
        if _identity(self.folder) != (held.st_dev, held.st_ino):
            raise RunFolderRemoved(
                f"{self.folder}: the folder of this run was removed, moved or replaced while the run was under way, so "
                "that its results are lost. The same command begins this run again"
            )

    def step(self, done: int, total: int) -> None:
        self._progress.step(done, total)

    def evaluated(self, step: int, total: int, values: Mapping[str, float]) -> None:
        self._progress.evaluated(step, total, values)

    def phase(self, what: str) -> None:
        self.require_folder()
        self._progress.phase(what)

    def say(self, message: str) -> None:
        self.require_folder()
        log(self.folder, message)
        self._progress.say(message)

    def inputs(self, found: Mapping[str, Any], places: Mapping[str, str]) -> None:
        """What the run is about to use.

        Raises :class:`~attndrift.study.inputs.InputsChanged` where it began with something else, or other runs did.
        """
        folder = self._workspace.folder
        own = {self._run_id: read_inputs(folder)} if has_states(folder) else {}
        refuse_changed(found, {**self._storage.recorded_inputs(), **own}, places)
        write_inputs(folder, found)

    def saved(self, step: int) -> None:
        """The resumable state of ``step`` is whole."""
        self.require_folder()
        try:
            self._workspace.save()
        except OSError as error:
            # The run itself is well, and its next state may come through.
            self.say(f"the state of step {step} could not be sent to the study's storage: {error}")


def _identity(folder: Path) -> tuple[int, int] | None:
    """What tells a folder from another one of the same name; None where there is none."""
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def log(folder: Path, message: str) -> None:
    """Append a line to the log of the run in ``folder``, printable and without secrets."""
    with (folder / LOG).open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(f"{time.strftime('%H:%M:%S')} {sanitize(message)}\n")


def record_failure(run: NamedRun, study: str, storage: StudyStorage, error: BaseException) -> None:
    """Record that ``run`` failed, for a process that died on it; nothing where it is done, with another, or of other settings.

    Raises :class:`~attndrift.study.driver.DriverReplaced`.
    """
    try:
        with storage.open_run(run.run_id) as workspace:
            storage.require_same(run, workspace.folder)
            record = read_record(workspace.folder)
            if record is None or record["status"] == "failed":
                log(workspace.folder, str(error))
                write_settings(workspace.folder, run, study)
                write_record(workspace.folder, {**failed_record(run, study, error), "ended": now()})
                workspace.finish()
    except (RunLocked, StudyFolderConflict, LinkError):
        pass  # it is somebody else's, or leads there


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
        "learning_rate": settings.learning_rate if settings.facts.adapts else None,
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
