"""Where a study is kept: a folder, or an object store.

A run is always executed in a local folder. In a study folder that is the run's own folder, which the system
locks; elsewhere (:mod:`attndrift.study.object_storage`) it is a copy, fetched when a process begins the run and
sent back with every resumable state and at the end.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout

from attndrift.files import LinkError, read_json, refuse_links, write_json
from attndrift.formats import numbered
from attndrift.sanitize import redact
from attndrift.study.collect import LOCK, RUNS_FOLDER, STUDY, collect, described_runs
from attndrift.study.driver import TAKE_OVER, DriverPresence
from attndrift.study.inputs import INPUTS, has_states, read_inputs
from attndrift.study.leftovers import end_run_folder, remove_half_written
from attndrift.study.pinning import changed_revision
from attndrift.study.record import changed_settings, differing_settings, name_differences, read_record
from attndrift.study.settings import NamedRun, Study


class StudyFolderConflict(ValueError):
    """The folder holds a study, or a run, with other settings."""


class RunLocked(RuntimeError):
    """Another process is on the run."""


class RunWorkspace(Protocol):
    """A run that this process executes.

    Attributes:
        folder: the local folder that it is executed in.
    """

    folder: Path

    def save(self) -> None:
        """Keep what the folder holds: a resumable state is whole."""

    def finish(self) -> None:
        """Keep the run: its record is written."""


class StudyStorage(ABC):
    """Where one study is kept.

    Attributes:
        url: what :func:`open_storage` opens it by, in another process too.
        token: of the driver that this process is, or works for; None where there is none, or none is needed.
    """

    url: str
    token: str | None = None

    @abstractmethod
    def driver(self, say: Callable[[str], None], *, take_over: bool = False) -> AbstractContextManager[None]:
        """Inside the block, this process drives the study; ``say`` is told what a user should know of that.

        ``take_over``: replace the driver that is there. Raises ``ValueError`` where there is one and it is not to be
        replaced, or where nothing needs taking over.
        """

    @abstractmethod
    def prepare(self, study: Study) -> None:
        """Write ``study.json``, or check that the one there is of this study; see :func:`prepare_folder`."""

    @abstractmethod
    def recorded_runs(self) -> list[dict[str, Any]]:
        """The runs of the study that is there, as they stand in ``study.json``; none where there is no study."""

    @abstractmethod
    def plans(self, run_id: str) -> bool:
        """Whether the study that is there has a run of this name."""

    @abstractmethod
    def status(self, run_id: str) -> str | None:
        """The status in a run's record; None without a record."""

    @abstractmethod
    def recorded_inputs(self) -> dict[str, dict[str, Any]]:
        """What runs that are done, or go on, were run with, by run; see :mod:`attndrift.study.inputs`."""

    @abstractmethod
    def open_run(self, run_id: str, patience: float = 0.0) -> AbstractContextManager[RunWorkspace]:
        """The run, for this process alone; what is kept of it is in the workspace's folder.

        Waits up to ``patience`` seconds for another process to let go. Raises :class:`RunLocked`, and
        :class:`~attndrift.study.driver.DriverReplaced`; so do the workspace's methods.
        """

    @abstractmethod
    def collect(self) -> tuple[str, ...]:
        """Write the tables of the study; returns the names of those that are there now."""

    def tidy(self, run: NamedRun) -> None:  # noqa: B027 -- a storage may have nothing to remove
        """Remove what a process that was killed after it had written the record of ``run`` left behind."""

    def recorded_by_name(self) -> dict[str, dict[str, Any]]:
        """:meth:`recorded_runs` by name."""
        return {str(one["run_id"]): one for one in self.recorded_runs()}

    def require_same(self, run: NamedRun, folder: Path) -> None:
        """Raise :class:`StudyFolderConflict` unless the study, and what ``folder`` has of ``run``, are of its settings.

        For the process that has opened the run: another driver may have changed the study since it was prepared.
        """
        recorded = self.recorded_by_name()
        if run.run_id not in recorded:
            raise StudyFolderConflict(
                f"{self.url}: {STUDY} has no run {run.run_id} any more; somebody has removed, moved or changed the study "
                "while it ran. Give the command again, or choose another folder (--output)"
            )
        there = recorded[run.run_id]
        changed = differing_settings(there["settings"], run.settings) or changed_settings(folder, run.settings)
        revisions = changed_revision(run, there)
        if revisions is not None:
            changed["model_revision"] = revisions
        if changed:
            raise StudyFolderConflict(
                f"{self.url}: another driver has given run {run.run_id} other settings since this one began: "
                f"{name_differences(changed)} here. This one stops; use the same settings, or another folder (--output)"
            )

    def is_done(self, run_id: str) -> bool:
        """Whether a run has ended, and not by failing."""
        return self.status(run_id) not in (None, "failed")


class LocalStorage(StudyStorage):
    """A study folder, on this machine or on a file system that machines share. Several drivers may work on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = str(folder)
        self._presence: DriverPresence | None = None
        self._recorded: tuple[tuple[int, ...], dict[str, dict[str, Any]]] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return LocalStorage, (self.folder,)

    def _run_folder(self, run_id: str) -> Path:
        return self.folder / RUNS_FOLDER / run_id

    @contextmanager
    def driver(self, say: Callable[[str], None], *, take_over: bool = False) -> Iterator[None]:
        """See :meth:`StudyStorage.driver`. Several may drive the study, with the same settings: each run has a lock."""
        if take_over:
            raise ValueError(
                f"{self.url}: {TAKE_OVER} is for studies in an object store. In a folder each run has a lock, which the "
                f"system frees when its process ends; leave {TAKE_OVER} out"
            )
        try:
            yield
        finally:
            if self._presence is not None:
                self._presence.close()
                self._presence = None

    def prepare(self, study: Study) -> None:
        """See :func:`prepare_folder`; from here on, other drivers see that this one is at work."""
        check_folder(study, self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._presence is None:
            self._presence = DriverPresence(self.folder)
        prepare_folder(study, self.folder, others=self._presence.others)

    def recorded_runs(self) -> list[dict[str, Any]]:
        """See :meth:`StudyStorage.recorded_runs`."""
        path = self.folder / STUDY
        return recorded_in(read_json(path)) if path.is_file() else []

    def recorded_by_name(self) -> dict[str, dict[str, Any]]:
        """See :meth:`StudyStorage.recorded_by_name`. Every run asks: the file is read again where it is another one."""
        path = self.folder / STUDY
        if not path.is_file():
            return {}
        found = path.stat()
        now = (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        if self._recorded is None or self._recorded[0] != now:
            self._recorded = now, super().recorded_by_name()
        return self._recorded[1]

    def plans(self, run_id: str) -> bool:
        """See :meth:`StudyStorage.plans`."""
        path = self.folder / STUDY
        return path.is_file() and any(run["run_id"] == run_id for run in described_runs(read_json(path), path))

    def status(self, run_id: str) -> str | None:
        """See :meth:`StudyStorage.status`."""
        record = read_record(self._run_folder(run_id))
        return None if record is None else str(record["status"])

    def recorded_inputs(self) -> dict[str, dict[str, Any]]:
        """See :meth:`StudyStorage.recorded_inputs`."""
        folders = [path.parent for path in sorted((self.folder / RUNS_FOLDER).glob(f"*/{INPUTS}"))]
        return {one.name: read_inputs(one) for one in folders if has_states(one) or self._has_result(one.name)}

    def _has_result(self, run_id: str) -> bool:
        try:
            return self.is_done(run_id)
        except ValueError:  # a damaged record, of which the run itself says what to do
            return False

    @contextmanager
    def open_run(self, run_id: str, patience: float = 0.0) -> Iterator[RunWorkspace]:
        """See :meth:`StudyStorage.open_run`. The system frees the lock when the process that holds it dies."""
        folder = self._run_folder(run_id)
        if not (self.folder / STUDY).is_file():
            raise StudyFolderConflict(
                f"{self.folder}: {STUDY} is gone: the study folder was removed or moved while it ran. Move it back, or "
                "give the same command again to begin anew"
            )
        # Looked at when the study began, and again now: somebody may have put a link there since.
        refuse_links(self.folder, [f"{RUNS_FOLDER}/{run_id}"])
        if folder.is_symlink():
            raise LinkError(
                f"{folder}: a link to {folder.resolve()}, so that two runs would write into one folder; remove the link"
            )
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=patience)
        try:
            lock.acquire()
        except Timeout:
            raise RunLocked("another process is on it") from None
        try:
            yield FolderWorkspace(folder)
        finally:
            lock.release()

    def tidy(self, run: NamedRun) -> None:
        """See :meth:`StudyStorage.tidy`."""
        with suppress(RunLocked), self.open_run(run.run_id) as workspace:
            end_run_folder(workspace.folder, run.settings.keep)

    def collect(self) -> tuple[str, ...]:
        """See :func:`attndrift.study.collect.collect`."""
        # Imported here: pandas takes time to load, which only who collects pays.
        from attndrift.results.tables import TABLES

        collect(self.folder)
        return tuple(name for name in TABLES if (self.folder / f"{name}.parquet").exists())


class FolderWorkspace:
    """A run whose folder is all there is to keep: what is written there is kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self) -> None:
        """It is saved."""

    def finish(self) -> None:
        """It is kept."""


def recorded_in(content: Any) -> list[dict[str, Any]]:
    """The runs of what stands in ``study.json``; none where that is no study, of which ``prepare`` says what is wrong."""
    runs = content.get("runs") if isinstance(content, dict) else None
    found = [run for run in (runs if isinstance(runs, list) else []) if isinstance(run, dict)]
    return [
        run
        for run in found
        if "run_id" in run and isinstance(run.get("settings"), dict) and isinstance(run["settings"].get("model"), str)
    ]


def check_folder(study: Study, folder: Path) -> list[dict[str, Any]]:
    """The runs of the study that is in ``folder``, none where there is no folder yet. Writes nothing.

    Raises :class:`StudyFolderConflict`, naming run and setting, where a run that is there has other settings, and
    where the folder holds something else, and :class:`~attndrift.formats.FormatError` for a study of another version.
    """
    path = folder / STUDY
    if folder.exists() and not path.exists() and any(p for p in folder.iterdir() if not p.name.startswith(".")):
        raise StudyFolderConflict(f"{folder}: not empty and not a study folder; choose another with --output")
    if folder.exists():
        refuse_links(folder)
    known: list[dict[str, Any]] = []
    if path.exists():
        content = read_json(path)
        if not isinstance(content, dict) or not {"name", "runs"} <= set(content):
            raise StudyFolderConflict(f"{path}: not the description of a study; restore it, or choose another folder")
        known = described_runs(content, path)
        if content["name"] != study.name:
            raise StudyFolderConflict(
                f"{folder}: holds the study {content['name']!r}, not {study.name!r}; choose another with --output"
            )
    by_name = {str(run["run_id"]): run for run in known}
    for run in study.runs:
        revisions = changed_revision(run, by_name.get(run.run_id, {}))
        if revisions is not None:
            raise StudyFolderConflict(
                f"{folder}: run {run.run_id} was started with `model` {run.settings.model.partition('@')[0]!r} at "
                f"commit {revisions[0]}; now {run.settings.model!r} asks for commit {revisions[1]}. Name the model "
                "without a revision to go on with the recorded one, or use another folder (--output)."
            )
        changed = changed_settings(folder / RUNS_FOLDER / run.run_id, run.settings)
        if changed:
            raise StudyFolderConflict(
                f"{folder}: run {run.run_id} was started with other settings: {name_differences(changed)}. "
                "Use the old settings, or another folder (--output)."
            )
    return known


def prepare_folder(study: Study, folder: Path, others: Callable[[], bool] = lambda: False) -> None:
    """Write ``study.json``, or check that the one there is of this study. A study may gain runs.

    ``others``: whether other drivers are at work on it; while they are, no run is given other settings. Raises as
    :func:`check_folder` does.
    """
    check_folder(study, folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / STUDY
    with FileLock(folder / LOCK):
        remove_half_written(folder, [STUDY])
        # Another process may have written it since.
        order = {str(run["run_id"]): run for run in check_folder(study, folder)}
        at_work = others()
        for run in study.runs:
            changed = differing_settings(order[run.run_id].get("settings"), run.settings) if run.run_id in order else {}
            if changed and at_work:
                raise StudyFolderConflict(
                    f"{folder}: another driver is at work on this study, and would give run {run.run_id} other settings: "
                    f"{name_differences(changed)} here. Wait until it has ended, use the same settings, or choose "
                    "another folder (--output)"
                )
        order |= {run.run_id: run.model_dump(mode="json") for run in study.runs}
        description = {"name": study.name, "description": study.description, "runs": list(order.values())}
        content = redact(numbered("study", description))
        if not path.exists() or read_json(path) != content:
            write_json(path, content)
