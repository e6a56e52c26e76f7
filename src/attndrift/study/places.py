"""Where a study is kept: a folder, or a place in an object store.

A run is always executed in a local folder. In a study folder that is the run's own folder, which the system
locks; elsewhere (:mod:`attndrift.study.store`) it is a copy, fetched when a process claims the run and sent
back with every resumable state and at the end.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout

from attndrift.files import read_json, write_json
from attndrift.study.collect import RUNS_FOLDER, STUDY, collect, described_runs, refuse_links
from attndrift.study.record import changed_settings, read_record
from attndrift.study.settings import Study

# Two letters at least: `c:\studies` is a folder.
_URL = re.compile(r"^([a-z][a-z0-9+.-]+)(?:://|::)", re.IGNORECASE)


class StudyFolderConflict(ValueError):
    """The folder holds a study, or a run, with other settings."""


class Busy(RuntimeError):
    """Another process is on the run."""


class Claim(Protocol):
    """A run that belongs to this process for the time being.

    Attributes:
        folder: the local folder that the run is executed in.
    """

    folder: Path

    def save(self) -> None:
        """Keep what the folder holds: a resumable state is whole. Raises :class:`Busy` if the claim was lost."""

    def finish(self) -> None:
        """Keep the run: its record is written. Raises :class:`Busy` if the claim was lost."""


class Place(ABC):
    """A study's place. Several processes, on several machines, may work on one.

    Attributes:
        url: what :func:`open_place` opens it by, in another process too.
        claims: how a run comes to belong to one process, in words.
    """

    url: str
    claims: str

    @abstractmethod
    def prepare(self, study: Study) -> None:
        """Write ``study.json``, or check that the one there is of this study; see :func:`prepare_folder`."""

    @abstractmethod
    def plans(self, run_id: str) -> bool:
        """Whether the study that is there has a run of this name."""

    @abstractmethod
    def status(self, run_id: str) -> str | None:
        """The status in a run's record; None without a record."""

    @abstractmethod
    def claimed(self, run_id: str, patience: float = 0.0) -> AbstractContextManager[Claim]:
        """The run, for this process alone; what the place knows of it is in the claim's folder.

        Waits up to ``patience`` seconds for another process to let go. Raises :class:`Busy`.
        """

    @abstractmethod
    def collect(self) -> None:
        """Write the tables of the study."""

    def is_done(self, run_id: str) -> bool:
        """Whether a run has ended, and not by failing."""
        return self.status(run_id) not in (None, "failed")


class Folder(Place):
    """A study folder, on this machine or on a file system that machines share."""

    claims = "locks of the file system"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = str(folder)

    def _run_folder(self, run_id: str) -> Path:
        return self.folder / RUNS_FOLDER / run_id

    def prepare(self, study: Study) -> None:
        """See :func:`prepare_folder`."""
        prepare_folder(study, self.folder)

    def plans(self, run_id: str) -> bool:
        """See :meth:`Place.plans`."""
        path = self.folder / STUDY
        return path.is_file() and any(run["run_id"] == run_id for run in read_json(path)["runs"])

    def status(self, run_id: str) -> str | None:
        """See :meth:`Place.status`."""
        record = read_record(self._run_folder(run_id))
        return None if record is None else str(record["status"])

    @contextmanager
    def claimed(self, run_id: str, patience: float = 0.0) -> Iterator[Claim]:
        """See :meth:`Place.claimed`. The system frees the lock when the process that holds it dies."""
        folder = self._run_folder(run_id)
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=patience)
        try:
            lock.acquire()
        except Timeout:
            raise Busy("another process is on it") from None
        try:
            yield _Held(folder)
        finally:
            lock.release()

    def collect(self) -> None:
        """See :func:`attndrift.study.collect.collect`."""
        with FileLock(self.folder / ".study.lock"):
            collect(self.folder)


class _Held:
    """A run in a study folder: what is written there is kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self) -> None:
        """It is saved."""

    def finish(self) -> None:
        """It is kept."""


def is_url(where: str) -> bool:
    """Whether ``where`` names a place by a protocol (``s3://bucket/study``) and is no path."""
    return _URL.match(where) is not None


def open_place(where: Place | str | os.PathLike[str]) -> Place:
    """The place called ``where``: a path, ``file://`` and a path, or any URL that ``fsspec`` knows.

    Raises ``ValueError`` for a URL that holds a password, and where the package for its protocol is missing.
    """
    if isinstance(where, Place):
        return where
    text = os.fspath(where)
    if not is_url(text):
        return Folder(Path(text))
    if text.lower().startswith(("file://", "local://")):
        return Folder(Path(text.partition("://")[2]))
    from attndrift.study.store import Store

    return Store(text)


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
