"""Studies on SLURM, through ``submitit``: every run is a job of its own.

A job that reaches its time limit, or is preempted, is queued again by ``submitit`` and goes on from its last
resumable state, as does one whose node died. Jobs say how they go in the study's storage alone, so that the driver
that watches them may end and come back.
"""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from attndrift.data.cache import cache_folder
from attndrift.extras import importing
from attndrift.files import read_json, write_json
from attndrift.study.launchers.private_folder import NotPrivate, private_folder
from attndrift.study.launchers.remote import Message, Receiver, RemoteRun, settle
from attndrift.study.runner import Ended, EndedRuns, Execute, StudyReporter, record_failure
from attndrift.study.settings import NamedRun, Study
from attndrift.study.storage import LocalStorage, StudyStorage

# Imports inside functions: these packages take time to load, which only who needs them pays.

POLL = 1.0
GRACE = 20.0
TIMEOUT_MIN = 24 * 60
"""Minutes that a job asks for, unless told otherwise."""

JOBS_FOLDER = ".slurm"


class Job:
    """What a job does: one run. ``submitit`` calls ``checkpoint`` when the job is about to be taken away."""

    def __init__(self, remote: RemoteRun, progress: Path) -> None:
        self.remote, self.progress = remote, progress

    def __call__(self) -> tuple[str, str]:
        """Run it, telling the driver in a file."""
        told: dict[str, Message] = {}
        last = 0.0

        def send(message: Message) -> None:
            nonlocal last
            if message[0] == "say":
                return
            told[message[0]] = message
            # The newest of each kind is enough for a table.
            if time.monotonic() - last >= POLL or message[0] == "begun":
                last = time.monotonic()
                with suppress(OSError):
                    write_json(self.progress, {"messages": list(told.values()), "begun": told.get("begun")})

        return self.remote.carry_out(send)

    def checkpoint(self) -> Any:
        """The same again: the study's storage has the last resumable state."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(Job(self.remote, self.progress))


class SlurmLauncher:
    """The engine that runs a study as SLURM jobs. ``execute`` must be picklable, and is made anew in each job.

    Args:
        cpus_per_run: processor cores a job; by default the ``threads`` of the run's settings.
        gpus_per_run: accelerators a job, whole ones.
        retries: how often a run is submitted again after its job died otherwise than by SLURM's own doing.
        parameters: ``KEY=VALUE`` for ``submitit``: ``timeout_min``, ``slurm_partition``, ``slurm_account``, ``mem_gb``;
            and ``cluster=local`` for processes on this machine instead of SLURM, ``folder=PATH`` for its files, which
            all nodes must see.
    """

    def __init__(
        self,
        *,
        cpus_per_run: float | None = None,
        gpus_per_run: float = 0.0,
        retries: int = 3,
        parameters: Sequence[str] = (),
    ) -> None:
        for name, value in (("cpus", cpus_per_run or 0.0), ("gpus", gpus_per_run)):
            if value != int(value):
                raise ValueError(f"--{name}-per-run {value:g}: SLURM gives whole ones")
        self.cpus_per_run, self.gpus_per_run, self.retries = cpus_per_run, gpus_per_run, retries
        self.parameters: dict[str, Any] = {"timeout_min": TIMEOUT_MIN}
        for parameter in parameters:
            key, separator, text = parameter.partition("=")
            if not (key and separator):
                raise ValueError(f"--scheduler {parameter}: write it as KEY=VALUE, e.g. slurm_partition=gpu")
            self.parameters[key] = int(text) if text.isascii() and text.isdigit() else text
        self.cluster = str(self.parameters.pop("cluster", "slurm"))
        folder = self.parameters.pop("folder", None)
        self.folder = None if folder is None else Path(str(folder))

    def __call__(self, study: Study, storage: StudyStorage, execute: Execute, reporter: StudyReporter) -> EndedRuns:
        """See :class:`attndrift.study.runner.Engine`."""
        if not study.runs:
            return
        folder = self._jobs_folder(study, storage)
        waiting: dict[str, _Submitted] = {}
        failed = False
        receiver = Receiver(reporter)
        try:
            for run in study.runs:
                job = Job(RemoteRun.of(run, study, storage, execute), folder / f"{run.run_id}.json")
                waiting[run.run_id] = _Submitted(run, job, self._submit(folder / f"{run.run_id}-0", run, job))
            while waiting:
                for one in list(waiting.values()):
                    self._show(one, receiver)
                    ended = self._ended(one, study, storage, folder)
                    if ended is not None:
                        del waiting[one.run.run_id]
                        receiver.close(one.run)
                        failed = failed or ended[1] != "finished"
                        yield ended
                time.sleep(POLL if self.cluster == "slurm" else POLL / 4)
        finally:
            receiver.close()
            self._cancel([one.handle for one in waiting.values()])
            deadline = time.monotonic() + GRACE
            while time.monotonic() < deadline and not all(
                one.handle.done(force_check=True) for one in waiting.values()
            ):
                time.sleep(POLL / 2)
            if not (waiting or failed):  # the logs of what failed are worth reading
                shutil.rmtree(folder, ignore_errors=True)

    def _jobs_folder(self, study: Study, storage: StudyStorage) -> Path:
        """Where ``submitit`` keeps the files of this driver's jobs, pickles among them: for this user alone.

        Nothing is read that lay in the study folder before: who sent it could have put a pickle there.
        """
        in_cache = cache_folder() / "slurm" / study.name
        if self.folder is not None:
            return private_folder(self.folder)
        if isinstance(storage, LocalStorage):
            # A study folder may be a group's; home is not.
            with suppress(NotPrivate):
                return private_folder(storage.folder / JOBS_FOLDER)
        return private_folder(in_cache)

    def _submit(self, folder: Path, run: NamedRun, job: Job) -> Any:
        """Submit a job whose files are in ``folder``, which must not be there yet."""
        with importing("slurm", "--engine slurm"):
            import submitit
        folder.mkdir(mode=0o700)  # that of another job would have another job's result
        try:
            # Jobs may be taken away often on a busy cluster; each time they have got further.
            executor = submitit.AutoExecutor(folder / "%j", cluster=self.cluster, slurm_max_num_timeout=1000)
        except RuntimeError as error:
            raise ValueError(f"--engine slurm: {error}") from error
        cores = self.cpus_per_run if self.cpus_per_run is not None else run.settings.threads
        parameters = {"name": run.run_id, "cpus_per_task": int(cores), "gpus_per_node": int(self.gpus_per_run)}
        if self.cluster == "slurm":
            parameters["slurm_additional_parameters"] = {"requeue": True}
            if not self.gpus_per_run:
                del parameters["gpus_per_node"]
        executor.update_parameters(**(parameters | self.parameters))
        handle = executor.submit(job)
        if self.cluster == "local":
            # The result of a job that ended is on this machine's disk, or it died. Of a node's disk news may come late: there
            # submitit waits for 15 seconds.
            handle._results_timeout_s = 0
        return handle

    def _cancel(self, handles: Sequence[Any]) -> None:
        tasks: dict[psutil.Process, int] = {}
        if self.cluster == "local":
            # Their processes themselves: the ones above, which submitit interrupts, would print tracebacks among our lines.
            for place, handle in enumerate(handles):
                with suppress(psutil.Error):
                    for task in psutil.Process(int(handle.job_id)).children():
                        tasks[task] = place
                        with suppress(psutil.NoSuchProcess):
                            task.send_signal(signal.SIGINT)
        alive = {tasks[task] for task in psutil.wait_procs(list(tasks), timeout=1.0)[1]}
        ended = set(tasks.values()) - alive
        for place, handle in enumerate(handles):
            if place not in ended:
                with suppress(Exception):
                    handle.cancel()

    @staticmethod
    def _show(one: _Submitted, receiver: Receiver) -> None:
        with suppress(OSError, ValueError):
            content = read_json(one.job.progress)
            if content == one.told:
                return
            for message in content["messages"]:
                # A start is news once; the rest may be said again.
                if message[0] != "begun" or message != (one.told or {}).get("begun"):
                    receiver.hear(one.run, tuple(message))
            one.told = content

    def _ended(self, one: _Submitted, study: Study, storage: StudyStorage, folder: Path) -> Ended | None:
        if not one.handle.done(force_check=self.cluster != "slurm"):
            return None
        try:
            outcome = one.handle.result()
        except Exception as error:
            status = storage.status(one.run.run_id)
            if status not in (None, "failed"):
                return one.run, str(status), ""
            one.deaths += 1
            if one.deaths <= self.retries:
                one.handle = self._submit(folder / f"{one.run.run_id}-{one.deaths}", one.run, one.job)
                return None
            reason = str(error).strip().splitlines()
            problem = ChildProcessError(
                f"its job died {one.deaths} times, the last time {one.handle.job_id}: {reason[0] if reason else error}; "
                f"see {folder}"
            )
            record_failure(one.run, study.name, storage, problem)
            return one.run, "failed", str(problem)
        return one.run, *settle(one.run, study, storage, str(outcome[0]), str(outcome[1]))


class _Submitted:
    """A run whose job is with the scheduler."""

    def __init__(self, run: NamedRun, job: Job, handle: Any) -> None:
        self.run, self.job, self.handle = run, job, handle
        self.deaths = 0
        self.told: dict[str, Any] | None = None
