"""Runs as tasks on a Ray cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attndrift.study.launchers.registry import LAUNCHERS, Launcher, Options

if TYPE_CHECKING:
    from attndrift.study.runner import Engine

# Imports inside functions: these packages take time to load, which only who needs them pays.


def _make(options: Options) -> Engine:
    # Imported here, so that a list of launchers takes no time.
    from attndrift.study.launchers.ray import RayLauncher

    return RayLauncher(
        address=options.address,
        cpus_per_run=options.cpus_per_run,
        gpus_per_run=options.gpus_per_run,
        retries=options.retries,
    )


def _worker(folder: str, cores: float, options: Options) -> dict[str, Any]:
    from attndrift.study.launchers.worker import on_ray

    return on_ray(folder, cores, options)


LAUNCHERS.register(
    Launcher(
        name="ray",
        meaning="tasks on a Ray cluster",
        make=_make,
        worker=_worker,
        options=frozenset({"address", "cpus_per_run", "gpus_per_run", "retries"}),
        package="ray",
        extra="ray",
    )
)
