"""Runs as SLURM jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attndrift.study.launchers.registry import LAUNCHERS, Launcher, Options

if TYPE_CHECKING:
    from attndrift.study.runner import Engine

# Imports inside functions: these packages take time to load, which only who needs them pays.


def _make(options: Options) -> Engine:
    # Imported here, so that a list of launchers takes no time.
    from attndrift.study.launchers.slurm import SlurmLauncher

    return SlurmLauncher(
        cpus_per_run=options.cpus_per_run,
        gpus_per_run=options.gpus_per_run,
        retries=options.retries,
        parameters=options.scheduler,
    )


def _worker(folder: str, cores: float, options: Options) -> dict[str, Any]:
    from attndrift.study.launchers.worker import on_slurm

    return on_slurm(folder, cores, options)


LAUNCHERS.register(
    Launcher(
        name="slurm",
        meaning="one SLURM job a run",
        make=_make,
        worker=_worker,
        options=frozenset({"cpus_per_run", "gpus_per_run", "retries", "scheduler"}),
        package="submitit",
        extra="slurm",
    )
)
