"""Studies in object stores, or on anything else that ``fsspec`` opens by a URL.

A store has neither locks nor renames. What it has is creation on condition: an object is made if there is none
of its name. A run is claimed by making the claim of the next number, which one process alone can do; the claim
is renewed while the process lives, and one that is not renewed for :data:`LEASE` seconds may be followed by the
next number. A process that finds a number above its own has lost the run, and sends nothing more.

Where the store cannot create on condition, its claims are made in the same way, and hold for one driver at a
time only; :attr:`Store.claims` says which it is.

In the store lie, below the study's URL::

    study.json, *.parquet
    runs/<run>/...                        the run's folder as it was at the end, record.json the last
    .states/<run>/<claim>-<number>.tar    its folder at a resumable state; a .json with checksum is the last
    .claims/<run>/<claim>.json
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import fsspec
from filelock import FileLock, Timeout
from fsspec.asyn import AsyncFileSystem
from fsspec.spec import AbstractFileSystem

from attndrift.data.cache import cache_folder
from attndrift.files import sha256
from attndrift.study.collect import RUNS_FOLDER, STUDY, SWEEP, collect
from attndrift.study.places import Busy, Claim, Place, prepare_folder
from attndrift.study.record import RECORD, SETTINGS
from attndrift.study.settings import NamedRun, Study
from attndrift.tables import SCHEMAS

LEASE = 60.0
"""Seconds without a sign of life after which a run may be claimed by another process."""

KEPT_STATES = 2
HISTORY = "history.jsonl"
_CLAIMS, _STATES = ".claims", ".states"
_STUDY_CLAIM = ".study"  # no run is called so


def _open(url: str) -> tuple[AbstractFileSystem, str]:
    if urlsplit(url).password:
        raise ValueError(
            "the URL of the study's place holds a password, which would be in records and logs; give credentials in "
            "the environment or in a file, as the package for the protocol describes"
        )
    protocol = url.partition("::")[0].partition("://")[0]
    try:
        # What another process has written must be seen: no listing is kept.
        fs, path = fsspec.core.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
    except ImportError as error:
        hint = "pip install 'attndrift[store]'" if protocol in ("s3", "s3a") else str(error)
        raise ValueError(f"{url}: the package for {protocol}:// is not installed ({hint})") from error
    except ValueError as error:
        raise ValueError(f"{url}: {error}") from error
    return fs, str(path).rstrip("/")


def _creates_on_condition(fs: AbstractFileSystem, root: str) -> bool:
    """Whether an object can be created so that only one of many processes does it: as the class says, and tried."""
    # The general way of fsspec is to look first and to write then, which two processes can do at the same time.
    general = {AbstractFileSystem.pipe_file, AsyncFileSystem._pipe_file}
    own = [getattr(type(fs), name, None) for name in ("pipe_file", "_pipe_file")]
    if isinstance(fs, AsyncFileSystem):
        own = own[1:]
    if not any(method is not None and method not in general for method in own):
        return False
    path = f"{root}/{_CLAIMS}/.probe-{secrets.token_hex(8)}"
    try:
        fs.pipe_file(path, b"1", mode="create")
        try:
            fs.pipe_file(path, b"2", mode="create")
        except FileExistsError:
            return True
        except (OSError, NotImplementedError):
            return False
        return False
    except (NotImplementedError, TypeError, ValueError):
        # It has no `mode`, or not this one: a store that cannot is one that is told apart, and no error.
        return False
    finally:
        with suppress(OSError):
            fs.rm_file(path)


class Store(Place):
    """A study in an object store. ``lease``: see :data:`LEASE`; all processes on one study must have the same."""

    def __init__(self, url: str, *, lease: float | None = None) -> None:
        self.url = url.rstrip("/")
        self.lease = lease if lease is not None else float(os.environ.get("ATTNDRIFT_LEASE", LEASE))
        self.fs, self.root = _open(url)
        self._exclusive: bool | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.url,)

    @property
    def exclusive(self) -> bool:
        """Whether several drivers may work on a study here. Asks the store once."""
        if self._exclusive is None:
            self._exclusive = _creates_on_condition(self.fs, self.root)
        return self._exclusive

    @property
    def claims(self) -> str:  # type: ignore[override]
        """How a run comes to belong to one process, in words."""
        if self.exclusive:
            return "conditional creation"
        return "one driver at a time only: the store cannot create on condition"

    # -- objects -------------------------------------------------------------------------------

    def _path(self, *parts: str) -> str:
        return "/".join((self.root, *parts))

    def _read(self, path: str) -> bytes | None:
        try:
            return bytes(self.fs.cat_file(path))
        except FileNotFoundError:
            return None

    def _read_many(self, paths: list[str]) -> dict[str, bytes]:
        """What is there of ``paths``."""
        if not paths:
            return {}
        found = self.fs.cat(paths, on_error="return")
        for value in found.values():
            if isinstance(value, Exception) and not isinstance(value, FileNotFoundError):
                raise value
        return {path: value for path, value in found.items() if isinstance(value, bytes)}

    def _into(self, path: str, write: Callable[[], Any]) -> None:
        """Do ``write``, to ``path``; where folders are more than names, in a folder that is there."""
        try:
            write()
        except FileNotFoundError:
            self.fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            write()

    def _write(self, path: str, value: bytes) -> None:
        self._into(path, lambda: self.fs.pipe_file(path, value))

    def _create(self, path: str, value: bytes) -> bool:
        """Make an object; False where there is one of that name."""
        try:
            self._into(path, lambda: self.fs.pipe_file(path, value, mode="create"))
        except FileExistsError:
            return False
        except OSError as error:
            # So S3 answers where two do it at the very same time.
            if error.errno == errno.EBUSY:
                return False
            raise
        return True

    def _send(self, file: Path, path: str) -> None:
        self._into(path, lambda: self.fs.put_file(str(file), path))

    def _names(self, folder: str) -> list[str]:
        """Names of the objects in ``folder``, sorted."""
        try:
            return sorted(PurePosixPath(path).name for path in self.fs.ls(folder, detail=False))
        except FileNotFoundError:
            return []

    def _files(self, folder: str) -> list[str]:
        """All objects below ``folder``, relative to it."""
        try:
            found = self.fs.find(folder)
        except FileNotFoundError:
            return []
        # Some file systems begin their paths with a slash only when they list them.
        base = PurePosixPath("/" + folder.lstrip("/"))
        return [str(PurePosixPath("/" + path.lstrip("/")).relative_to(base)) for path in found]

    def _remove(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self.fs.rm_file(path)

    # -- the place -----------------------------------------------------------------------------

    def prepare(self, study: Study) -> None:
        """See :meth:`attndrift.study.places.Place.prepare`."""
        with self._held(_STUDY_CLAIM, wait=True), _scratch("study") as folder:
            paths = {self._path(STUDY): folder / STUDY}
            for run in study.runs:
                paths[self._path(RUNS_FOLDER, run.run_id, SETTINGS)] = folder / RUNS_FOLDER / run.run_id / SETTINGS
            self._fetch(paths)
            if not (folder / STUDY).exists() and any(not n.startswith(".") for n in self._names(self.root)):
                raise ValueError(f"{self.url}: not empty and not a study; choose another place with --output")
            before = (folder / STUDY).read_bytes() if (folder / STUDY).exists() else b""
            try:
                prepare_folder(study, folder)
            except ValueError as error:
                raise type(error)(str(error).replace(str(folder), self.url)) from None
            after = (folder / STUDY).read_bytes()
            if after != before:
                self._write(self._path(STUDY), after)

    def _fetch(self, paths: dict[str, Path]) -> None:
        for path, content in self._read_many(list(paths)).items():
            paths[path].parent.mkdir(parents=True, exist_ok=True)
            paths[path].write_bytes(content)

    def planned(self) -> list[NamedRun]:
        """The runs of the study that is there, checked: a name in it becomes a folder."""
        content = self._read(self._path(STUDY))
        if content is None:
            raise ValueError(f"{self.url}: no study there (no {STUDY}); `attndrift run STUDY --output URL` makes one")
        return [NamedRun.model_validate(run) for run in json.loads(content)["runs"]]

    def plans(self, run_id: str) -> bool:
        """See :meth:`attndrift.study.places.Place.plans`."""
        content = self._read(self._path(STUDY))
        return content is not None and any(run["run_id"] == run_id for run in json.loads(content)["runs"])

    def status(self, run_id: str) -> str | None:
        """See :meth:`attndrift.study.places.Place.status`."""
        content = self._read(self._path(RUNS_FOLDER, run_id, RECORD))
        return None if content is None else str(json.loads(content)["status"])

    @contextmanager
    def claimed(self, run_id: str, patience: float = 0.0) -> Iterator[Claim]:
        """See :meth:`attndrift.study.places.Place.claimed`.

        Waits in any case until a claim that is there has shown whether its process lives: a part of the lease.
        """
        with _scratch(run_id) as folder:
            if self.is_done(run_id):
                self._fetch({self._path(RUNS_FOLDER, run_id, RECORD): folder / RECORD})
                yield _Nothing(folder)
                return
            with self._held(run_id, patience=patience) as lease:
                if self.is_done(run_id):
                    self._fetch({self._path(RUNS_FOLDER, run_id, RECORD): folder / RECORD})
                    yield _Nothing(folder)
                    return
                claim = _StoreClaim(self, run_id, folder, lease)
                claim.restore()
                yield claim

    def collect(self) -> None:
        """See :meth:`attndrift.study.places.Place.collect`."""
        with _scratch("tables") as folder, self._held(_STUDY_CLAIM, wait=True):
            self.fetch_tables(folder)
            for name in SCHEMAS:
                path = folder / f"{name}.parquet"
                if path.exists():
                    self._send(path, self._path(path.name))

    def fetch_tables(self, folder: Path) -> None:
        """Gather the tables of the study into ``folder``, with the descriptions that they are made of."""
        paths = {self._path(STUDY): folder / STUDY}
        for run in self.planned():
            for name in (RECORD, HISTORY, SWEEP):
                paths[self._path(RUNS_FOLDER, run.run_id, name)] = folder / RUNS_FOLDER / run.run_id / name
        self._fetch(paths)
        collect(folder)

    def fetch(self, folder: Path, progress: Callable[[str], None] = lambda _: None) -> int:
        """Copy the study into ``folder``, a study folder then; returns how many files were fetched.

        Runs that are not done come without what they have so far. Files that are there with the same
        size are not fetched again, records and tables excepted.
        """
        wanted = [STUDY]
        for run in self.planned():
            base = f"{RUNS_FOLDER}/{run.run_id}"
            if self.is_done(run.run_id):
                names = self._files(self._path(base))
                # The record is the last to come here too: a run without one is not done.
                wanted += [f"{base}/{name}" for name in sorted(names, key=lambda n: n == RECORD)]
        count = 0
        for name in wanted:
            target = (folder / name).resolve()
            if not target.is_relative_to(folder.resolve()):
                raise ValueError(f"{self.url}: the name {name!r} leads out of the study")
            size = self.fs.info(self._path(name)).get("size")
            if target.is_file() and target.stat().st_size == size and target.suffix not in (".json", ".parquet"):
                continue
            progress(name)
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.part")
            self.fs.get_file(self._path(name), str(temporary))
            os.replace(temporary, target)
            count += 1
        collect(folder)
        return count

    # -- claims --------------------------------------------------------------------------------

    @contextmanager
    def _held(self, name: str, *, patience: float = 0.0, wait: bool = False) -> Iterator[_Lease]:
        lease = _Lease(self, name)
        lease.acquire(patience, wait=wait)
        try:
            yield lease
        finally:
            lease.release()

    def _now(self) -> float | None:
        """The store's own time, in seconds; None where it does not say when an object was written."""
        path = self._path(_CLAIMS, f".clock-{secrets.token_hex(8)}")
        try:
            self._write(path, b"")
            return float(self.fs.modified(path).timestamp())
        except NotImplementedError:
            return None
        finally:
            self._remove(path)


class _Lease:
    """A claim on a name. Its number is above that of every claim before it."""

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.name = store, name
        self.token = secrets.token_hex(16)
        self.number = 0
        self._beat = 0
        self._lost = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._renewed = time.monotonic()

    def _claim(self, number: int) -> str:
        return self.store._path(_CLAIMS, self.name, f"{number:06d}.json")

    def _numbers(self) -> list[int]:
        names = self.store._names(self.store._path(_CLAIMS, self.name))
        return sorted(int(name.removesuffix(".json")) for name in names if name.removesuffix(".json").isdigit())

    def _content(self, *, released: bool = False) -> bytes:
        return json.dumps({"token": self.token, "beat": self._beat, "released": released}).encode()

    def acquire(self, patience: float, *, wait: bool) -> None:
        """Make the claim. Raises :class:`Busy` where another process shows that it lives."""
        begun = time.monotonic()
        seen: tuple[int, bytes | None] | None = None
        since, first = begun, True
        while True:
            top = max(self._numbers(), default=0)
            content = self.store._read(self._claim(top)) if top else None
            changed = (top, content) != seen
            if changed:
                first, seen, since = seen is None, (top, content), time.monotonic()
            if self._is_free(top, content, since):
                if self.store._create(self._claim(top + 1), self._content()):
                    break
            elif changed and not first and not wait and time.monotonic() - begun >= patience:
                raise Busy("another process is on it")
            time.sleep(self.store.lease / 20)
        self.number = top + 1
        self._renewed = time.monotonic()
        for old in self._numbers():
            if old < self.number:
                self.store._remove(self._claim(old))
        self._thread = threading.Thread(target=self._keep, daemon=True, name=f"lease of {self.name}")
        self._thread.start()

    def _is_free(self, top: int, content: bytes | None, since: float) -> bool:
        if content is None:
            return True
        with suppress(ValueError, KeyError, TypeError):
            if json.loads(content)["released"]:
                return True
        # By this process's own clock nothing has changed for a lease; or by the store's, which needs no waiting.
        # The time of one machine is never compared with that of another.
        if time.monotonic() - since > self.store.lease:
            return True
        now = self.store._now()
        try:
            written = self.store.fs.modified(self._claim(top)).timestamp()
        except (NotImplementedError, FileNotFoundError):
            return False
        return now is not None and now - written > self.store.lease

    def _keep(self) -> None:
        while not self._stop.wait(self.store.lease / 6):
            try:
                if not self.check():
                    return
                self._beat += 1
                self.store._write(self._claim(self.number), self._content())
                self._renewed = time.monotonic()
            except Exception:
                # The store is out of reach: the next time may succeed, and `check` knows how long ago the last was.
                continue

    def check(self) -> bool:
        """Whether the claim still holds."""
        if not self._lost and max(self._numbers(), default=0) != self.number:
            self._lost = True
        return not self._lost

    def require(self) -> None:
        """Raise :class:`Busy` where the claim is lost."""
        if not self.check():
            raise Busy("the claim on it was lost: this process was out of touch, and another one has taken it up")

    def release(self) -> None:
        """Let go, so that the next process need not wait."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        with suppress(OSError):
            if self.check():
                self.store._write(self._claim(self.number), self._content(released=True))


class _Nothing:
    """The claim of a run that is done: there is nothing to keep."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self) -> None:
        """Nothing changes."""

    def finish(self) -> None:
        """Nothing changes."""


class _StoreClaim:
    """A run that this process executes in a local folder, and keeps in the store."""

    def __init__(self, store: Store, run_id: str, folder: Path, lease: _Lease) -> None:
        self.store, self.run_id, self.folder, self.lease = store, run_id, folder, lease
        self._states = store._path(_STATES, run_id)
        self._saved = 0

    def restore(self) -> None:
        """Bring the folder to the newest resumable state that the store has whole."""
        for name in reversed(self._markers()):
            marker = self.store._read(f"{self._states}/{name}.json")
            if marker is None:
                continue
            archive = self.folder.parent / f"{self.folder.name}.tar"
            try:
                expected = json.loads(marker)["sha256"]
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
        names = self.store._names(self._states)
        return sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))

    def save(self) -> None:
        """Send the folder as one object, then the marker that makes it count; keep the newest two."""
        self.lease.require()
        self._saved += 1
        name = f"{self.lease.number:06d}-{self._saved:06d}"
        archive = self.folder.parent / f"{self.folder.name}.tar"
        try:
            with tarfile.open(archive, "w") as tar:
                for path in self._kept(newest_state_only=True):
                    tar.add(path, str(path.relative_to(self.folder)), recursive=False)
            marker = {"sha256": sha256(archive), "size": archive.stat().st_size}
            self.store._send(archive, f"{self._states}/{name}.tar")
        finally:
            archive.unlink(missing_ok=True)
        self.store._write(f"{self._states}/{name}.json", json.dumps(marker).encode())
        for old in self._markers()[:-KEPT_STATES]:
            self._remove_state(old)

    def _remove_state(self, name: str) -> None:
        self.store._remove(f"{self._states}/{name}.json")
        self.store._remove(f"{self._states}/{name}.tar")

    def _kept(self, *, newest_state_only: bool = False) -> list[Path]:
        """Files of the run, without locks and what is half written."""
        found = []
        steps = [p.name for p in (self.folder / "resume").glob("step-*")] if newest_state_only else []
        older = set(sorted(steps, key=lambda n: int(n.removeprefix("step-")))[:-1])
        for path in sorted(self.folder.rglob("*")):
            parts = path.relative_to(self.folder).parts
            hidden = any(part.startswith(".") for part in parts)
            if path.is_file() and not hidden and not (parts[0] == "resume" and len(parts) > 1 and parts[1] in older):
                found.append(path)
        return found

    def finish(self) -> None:
        """Send the folder file by file, the record last; what the store had of the run otherwise goes."""
        failed = json.loads((self.folder / RECORD).read_bytes())["status"] == "failed"
        self.lease.require()
        base = self.store._path(RUNS_FOLDER, self.run_id)
        files = [path for path in self._kept() if path.relative_to(self.folder).parts[0] != "resume"]
        files.sort(key=lambda path: path == self.folder / RECORD)
        names = [path.relative_to(self.folder).as_posix() for path in files]
        for old in set(self.store._files(base)) - set(names):
            self.store._remove(f"{base}/{old}")
        for path, name in zip(files, names, strict=True):
            if name == RECORD:
                self.lease.require()
            self.store._send(path, f"{base}/{name}")
        if not failed:  # a run that failed goes on from them the next time
            for name in self._markers():
                self._remove_state(name)


@contextmanager
def _scratch(name: str) -> Iterator[Path]:
    """An empty local folder for the time being; what killed processes left of theirs is removed."""
    root = cache_folder() / "places"
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
