"""Several runs of a study at a time, each in a process of its own on this machine.

Two runs on one thread each take less time than one run after the other on two threads: a small model
gives two threads too little to do between their meeting points. What a run computes is the same in
either engine, bit for bit, as its settings say how many threads it has.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing import connection
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from attndrift.study.collect import RUNS_FOLDER
from attndrift.study.engine import Execute, StudyReporter, failed_record, is_done, run_one
from attndrift.study.record import now, read_record, write_record
from attndrift.study.settings import NamedRun, RunSettings, Study


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def jobs_that_fit(settings: Sequence[RunSettings], at_most: int) -> int:
    """How many runs at a time keep the cores busy, each with its threads: at least 1, at most ``at_most``."""
    threads = max(one.threads for one in settings)
    return max(1, min(at_most, usable_cores() // threads, len(settings)))


class Deferred:
    """An :class:`attndrift.study.running.Executor` that is made where it is first called.

    So the process that only looks on imports no torch.
    """

    def __init__(self) -> None:
        self._made: Execute | None = None

    def __call__(self, run: NamedRun, folder: Path, reporter: Any) -> dict[str, Any]:
        if self._made is None:
            from attndrift.study.running import Executor

            self._made = Executor()
        return self._made(run, folder, reporter)


class InProcesses:
    """The engine that runs ``jobs`` runs at a time, each in a process that takes one run after the other.

    ``execute`` must be picklable, and works in each process on its own. A process that dies (out of memory,
    say) fails its run alone; another takes its place. When this process ends, however it ends, so do its
    processes, and what they were at can be resumed.
    """

    def __init__(self, jobs: int) -> None:
        if jobs < 1:
            raise ValueError(f"jobs is {jobs}; it must be at least 1")
        self.jobs = jobs

    def __call__(
        self, study: Study, folder: Path, execute: Execute, reporter: StudyReporter
    ) -> Iterator[tuple[NamedRun, str, str]]:
        """See :class:`attndrift.study.engine.Engine`."""
        waiting: deque[NamedRun] = deque()
        for run in study.runs:
            if is_done(folder / RUNS_FOLDER / run.run_id):
                record = read_record(folder / RUNS_FOLDER / run.run_id)
                yield run, "kept", str(record["status"]) if record else ""
            else:
                waiting.append(run)
        workers = [_Worker(study.name, folder, execute) for _ in range(min(self.jobs, len(waiting)))]
        try:
            for worker in workers:
                worker.give(waiting.popleft())
            while busy := [worker for worker in workers if worker.run is not None]:
                for worker in _ready(busy):
                    ended = worker.hear(reporter)
                    if ended is None:
                        continue
                    if not worker.alive:
                        workers.remove(worker)
                        if waiting:
                            worker = _Worker(study.name, folder, execute)
                            workers.append(worker)
                    if waiting:
                        worker.give(waiting.popleft())
                    yield ended
        finally:
            for worker in workers:
                worker.stop()


def _ready(workers: list[_Worker]) -> list[_Worker]:
    """Those of the workers that have said something, or died."""
    heard = connection.wait([worker.connection for worker in workers])
    return [worker for worker in workers if worker.connection in heard]


class _Worker:
    """This process's side of one of the others."""

    def __init__(self, study: str, folder: Path, execute: Execute) -> None:
        self.study, self.folder = study, folder
        self.run: NamedRun | None = None
        self.alive = True
        self._shown = contextlib.ExitStack()
        self._progress: Any = None
        # Not forked: threads and devices of this process would be in an unknown state there.
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_work, args=(other, study, folder, execute), daemon=True)
        self.process.start()
        # The other end must be open in that process alone, so that its death is heard here.
        other.close()

    def give(self, run: NamedRun) -> None:
        self.run = run
        # If it is dead, `hear` finds out.
        with contextlib.suppress(OSError):
            self.connection.send(run)

    def hear(self, reporter: StudyReporter) -> tuple[NamedRun, str, str] | None:
        """Pass on what the process says; if its run has ended, that run with status and detail."""
        assert self.run is not None
        run = self.run
        try:
            what, *values = self.connection.recv()
        except (EOFError, OSError):
            return self._died(run)
        if what == "run":
            self._progress = self._shown.enter_context(reporter.run(run, self._folder(run)))
        elif what == "ended":
            self._shown.close()
            self.run = None
            return run, str(values[0]), str(values[1])
        else:
            getattr(self._progress, what)(*values)
        return None

    def _folder(self, run: NamedRun) -> Path:
        return self.folder / RUNS_FOLDER / run.run_id

    def _died(self, run: NamedRun) -> tuple[NamedRun, str, str]:
        self.alive, self.run = False, None
        self.process.join()
        code = self.process.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        problem = f"the process that ran it {how}" + (" (out of memory?)" if code == -9 else "")
        if self._progress is not None:
            self._progress.say(problem)
        self._shown.close()
        folder = self._folder(run)
        # Where the lock is held, somebody else has taken the run up already.
        with contextlib.suppress(Timeout), FileLock(folder / ".lock", timeout=0):
            if not is_done(folder):
                record = failed_record(run, self.study, ChildProcessError(problem))
                write_record(folder, {**record, "ended": now()})
        return run, "failed", problem

    def stop(self) -> None:
        self._shown.close()
        self.process.terminate()
        self.process.join()
        self.connection.close()


def _work(link: connection.Connection, study: str, folder: Path, execute: Execute) -> None:
    """Run what comes over ``link``, until the process at its other end is gone."""
    # An interruption of the study is the other process's to handle: it ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    reporter = _Messages(link)
    while True:
        run: NamedRun = link.recv()
        link.send(("ended", *run_one(run, study, folder / RUNS_FOLDER / run.run_id, execute, reporter)))


class _Messages:
    """The reporter in a worker: says everything over the link."""

    def __init__(self, link: connection.Connection) -> None:
        self._link = link

    def begin(self, study: Study, done: int) -> None:
        """Said by the other process."""

    @contextlib.contextmanager
    def run(self, run: NamedRun, folder: Path) -> Iterator[_Messages]:
        self._link.send(("run",))
        yield self

    def step(self, done: int, total: int) -> None:
        self._link.send(("step", done, total))

    def phase(self, what: str) -> None:
        self._link.send(("phase", what))

    def say(self, message: str) -> None:
        self._link.send(("say", message))

    def ended(self, run: NamedRun, status: str, detail: str) -> None:
        """Said by the other process."""
