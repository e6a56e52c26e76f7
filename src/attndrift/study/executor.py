"""Executes the runs of a study in this process, which they share what is loaded and made in."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attndrift.study.allocator import without_garbage_collection
from attndrift.study.settings import NamedRun

if TYPE_CHECKING:
    from attndrift.study.distributed import DistributedSession
    from attndrift.study.resources import StudyResources


class Executor:
    """Executes runs one after the other; a context manager. Imports torch with the first run.

    Pickled, it is one with empty resources and the same cache on disk.

    Args:
        resources: images, models and measurements that runs share; made with the first run unless given.
        session: of the processes that train each run together, where there are several.
    """

    preload = "attndrift.study.forkserver_preload"
    """What a process has to import for it."""

    def __init__(self, resources: StudyResources | None = None, session: DistributedSession | None = None) -> None:
        self.resources, self.session = resources, session

    def __enter__(self) -> Executor:
        return self

    def __exit__(self, *_: object) -> None:
        if self.resources is not None:
            self.resources.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _executor, (None if self.resources is None else self.resources.cache,)

    def __call__(self, run: NamedRun, folder: Path, reporter: Any) -> dict[str, Any]:
        """Execute ``run`` in ``folder`` and return its record; where there are more processes, with them."""
        work = self._work(run, folder, reporter)
        return work() if self.session is None else self.session.run_main(run, folder, work)

    def run_worker(self) -> None:
        """Take part in every run of the main process, until it has no more."""
        assert self.session is not None
        self.session.run_worker(lambda run, folder, reporter: self._work(run, folder, reporter)())

    def _work(self, run: NamedRun, folder: Path, reporter: Any) -> Callable[[], dict[str, Any]]:
        """The execution of a run in this process."""
        with without_garbage_collection():
            # Here, so that the process that only looks on imports no torch.
            from attndrift.study.execution import execute_run
            from attndrift.study.resources import StudyResources

        if self.resources is None:
            self.resources = StudyResources()
        return partial(execute_run, run, folder, self.resources, reporter)


def _executor(cache: Path | None) -> Executor:
    if cache is None:
        return Executor()
    from attndrift.study.resources import StudyResources  # as above

    return Executor(StudyResources(cache))
