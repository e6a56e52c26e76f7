"""Studies in object stores, or on anything else that ``fsspec`` opens by a URL.

One driver works on a study in a store: the process that the marker ``.driver.json`` names. It, and the workers
to which it hands its token, read the marker before each write and stop where it names another driver. What remains is
the moment between that look and the end of the write: after a takeover, each process of the former driver may still
change one object. That is a state, which counts only with its checksum, or a table or a file of a run that it was
ending, which the new driver sends once more; or, where the former driver was just leaving, the new one's marker, which
stops the new one.

A store that creates objects on condition (S3, GCS, Azure, MinIO) gives the marker to one of two drivers that start at
the same moment. Elsewhere the later one has it, and the other stops before its next write.

In the store lie, below the study's URL::

    study.json, *.parquet
    runs/<run>/...                        the run's folder as it was at the end, record.json the last
    .states/<run>/<number>-<worker>.tar   its folder at a resumable state; a .json with checksum is the last
    .workers/<run>                        the worker that began the run last
    .driver.json
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from attndrift.data.cache import cache_folder
from attndrift.files import parse_json, sha256
from attndrift.results.tables import TABLES
from attndrift.study.collect import HISTORY, RUNS_FOLDER, STUDY, SWEEP, collect, described_runs
from attndrift.study.driver_marker import DriverMarker
from attndrift.study.inputs import INPUTS, read_inputs
from attndrift.study.objects import ObjectStore
from attndrift.study.record import RECORD, SETTINGS, check_record, read_record
from attndrift.study.settings import NamedRun, Study
from attndrift.study.storage import (
    FolderWorkspace,
    RunLocked,
    RunWorkspace,
    StudyStorage,
    prepare_folder,
    recorded_in,
)

KEPT_STATES = 2
_STATES, _WORKERS = ".states", ".workers"


class ObjectStorage(StudyStorage):
    """A study in an object store. ``token``: of the driver that this process works for."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self.url, self.token = url.rstrip("/"), token
        self.store = ObjectStore(url)
        self.marker = DriverMarker(self.store, self.url)

    def __reduce__(self) -> tuple[Any, ...]:
        return ObjectStorage, (self.url, self.token)

    # -- the driver ----------------------------------------------------------------------------

    @contextmanager
    def driver(self, say: Callable[[str], None], *, take_over: bool = False) -> Iterator[None]:
        """See :meth:`attndrift.study.storage.StudyStorage.driver`. Raises :class:`StudyLocked`."""
        self.token = self.marker.take(say, take_over=take_over)
        try:
            yield
        finally:
            self.marker.release(self.token)
            self.token = None

    def require_driver(self) -> None:
        """Raise :class:`DriverReplaced` unless this process is the study's driver, or works for it."""
        self.marker.require(self.token)

    # -- the study -----------------------------------------------------------------------------

    def prepare(self, study: Study) -> None:
        """See :meth:`attndrift.study.storage.StudyStorage.prepare`."""
        store = self.store
        with _scratch("study") as folder:
            paths = {store.path(STUDY): folder / STUDY}
            for run in study.runs:
                paths[store.path(RUNS_FOLDER, run.run_id, SETTINGS)] = folder / RUNS_FOLDER / run.run_id / SETTINGS
            store.fetch(paths)
            if not (folder / STUDY).exists() and any(not n.startswith(".") for n in store.files(store.root)):
                raise ValueError(f"{self.url}: not empty and not a study; choose another with --output")
            before = (folder / STUDY).read_bytes() if (folder / STUDY).exists() else b""
            try:
                prepare_folder(study, folder)
            except ValueError as error:
                raise type(error)(str(error).replace(str(folder), self.url)) from None
            after = (folder / STUDY).read_bytes()
            if after != before:
                self.require_driver()
                store.write(store.path(STUDY), after)
        self._remove_left()

    def _remove_left(self) -> None:
        """Remove states and workers of runs that are done: a driver that was killed after a record did not come to it."""
        for kind in (_STATES, _WORKERS):
            left: dict[str, list[str]] = {}
            for name in self.store.files(self.store.path(kind)):
                left.setdefault(name.partition("/")[0], []).append(name)
            for run_id, names in left.items():
                with suppress(ValueError):  # a record that cannot be read is for whoever runs it to say
                    if self.is_done(run_id):
                        self.require_driver()
                        for name in names:
                            self.store.remove(self.store.path(kind, name))

    def _described(self) -> list[dict[str, Any]] | None:
        """The runs in ``study.json``, checked: a name in it becomes a folder. None where there is no study."""
        content, where = self.store.read(self.store.path(STUDY)), f"{self.url}/{STUDY}"
        return None if content is None else described_runs(parse_json(content, where), where)

    def planned(self) -> list[NamedRun]:
        """The runs of the study that is there."""
        runs = self._described()
        if runs is None:
            raise ValueError(f"{self.url}: no study there (no {STUDY}); `attndrift run STUDY --output URL` makes one")
        try:
            return [NamedRun.model_validate(run) for run in runs]
        except ValueError as error:
            raise ValueError(f"{self.url}/{STUDY}: holds settings of no run ({error})") from error

    def recorded_runs(self) -> list[dict[str, Any]]:
        """See :meth:`attndrift.study.storage.StudyStorage.recorded_runs`."""
        content = self.store.read(self.store.path(STUDY))
        return [] if content is None else recorded_in(parse_json(content, f"{self.url}/{STUDY}"))

    def plans(self, run_id: str) -> bool:
        """See :meth:`attndrift.study.storage.StudyStorage.plans`."""
        return any(run["run_id"] == run_id for run in self._described() or [])

    def status(self, run_id: str) -> str | None:
        """See :meth:`attndrift.study.storage.StudyStorage.status`."""
        content = self.store.read(self.store.path(RUNS_FOLDER, run_id, RECORD))
        if content is None:
            return None
        where = f"{self.url}/{RUNS_FOLDER}/{run_id}/{RECORD}"
        return str(check_record(parse_json(content, where), where)["status"])

    def recorded_inputs(self) -> dict[str, dict[str, Any]]:
        """See :meth:`attndrift.study.storage.StudyStorage.recorded_inputs`; of runs that are done."""
        with _scratch("inputs") as folder:
            names = [run.run_id for run in self.planned()]
            self.store.fetch({self.store.path(RUNS_FOLDER, name, INPUTS): folder / name / INPUTS for name in names})
            found = {name: read_inputs(folder / name) for name in names}
        return {name: inputs for name, inputs in found.items() if inputs and self.is_done(name)}

    @contextmanager
    def open_run(self, run_id: str, patience: float = 0.0) -> Iterator[RunWorkspace]:
        """See :meth:`attndrift.study.storage.StudyStorage.open_run`.

        Waits for nobody: the driver begins a run again only when it has given up the worker before, which stops then.
        """
        with _scratch(run_id) as folder:
            self.require_driver()
            if self.is_done(run_id):
                self.store.fetch({self.store.path(RUNS_FOLDER, run_id, RECORD): folder / RECORD})
                yield FolderWorkspace(folder)
                return
            run = _RunInStore(self, run_id, folder)
            run.restore()
            yield run

    def collect(self) -> tuple[str, ...]:
        """See :meth:`attndrift.study.storage.StudyStorage.collect`."""
        paths = {self.store.path(STUDY): STUDY}
        for run in self.planned():
            for name in (RECORD, HISTORY, SWEEP):
                paths[self.store.path(RUNS_FOLDER, run.run_id, name)] = f"{RUNS_FOLDER}/{run.run_id}/{name}"
        with _scratch("tables") as folder:
            self.store.fetch({path: folder / name for path, name in paths.items()})
            collect(folder)
            written = tuple(name for name in TABLES if (folder / f"{name}.parquet").exists())
            for name in written:
                self.require_driver()
                self.store.send(folder / f"{name}.parquet", self.store.path(f"{name}.parquet"))
        return written

    def fetch(self, folder: Path, progress: Callable[[str], None] = lambda _: None) -> int:
        """Copy the study into ``folder``, a study folder then; returns how many files were fetched.

        Runs that are not done come without what they have so far. Files that are there with the same
        size are not fetched again, records and tables excepted.
        """
        store, wanted = self.store, [STUDY]
        for run in self.planned():
            base = f"{RUNS_FOLDER}/{run.run_id}"
            if self.is_done(run.run_id):
                names = store.files(store.path(base))
                # The record is the last to come here too: a run without one is not done.
                wanted += [f"{base}/{name}" for name in sorted(names, key=lambda n: n == RECORD)]
        count = 0
        for name in wanted:
            target = (folder / name).resolve()
            if not target.is_relative_to(folder.resolve()):
                raise ValueError(f"{self.url}: the name {name!r} leads out of the study")
            size = store.fs.info(store.path(name)).get("size")
            if target.is_file() and target.stat().st_size == size and target.suffix not in (".json", ".parquet"):
                continue
            progress(name)
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.part")
            store.fs.get_file(store.path(name), str(temporary))
            os.replace(temporary, target)
            count += 1
        collect(folder)
        return count


class _RunInStore:
    """A run that this process executes in a local folder, and keeps in the store."""

    def __init__(self, storage: ObjectStorage, run_id: str, folder: Path) -> None:
        self.storage, self.store, self.run_id, self.folder = storage, storage.store, run_id, folder
        self._states = self.store.path(_STATES, run_id)
        self._worker = self.store.path(_WORKERS, run_id)
        self._token = secrets.token_hex(8)
        # A worker of the same driver that was given up, and lives on out of touch, finds another token here.
        self.store.write(self._worker, self._token.encode())
        names = self._markers()
        self._saved = int(names[-1].partition("-")[0]) if names else 0

    def _require(self) -> None:
        """Raise unless this process may write: before each write."""
        self.storage.require_driver()
        if self.store.read(self._worker) != self._token.encode():
            raise RunLocked("its driver has given this worker up, and another one has begun the run again")

    def restore(self) -> None:
        """Bring the folder to the newest resumable state that the store has whole."""
        for name in reversed(self._markers()):
            marker = self.store.read(f"{self._states}/{name}.json")
            if marker is None:
                continue
            archive = self.folder.parent / f"{self.folder.name}.tar"
            try:
                expected = parse_json(marker, name)["sha256"]
                self.store.fs.get_file(f"{self._states}/{name}.tar", str(archive))
                if sha256(archive) == expected:
                    with tarfile.open(archive) as tar:
                        tar.extractall(self.folder, filter="data")
                    return
            except (FileNotFoundError, ValueError, KeyError, TypeError, tarfile.TarError):
                # Cut short or changed: the one before is used.
                for path in self.folder.iterdir():
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            finally:
                archive.unlink(missing_ok=True)

    def _markers(self) -> list[str]:
        """Names of the states whose checksum is there, oldest first."""
        names = [name.removesuffix(".json") for name in self.store.files(self._states) if name.endswith(".json")]
        return [name for name in names if re.fullmatch("[0-9]{1,18}", name.partition("-")[0])]

    def save(self) -> None:
        """Send the folder as one object, then the checksum that makes it count; keep the newest two."""
        self._require()
        self._saved += 1
        name = f"{self._saved:06d}-{self._token}"
        archive = self.folder.parent / f"{self.folder.name}.tar"
        try:
            with tarfile.open(archive, "w") as tar:
                for path in self._kept(newest_state_only=True):
                    tar.add(path, str(path.relative_to(self.folder)), recursive=False)
            marker = {"sha256": sha256(archive), "size": archive.stat().st_size}
            self.store.send(archive, f"{self._states}/{name}.tar")
        finally:
            archive.unlink(missing_ok=True)
        self._require()
        self.store.write(f"{self._states}/{name}.json", json.dumps(marker).encode())
        self._show()
        for old in self._markers()[:-KEPT_STATES]:
            self._require()
            self.store.remove(f"{self._states}/{old}.json")
            self.store.remove(f"{self._states}/{old}.tar")

    def _show(self) -> None:
        """Send what `attndrift watch` shows of a run under way. Nothing else reads it: only a record makes a run count."""
        for path in (self.folder / SETTINGS, self.folder / HISTORY):
            if path.is_file():
                self.store.send(path, self.store.path(RUNS_FOLDER, self.run_id, path.name))

    def _kept(self, *, newest_state_only: bool = False) -> list[Path]:
        """Files of the run, without locks and what is half written."""
        found = []
        steps = [p.name for p in (self.folder / "resume").glob("step-*")] if newest_state_only else []
        older = set(sorted((name for name in steps if re.fullmatch("step-[0-9]{1,18}", name)), key=_step)[:-1])
        for path in sorted(self.folder.rglob("*")):
            parts = path.relative_to(self.folder).parts
            hidden = any(part.startswith(".") for part in parts)
            if path.is_file() and not hidden and not (parts[0] == "resume" and len(parts) > 1 and parts[1] in older):
                found.append(path)
        return found

    def finish(self) -> None:
        """Send the folder file by file, the record last; what the store had of the run otherwise goes."""
        failed = (read_record(self.folder) or {}).get("status") == "failed"
        base = self.store.path(RUNS_FOLDER, self.run_id)
        files = [path for path in self._kept() if path.relative_to(self.folder).parts[0] != "resume"]
        files.sort(key=lambda path: path == self.folder / RECORD)
        names = [path.relative_to(self.folder).as_posix() for path in files]
        for old in set(self.store.files(base)) - set(names):
            self._require()
            self.store.remove(f"{base}/{old}")
        for path, name in zip(files, names, strict=True):
            self._require()
            self.store.send(path, f"{base}/{name}")
        if failed:  # it goes on from its states the next time
            return
        self._require()
        for name in self.store.files(self._states):
            self.store.remove(f"{self._states}/{name}")
        self.store.remove(self._worker)


def _step(name: str) -> int:
    return int(name.removeprefix("step-"))


@contextmanager
def _scratch(name: str) -> Iterator[Path]:
    """An empty local folder for the time being; what killed processes left of theirs is removed."""
    root = cache_folder() / "object-storage"
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".lock"):
        for left in root.iterdir():
            # A lock that is free belongs to nobody any more.
            if left.is_dir():
                with suppress(Timeout, OSError), FileLock(left / ".lock", timeout=0):
                    shutil.rmtree(left, ignore_errors=True)
        outer = Path(tempfile.mkdtemp(dir=root, prefix=f"{name}-"))
        lock = FileLock(outer / ".lock")
        lock.acquire()
    folder = outer / "run"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(outer, ignore_errors=True)
        lock.release()
