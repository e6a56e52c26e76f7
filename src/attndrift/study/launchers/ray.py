"""Studies on a Ray cluster: every run is a Ray task with the resources that it needs.

Ray decides where and when a run is run, and runs it again elsewhere where its worker or node died; it goes on
from its last resumable state then, since the study's storage has it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from attndrift.extras import importing
from attndrift.study.launchers.remote import CANNOT, Message, Receiver, RemoteRun, settle
from attndrift.study.runner import EndedRuns, Execute, StudyReporter, record_failure
from attndrift.study.settings import NamedRun, Study
from attndrift.study.storage import StudyStorage

# Imports inside functions: these packages take time to load, which only who needs them pays.

POLL = 0.25
GRACE = 20.0
"""Seconds that workers have to come to a stop before they are ended."""

OBJECT_STORE_BYTES = 80 * 2**20
"""Of a cluster started here: nothing large goes through Ray."""


class RayLauncher:
    """The engine that runs a study on Ray. ``execute`` must be picklable, and is made anew in each worker.

    Args:
        address: of a cluster (``auto``, ``HOST:PORT``, ``ray://HOST:PORT``); by default the one that
            ``RAY_ADDRESS`` names, else one that is started on this machine and ends with the study.
        cpus_per_run: processor cores a run; by default the ``threads`` of its settings.
        gpus_per_run: accelerators a run; a fraction lets runs share one.
        retries: how often a run is begun again after its worker or its node died.
        cores: of the cluster that is started here; by default all of this machine.
    """

    def __init__(
        self,
        *,
        address: str | None = None,
        cpus_per_run: float | None = None,
        gpus_per_run: float = 0.0,
        retries: int = 3,
        cores: int | None = None,
    ) -> None:
        self.address = address or os.environ.get("RAY_ADDRESS") or None
        self.cpus_per_run, self.gpus_per_run, self.retries, self.cores = cpus_per_run, gpus_per_run, retries, cores

    def _resources(self, run: NamedRun) -> tuple[float, float]:
        return self.cpus_per_run if self.cpus_per_run is not None else run.settings.threads, self.gpus_per_run

    def __call__(self, study: Study, storage: StudyStorage, execute: Execute, reporter: StudyReporter) -> EndedRuns:
        """See :class:`attndrift.study.runner.Engine`."""
        if study.runs:
            with cluster(self.address, self.cores) as ray:
                for run in study.runs:
                    _require(ray, run, *self._resources(run), own=self.address is None)
                yield from self._schedule(ray, study, storage, execute, reporter)

    def _schedule(
        self,
        ray: Any,
        study: Study,
        storage: StudyStorage,
        execute: Execute,
        reporter: StudyReporter,
    ) -> EndedRuns:
        board = _board(ray)
        task = ray.remote(_carry_out)
        waiting: dict[Any, NamedRun] = {}
        by_id = {run.run_id: run for run in study.runs}
        receiver = Receiver(reporter)

        def hear() -> None:
            # Progress is a courtesy: a cluster that has lost it for a moment runs on.
            with suppress(ray.exceptions.RayError, TimeoutError):
                for run_id, message in ray.get(board.take.remote(), timeout=5):
                    receiver.hear(by_id[run_id], message)

        try:
            for run in study.runs:
                cpus, gpus = self._resources(run)
                options = task.options(
                    name=run.run_id,
                    num_cpus=cpus,
                    num_gpus=gpus,
                    max_retries=self.retries,
                    retry_exceptions=False,
                    scheduling_strategy="SPREAD",
                )
                waiting[options.remote(RemoteRun.of(run, study, storage, execute), board, self.retries)] = run
            while waiting:
                done, _ = ray.wait(list(waiting), num_returns=1, timeout=POLL)
                hear()
                for reference in done:
                    run = waiting.pop(reference)
                    status, detail = self._outcome(ray, reference, run, study, storage)
                    receiver.close(run)
                    yield run, status, detail
        finally:
            receiver.close()
            _stop(ray, list(waiting))

    def _outcome(self, ray: Any, reference: Any, run: NamedRun, study: Study, storage: StudyStorage) -> tuple[str, str]:
        try:
            status, detail = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            problem: Exception = error.cause
            record_failure(run, study.name, storage, problem)
            return "failed", f"{type(problem).__name__}: {problem}"
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            problem = ChildProcessError(
                f"its worker on the cluster was lost, {self.retries} retries included: {reason}"
            )
            record_failure(run, study.name, storage, problem)
            return "failed", str(problem)
        return settle(run, study, storage, str(status), str(detail))


def _carry_out(remote: RemoteRun, board: Any, retries: int) -> tuple[str, str]:
    """The task: one run, in a worker."""
    import ray

    # Ray interrupts what it cancels; processes of a cluster that was started in the background ignore that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    run_id = NamedRun.model_validate_json(remote.run).run_id
    with suppress(ray.exceptions.RayError, TimeoutError):
        # Ray itself sets no end to how often a worker that ran out of memory is replaced.
        starts = ray.get(board.start.remote(run_id), timeout=60)
        if starts > retries + 1:
            return CANNOT, f"its worker on the cluster was lost {starts - 1} times"

    def send(message: Message) -> None:
        board.put.remote(run_id, message)

    return remote.carry_out(send)


class _Board:
    """Where workers leave what the driver shows."""

    def __init__(self) -> None:
        self._messages: list[tuple[str, Message]] = []
        self._starts: dict[str, int] = {}

    def start(self, run_id: str) -> int:
        self._starts[run_id] = self._starts.get(run_id, 0) + 1
        return self._starts[run_id]

    def put(self, run_id: str, message: Message) -> None:
        self._messages.append((run_id, message))

    def take(self) -> list[tuple[str, Message]]:
        taken, self._messages = self._messages, []
        return taken


def _board(ray: Any) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # Beside the driver, without which nobody reads it.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    board = ray.remote(_Board).options(num_cpus=0, max_restarts=-1, scheduling_strategy=here).remote()
    # A worker that waits gives its core away: were the board not up when the first runs ask it for their numbers, others
    # would be begun beside them, on the same cores.
    with suppress(ray.exceptions.RayError, TimeoutError):
        ray.get(board.take.remote(), timeout=60)
    return board


@contextmanager
def cluster(address: str | None, cores: int | None) -> Iterator[Any]:
    """Ray, connected; what was started here ends with the block.

    Where this process is connected already, that connection is used, and stays.
    """
    # Before the import: Ray reads these once. No usage statistics, no dashboard, none of its own log lines.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # A run that asks for no accelerator sees none: those are for the runs that do.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    # What its processes report of each other would go to standard output, between the lines of a table or of JSON.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "^")
    with importing("ray", "--engine ray"):
        import ray
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": "CRITICAL", "namespace": "attndrift"}
    joined = not ray.is_initialized()
    if joined:
        try:
            if address is None:
                ray.init(
                    "local", num_cpus=cores, include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **common
                )
            else:
                ray.init(address, **common)
        except ConnectionError as error:
            raise ValueError(f"no Ray cluster answers at {address}: {error}") from error
        except Exception as error:
            # Ray gives a node half a minute, and has no type of its own for this.
            if "timed out during startup" not in str(error):
                raise
            raise ValueError(
                "Ray did not start on this machine within its 30 seconds: too much else runs here. Try again, or start it "
                "by hand (ray start --head) and use --address auto"
            ) from error
    try:
        yield ray
    finally:
        if joined:
            ray.shutdown()


def _require(ray: Any, run: NamedRun, cpus: float, gpus: float, *, own: bool) -> None:
    """Raise where the cluster that was started here can never run a run; others may still grow."""
    if not own:
        return
    have = ray.cluster_resources()
    for name, needed in (("CPU", cpus), ("GPU", gpus)):
        if needed > have.get(name, 0.0):
            raise ValueError(
                f"run {run.run_id} asks for {needed:g} {name}, and this machine has {have.get(name, 0.0):g}; ask for "
                f"less (--{name.lower()}s-per-run), or name a cluster (--address)"
            )


def _stop(ray: Any, references: list[Any]) -> None:
    """Interrupt the tasks that are under way, so that they let go of their runs; end those that do not stop."""
    if not references:
        return
    with suppress(Exception):
        for reference in references:
            ray.cancel(reference, force=False)
        deadline = time.monotonic() + GRACE
        left = references
        while left and time.monotonic() < deadline:
            _, left = ray.wait(left, num_returns=len(left), timeout=0.5)
        for reference in left:
            ray.cancel(reference, force=True)
