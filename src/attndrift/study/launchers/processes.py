"""Several runs of a study at a time, each in a process of its own on this machine.

Two runs on one thread each take less time than one run after the other on two threads: a small model
gives two threads too little to do between their meeting points. What a run computes is the same in
either engine, bit for bit, as its settings say how many threads it has.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from multiprocessing import connection
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

from attndrift.study.allocator import keep_freed_memory
from attndrift.study.runner import Ended, EndedRuns, Execute, StudyReporter, record_failure, run_one
from attndrift.study.scheduler import Schedule
from attndrift.study.settings import NamedRun, RunSettings, Study
from attndrift.study.storage import StudyStorage
from attndrift.study.time_limit import spoken

START_UP = 300.0
"""Seconds that a process may take before its run begins."""


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def jobs_that_fit(settings: Sequence[RunSettings], at_most: int) -> int:
    """How many runs at a time keep the cores busy, each with its threads: at least 1, at most ``at_most``."""
    threads = max(one.threads for one in settings)
    return max(1, min(at_most, usable_cores() // threads, len(settings)))


def no_accelerator(settings: Iterable[RunSettings]) -> bool:
    """Whether these runs surely touch none: told without torch, which must not be asked before a process is forked."""
    devices = {one.device for one in settings}
    if devices <= {"cpu"}:
        return True
    present = [*Path("/dev").glob("nvidia*"), Path("/dev/kfd"), Path("/dev/dxg")]
    return devices <= {"cpu", "auto"} and not any(path.exists() for path in present)


class ProcessLauncher:
    """The engine that runs ``jobs`` runs at a time, each in a process that takes one run after the other.

    ``execute`` must be picklable, and works in each process on its own. Where it names a module as its ``preload``, the
    processes are forked from one that has imported it, for that takes several seconds and much memory each time; not
    where a run may use an accelerator, which a forked process could not, nor on other systems than Linux. In which
    order runs begin: see :mod:`attndrift.study.scheduler`. A process that dies (out of memory,
    say) fails its run alone; another takes its place. When this process ends, however it ends, so do its
    processes, and what they were at can be resumed.

    ``time_limit``: seconds after which a run is ended, as one that hangs. It counts as failed, and goes on from
    its last state the next time.
    """

    def __init__(self, jobs: int, *, time_limit: float | None = None) -> None:
        if jobs < 1:
            raise ValueError(f"jobs is {jobs}; it must be at least 1")
        if time_limit is not None and not time_limit > 0:
            raise ValueError(f"time_limit is {time_limit}; it must be more than 0 seconds")
        self.jobs, self.time_limit = jobs, time_limit

    def __call__(self, study: Study, storage: StudyStorage, execute: Execute, reporter: StudyReporter) -> EndedRuns:
        """See :class:`attndrift.study.runner.Engine`."""
        schedule = Schedule(study.runs, self.jobs)
        context = _context(execute, study.runs)
        workers = [_Worker(context, study.name, storage, execute) for _ in range(min(self.jobs, len(study.runs)))]

        def next_run() -> NamedRun:
            return schedule.take([(one.run, max(0.0, one.age)) for one in workers if one.run is not None])

        try:
            for worker in workers:
                worker.give(next_run())
            # What collects the runs, imported while the others are at longer imports and this process would wait.
            importlib.import_module("attndrift.results.tables")
            while busy := [worker for worker in workers if worker.run is not None]:
                for worker in _ready(busy, self.time_limit):
                    late = self.time_limit is not None and worker.age > self.time_limit
                    ended = worker.end(self.time_limit or 0.0) if late else worker.hear(reporter)
                    if ended is None:
                        continue
                    if ended[1] == "finished":
                        schedule.took(ended[0], worker.age)
                    if not worker.alive:
                        workers.remove(worker)
                        if len(schedule):
                            worker = _Worker(context, study.name, storage, execute)
                            workers.append(worker)
                    if len(schedule):
                        worker.give(next_run())
                    yield ended
        finally:
            for worker in workers:
                worker.stop()


def _context(execute: Execute, runs: Sequence[NamedRun]) -> BaseContext:
    """How processes are started. Never as copies of this one, whose threads and devices would be in an unknown state there."""
    preload = getattr(execute, "preload", None)
    if preload is None or sys.platform != "linux" or not no_accelerator(run.settings for run in runs):
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preload])
    return context


def _ready(workers: list[_Worker], time_limit: float | None) -> list[_Worker]:
    """Those of the workers that have said something, or died, or have had their time."""
    patience = None if time_limit is None else max(0.0, time_limit - max(worker.age for worker in workers))
    heard = connection.wait([worker.connection for worker in workers], patience)
    late = [worker for worker in workers if time_limit is not None and worker.age > time_limit]
    return [worker for worker in workers if worker.connection in heard or worker in late]


class _Worker:
    """This process's side of one of the others."""

    def __init__(self, context: BaseContext, study: str, storage: StudyStorage, execute: Execute) -> None:
        self.study, self.storage = study, storage
        self.run: NamedRun | None = None
        self.alive = True
        self._shown = contextlib.ExitStack()
        self._progress: Any = None
        self._begun = 0.0
        self.connection, other = context.Pipe()
        arguments = (other, study, storage, execute, dict(os.environ))
        self.process: Any = context.Process(target=_work, args=arguments, daemon=True)  # type: ignore[attr-defined]
        self.process.start()
        # The other end must be open in that process alone, so that its death is heard here.
        other.close()

    @property
    def age(self) -> float:
        """Seconds since its run has begun, negative before; no clock that can be set."""
        return time.monotonic() - self._begun

    def give(self, run: NamedRun) -> None:
        # Starting a process is no part of a run; one that hangs there has this much longer.
        self.run, self._begun = run, time.monotonic() + START_UP
        # If it is dead, `hear` finds out.
        with contextlib.suppress(OSError):
            self.connection.send(run)

    def hear(self, reporter: StudyReporter) -> Ended | None:
        """Pass on what the process says; if its run has ended, that run with status and detail."""
        assert self.run is not None
        run = self.run
        try:
            what, *values = self.connection.recv()
        except (EOFError, OSError):
            return self._died(run)
        if what == "run":
            self._begun = time.monotonic()
            self._progress = self._shown.enter_context(reporter.run(run))
        elif what == "ended":
            self._shown.close()
            self.run = None
            return run, str(values[0]), str(values[1])
        else:
            getattr(self._progress, what)(*values)
        return None

    def _died(self, run: NamedRun) -> Ended:
        self.process.join()
        code = self.process.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        return self._lost(run, f"the process that ran it {how}" + (" (out of memory?)" if code == -9 else ""))

    def end(self, time_limit: float) -> Ended:
        """End the process, which has had its time, whatever it is at."""
        assert self.run is not None
        # Not asked to: what hangs may not listen. Its states are whole at any moment.
        self.process.kill()
        self.process.join()
        return self._lost(
            self.run,
            f"it was ended after {spoken(time_limit)} (--time-limit); the same command goes on from its last state, and "
            "with a longer limit if it was not hanging",
        )

    def _lost(self, run: NamedRun, problem: str) -> Ended:
        self.alive, self.run = False, None
        self._shown.close()
        record_failure(run, self.study, self.storage, ChildProcessError(problem))
        return run, "failed", problem

    def stop(self) -> None:
        self._shown.close()
        self.process.terminate()
        self.process.join()
        self.connection.close()


def _work(
    link: connection.Connection, study: str, storage: StudyStorage, execute: Execute, environment: dict[str, str]
) -> None:
    """Run what comes over ``link``, until the process at its other end is gone."""
    # Forked, it has the environment of when the first process was.
    os.environ.clear()
    os.environ.update(environment)
    # An interruption of the study is the other process's to handle: it ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    reporter = _Messages(link)
    # Every step takes and releases the same tensors: kept, they cost no page faults (a tenth of a run's time).
    keep_freed_memory()
    first = True
    while True:
        run: NamedRun = link.recv()
        link.send(("ended", *run_one(run, study, storage, execute, reporter)))
        if first:
            # The half million objects of the libraries live as long as this process, and the trainer has all garbage
            # collected at every start: 0.3 s to look at them again, in each run.
            gc.collect()
            gc.freeze()
            first = False


class _Messages:
    """The reporter in a worker: says everything over the link."""

    def __init__(self, link: connection.Connection) -> None:
        self._link = link

    def begin(self, study: Study, done: int) -> None:
        """Said by the other process."""

    @contextlib.contextmanager
    def run(self, run: NamedRun) -> Iterator[_Messages]:
        self._link.send(("run",))
        yield self

    def step(self, done: int, total: int) -> None:
        self._link.send(("step", done, total))

    def evaluated(self, step: int, total: int, values: Mapping[str, float]) -> None:
        self._link.send(("evaluated", step, total, dict(values)))

    def phase(self, what: str) -> None:
        self._link.send(("phase", what))

    def say(self, message: str) -> None:
        self._link.send(("say", message))

    def ended(self, run: NamedRun, status: str, detail: str) -> None:
        """Said by the other process."""
