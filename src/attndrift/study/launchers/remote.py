"""What a process on another machine does with one run, and how the driver hears of it. Engines share it."""

from __future__ import annotations

import os
import pickle
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from attndrift.study.runner import Execute, StudyReporter, record_failure, run_one
from attndrift.study.settings import NamedRun, Study
from attndrift.study.storage import LocalStorage, StudyStorage
from attndrift.study.storage_url import open_storage
from attndrift.version import __version__

PATIENCE = 30.0
"""Seconds that a worker waits for the one before it to let go of the run: it may be dying still."""

STEPS_EVERY = 0.5
"""Seconds between two messages about steps."""

CANNOT = "cannot"
"""What :meth:`RemoteRun.carry_out` returns as status where a machine is not fit to run a study."""

Message = tuple[Any, ...]
"""What is said, and its values: ``("step", done, total)``, ``("say", line)``, ..."""


@dataclass(frozen=True)
class RemoteRun:
    """One run, as it is handed to a worker on another machine: plain values only.

    Attributes:
        run: the run, as JSON.
        study: the study's name.
        storage: what :func:`attndrift.study.storage_url.open_storage` opens the study by.
        driver: the driver's token, where the study is in an object store; the worker stops when it is replaced.
        execute: pickled by the driver for its own workers.
        folder: the driver's working folder, which relative paths in settings start from.
        version: the driver's version of this package.
    """

    run: str
    study: str
    storage: str
    driver: str | None
    execute: bytes
    folder: str
    version: str

    @classmethod
    def of(cls, run: NamedRun, study: Study, storage: StudyStorage, execute: Execute) -> RemoteRun:
        """``run`` of a study that this process drives."""
        url = os.path.abspath(storage.folder) if isinstance(storage, LocalStorage) else storage.url
        work = pickle.dumps(execute)
        return cls(run.model_dump_json(), study.name, url, storage.token, work, os.getcwd(), __version__)

    def carry_out(self, send: Callable[[Message], None], patience: float = PATIENCE) -> tuple[str, str]:
        """Run it here; returns status and detail. ``send`` tells the driver how it goes.

        The status is :data:`CANNOT` where this machine could not even begin; see :func:`settle`.
        """
        # Libraries report their own progress and advice; a study has its own.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        here = socket.gethostname()
        if __version__ != self.version:
            return CANNOT, f"{here} has attndrift {__version__}, the driver {self.version}; install one version"
        with suppress(OSError):
            os.chdir(self.folder)
        run = NamedRun.model_validate_json(self.run)
        storage = open_storage(self.storage, self.driver)
        if not storage.plans(run.run_id):
            return CANNOT, (
                f"{here} does not see the study in {self.storage}: put it on a file system that all machines share, or "
                "in an object store (--output s3://BUCKET/STUDY)"
            )
        return run_one(run, self.study, storage, _executor(self.execute), Sender(send), patience=patience)


def settle(run: NamedRun, study: Study, storage: StudyStorage, status: str, detail: str) -> tuple[str, str]:
    """Status and detail of a run as :meth:`StudyReporter.ended` is told; one that no machine could begin has failed."""
    if status != CANNOT:
        return status, detail
    record_failure(run, study.name, storage, RuntimeError(detail))
    return "failed", detail


_EXECUTORS: dict[bytes, Execute] = {}


def _executor(pickled: bytes) -> Execute:
    """One executor a process: runs that come here one after the other share imports, images and backbones."""
    if pickled not in _EXECUTORS:
        _EXECUTORS[pickled] = pickle.loads(pickled)
    return _EXECUTORS[pickled]


class Sender:
    """The study's reporter in a worker: sends everything to the driver."""

    def __init__(self, send: Callable[[Message], None]) -> None:
        self._send = send
        self._stepped = 0.0

    def begin(self, study: Study, done: int) -> None:
        """Said by the driver."""

    @contextmanager
    def run(self, run: NamedRun) -> Iterator[Sender]:
        """Yield itself, as the reporter of a run."""
        self._send(("begun", socket.gethostname(), os.getpid()))
        yield self

    def step(self, done: int, total: int) -> None:
        """Send the step, unless one was sent a moment ago."""
        if done == total or time.monotonic() - self._stepped >= STEPS_EVERY:
            self._stepped = time.monotonic()
            self._send(("step", done, total))

    def evaluated(self, step: int, total: int, values: Mapping[str, float]) -> None:
        """Send what was measured."""
        self._send(("evaluated", step, total, dict(values)))

    def phase(self, what: str) -> None:
        """Send what the run is doing now."""
        self._send(("phase", what))

    def say(self, message: str) -> None:
        """Send a line of the log."""
        self._send(("say", message))

    def ended(self, run: NamedRun, status: str, detail: str) -> None:
        """Said by the driver."""


class Receiver:
    """The driver's side: tells the study's reporter what the workers send."""

    def __init__(self, reporter: StudyReporter) -> None:
        self._reporter = reporter
        self._shown: dict[str, tuple[ExitStack, Any]] = {}
        self.starts: dict[str, int] = {}

    def hear(self, run: NamedRun, message: Message) -> None:
        """Pass on one message about ``run``."""
        what, *values = message
        if what == "begun":
            self.starts[run.run_id] = self.starts.get(run.run_id, 0) + 1
            if run.run_id not in self._shown:
                stack = ExitStack()
                self._shown[run.run_id] = stack, stack.enter_context(self._reporter.run(run))
            self._shown[run.run_id][1].started(str(values[0]), self.starts[run.run_id])
        elif run.run_id in self._shown:
            getattr(self._shown[run.run_id][1], what)(*values)

    def close(self, run: NamedRun | None = None) -> None:
        """``run`` is no longer under way; without one, none is."""
        for name in [run.run_id] if run is not None else list(self._shown):
            if name in self._shown:
                self._shown.pop(name)[0].close()
