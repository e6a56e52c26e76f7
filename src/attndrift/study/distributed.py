"""A study in which several processes train each run together (DDP), started by ``torchrun`` or ``accelerate launch``.

Rank 0 is the main process: it alone has the study, its locks, records and tables. The others are workers, which take
part in one run after the other. A run that fails in every process fails as it would in one, and the study goes on. A process that
fails or dies alone ends all of them, with a message, and leaves everything resumable: the others wait for it
in the middle of a computation, and cannot be told of anything else.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import distributed
from torch.distributed.rendezvous import rendezvous

from attndrift.study.settings import NamedRun

FOREVER = datetime.timedelta(days=30)
"""How long a process waits for the others where all is well: a slow run is no fault."""

PATIENCE = datetime.timedelta(seconds=60)
"""How long a process whose run has failed waits for the others to fail too."""


class RankFailure(BaseException):
    """The processes have lost each other; the message says why. Not an ``Exception``: it ends more than one run."""


class SilentReporter:
    """The reporter of a worker: the main process reports."""

    def step(self, done: int, total: int) -> None:
        """Say nothing."""

    def phase(self, what: str) -> None:
        """Say nothing."""

    def say(self, message: str) -> None:
        """Say nothing."""

    def evaluated(self, step: int, total: int, values: object) -> None:
        """Say nothing."""

    def saved(self, step: int) -> None:
        """Say nothing."""


class DistributedSession:
    """This process in the group that trains together; a context manager that joins and leaves it.

    Attributes:
        rank, count: of this process, of all.
    """

    def __enter__(self) -> Self:
        # Unset, `accelerate` would choose a number of threads of its own; here it is a setting.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        accelerated = torch.cuda.is_available()
        if accelerated:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        # Words go over the store, which knows no order and outlives a process: they never meet the numbers of a run.
        self._store, self.rank, self.count = next(rendezvous("env://"))
        # Both kinds, as a study may have runs on either.
        backend = "cpu:gloo,cuda:nccl" if accelerated else "gloo"
        distributed.init_process_group(
            backend, store=self._store, rank=self.rank, world_size=self.count, timeout=FOREVER
        )
        self._turn = 0
        self._amid = False
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.rank == 0 and not self._amid:
            self._store.set(self._key("task"), "")
        if kind is None:
            distributed.destroy_process_group()

    def run_main(self, run: NamedRun, folder: Path, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Do ``work``, the main process's part of a run, with the workers. Raises :class:`RankFailure`, and what it raises."""
        task = {"run": run.model_dump(mode="json"), "folder": str(folder.absolute())}
        self._store.set(self._key("task"), json.dumps(task))
        return self._each_its_part(work)

    def run_worker(self, work: Callable[[NamedRun, Path, SilentReporter], object]) -> None:
        """Do this worker's part of every run of the main process. Raises :class:`RankFailure`."""
        while task := self._heard([self._key("task")], FOREVER)[0]:
            found = json.loads(task)
            run, folder = NamedRun.model_validate(found["run"]), Path(found["folder"])
            try:
                self._each_its_part(functools.partial(work, run, folder, SilentReporter()))
            except Exception:  # the main process has it in the run's log and record
                continue

    def _key(self, what: str) -> str:
        return f"attndrift/{self._turn}/{what}"

    def _heard(self, keys: list[str], patience: datetime.timedelta) -> list[str]:
        """What was said under ``keys``. Raises ``RuntimeError`` where it is not said in time, or the store is gone."""
        self._store.wait(keys, patience)
        return [self._store.get(key).decode() for key in keys]

    def _each_its_part(self, work: Callable[[], Any]) -> Any:
        problem: Exception | None = None
        result = None
        self._amid = True
        try:
            result = work()
        except Exception as error:
            problem = error
        said = self._settle(problem)
        self._amid = False
        self._turn += 1
        if problem is not None:
            raise problem
        for rank, text in enumerate(said):
            if text:
                raise RuntimeError(f"process {rank}: {text}")
        return result

    def _settle(self, problem: Exception | None) -> list[str]:
        """What is wrong in each process, in words, once all have come to the end of the run."""
        text = "" if problem is None else f"{type(problem).__name__}: {problem}"
        ends = [self._key(f"end/{rank}") for rank in range(self.count)]
        remedy = "All of them stop; the same command goes on from the last resumable states"
        try:
            self._store.set(ends[self.rank], text)
            said = self._heard(ends, FOREVER if problem is None else PATIENCE)
            if self._store.check([self._key("failure")]):
                # It did not wait for this one, which was in the middle of something that needs both.
                raise RankFailure(f"{self._heard([self._key('failure')], PATIENCE)[0]}. {remedy}")
            return said
        except RuntimeError as error:
            if problem is None:
                raise RankFailure(f"process {self.rank} of {self.count}: another process is gone. {remedy}") from error
            message = f"process {self.rank} of {self.count}: {text}"
            with contextlib.suppress(RuntimeError):
                self._store.set(self._key("failure"), message)
            shown = "".join(traceback.format_exception(problem))
            raise RankFailure(f"{shown}{message}. {remedy}") from problem
