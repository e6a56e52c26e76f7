"""Running a study so that nothing is lost: one run after the other here, or as another engine has it.

A run is done when its ``record.json`` is there. Whatever else a run's folder holds is either a
resumable state, whole or absent, or is written again. Several processes may work on one study folder:
a run belongs to the process that holds its lock, and the system frees the lock when a process dies.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout

from attndrift.files import read_json, write_json
from attndrift.study.collect import RUNS_FOLDER, STUDY, collect, described_runs, refuse_links
from attndrift.study.record import changed_settings, now, read_record, write_record, write_settings
from attndrift.study.settings import NamedRun, Study


class StudyFolderConflict(ValueError):
    """The folder holds a study, or a run, with other settings."""


class StudyReporter(Protocol):
    """Told how a study goes; a run's own reporter comes from :meth:`run`."""

    def begin(self, study: Study, done: int) -> None:
        """The study starts, ``done`` of its runs being finished already."""

    def run(self, run: NamedRun, folder: Path) -> Any:
        """A context manager that yields the reporter of one run."""

    def ended(self, run: NamedRun, status: str, detail: str) -> None:
        """A run has ended: ``finished``, ``diverged``, ``failed``, ``kept`` (done before) or ``busy``."""


@dataclass
class StudyOutcome:
    """How many runs ended how; ``busy`` ones are with another process."""

    folder: Path
    statuses: dict[str, str] = field(default_factory=dict)

    def count(self, status: str) -> int:
        """Runs that ended with ``status``."""
        return sum(value == status for value in self.statuses.values())


def prepare_folder(study: Study, folder: Path) -> None:
    """Write ``study.json``, or check that the one there is of this study.

    A study may gain runs. Raises :class:`StudyFolderConflict`, naming run and setting, where a run that
    is there has other settings, and where the folder holds something else.
    """
    path = folder / STUDY
    if folder.exists() and not path.exists() and any(p for p in folder.iterdir() if not p.name.startswith(".")):
        raise StudyFolderConflict(f"{folder}: not empty and not a study folder; choose another with --output")
    folder.mkdir(parents=True, exist_ok=True)
    refuse_links(folder)
    with FileLock(folder / ".study.lock"):
        known: list[dict[str, Any]] = []
        if path.exists():
            content = read_json(path)
            if not isinstance(content, dict) or not {"name", "runs"} <= set(content):
                raise StudyFolderConflict(
                    f"{path}: not the description of a study; restore it, or choose another folder"
                )
            if content["name"] != study.name:
                raise StudyFolderConflict(
                    f"{folder}: holds the study {content['name']!r}, not {study.name!r}; choose another with --output"
                )
            known = described_runs(content, path)
        for run in study.runs:
            changed = changed_settings(folder / RUNS_FOLDER / run.run_id, run.settings)
            if changed:
                what = "; ".join(f"`{k}` was {a!r}, now {b!r}" for k, (a, b) in list(changed.items())[:5])
                raise StudyFolderConflict(
                    f"{folder}: run {run.run_id} was started with other settings: {what}. "
                    "Use the old settings, or another folder (--output)."
                )
        order = {str(run["run_id"]): run for run in known}
        order |= {run.run_id: run.model_dump(mode="json") for run in study.runs}
        content = {"name": study.name, "description": study.description, "runs": list(order.values())}
        if not path.exists() or read_json(path) != content:
            write_json(path, content)


Execute = Callable[[NamedRun, Path, Any], dict[str, Any]]
"""Runs one run in its folder, telling a reporter, and returns its record."""


class Engine(Protocol):
    """Decides where and when the runs of a study are run; each goes through :func:`run_one`."""

    def __call__(
        self, study: Study, folder: Path, execute: Execute, reporter: StudyReporter
    ) -> Iterator[tuple[NamedRun, str, str]]:
        """Run every run of ``study``, yielding each with its status and a detail when it ends, in any order."""


def one_after_the_other(
    study: Study, folder: Path, execute: Execute, reporter: StudyReporter
) -> Iterator[tuple[NamedRun, str, str]]:
    """The engine that runs everything in this process, in the order of the study."""
    for run in study.runs:
        yield run, *run_one(run, study.name, folder / RUNS_FOLDER / run.run_id, execute, reporter)


def run_study(
    study: Study,
    folder: Path,
    execute: Execute,
    reporter: StudyReporter,
    *,
    engine: Engine = one_after_the_other,
) -> StudyOutcome:
    """Run every run of ``study`` that is not done, and collect the tables.

    A run that raises is recorded as failed, with its error, and is tried again the next time; the others
    go on. ``KeyboardInterrupt`` stops the study; everything done so far stays.
    """
    prepare_folder(study, folder)
    reporter.begin(study, sum(is_done(folder / RUNS_FOLDER / run.run_id) for run in study.runs))
    statuses = {}
    for run, status, detail in engine(study, folder, execute, reporter):
        statuses[run.run_id] = status
        reporter.ended(run, status, detail)
    with FileLock(folder / ".study.lock"):
        collect(folder)
    return StudyOutcome(folder, {run.run_id: statuses[run.run_id] for run in study.runs})


def is_done(folder: Path) -> bool:
    """Whether the run in ``folder`` has ended, and not by failing."""
    record = read_record(folder)
    return record is not None and record["status"] != "failed"


def run_one(run: NamedRun, study: str, folder: Path, execute: Execute, reporter: StudyReporter) -> tuple[str, str]:
    """Run one run of the study called ``study`` in ``folder``, if it is not done, and write its record.

    Returns status and detail, as :meth:`StudyReporter.ended` is told. Only what is no ``Exception`` is raised.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            record = read_record(folder)
            if record is not None and record["status"] != "failed":
                return "kept", str(record["status"])
            write_settings(folder, run, study)
            with reporter.run(run, folder) as progress:
                started = now()
                try:
                    record = execute(run, folder, progress)
                except Exception as error:
                    progress.say(traceback.format_exc())
                    record = failed_record(run, study, error)
                row = {**record["row"], "study": study}
                write_record(folder, {**record, "row": row, "started": started, "ended": now()})
                return str(record["status"]), str(record.get("problem") or "")
    except Timeout:
        return "busy", "another process is on it"


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
