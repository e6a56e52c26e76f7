"""Engines by name: where the runs of a study are run.

Each schedules :func:`attndrift.study.runner.run_one`, so that a run computes the same in all of them, bit for
bit on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from attndrift.study.runner import Engine, one_after_the_other


@dataclass(frozen=True)
class Options:
    """What a user may ask of an engine.

    Attributes:
        jobs: runs at a time, each in a process of its own on this machine (``processes``).
        time_limit: seconds after which a run is ended, as one that hangs; None for none.
        address: of a Ray cluster; None starts one on this machine for the time being.
        cpus_per_run: processor cores a run; None is the ``threads`` of its settings.
        gpus_per_run: accelerators a run.
        retries: how often a run is begun again after its worker died.
        scheduler: ``KEY=VALUE`` for SLURM, as ``submitit`` calls them.
    """

    jobs: int = 1
    time_limit: float | None = None
    address: str | None = None
    cpus_per_run: float | None = None
    gpus_per_run: float = 0.0
    retries: int = 3
    scheduler: Sequence[str] = ()


def _in_process(options: Options) -> Engine:
    # A run that hangs is ended from outside, so that with a limit it has a process of its own.
    if options.jobs == 1 and options.time_limit is None:
        return one_after_the_other
    from attndrift.study.launchers.processes import ProcessLauncher

    return ProcessLauncher(options.jobs, time_limit=options.time_limit)


def _ray(options: Options) -> Engine:
    from attndrift.study.launchers.ray import RayLauncher

    return RayLauncher(
        address=options.address,
        cpus_per_run=options.cpus_per_run,
        gpus_per_run=options.gpus_per_run,
        retries=options.retries,
    )


def _slurm(options: Options) -> Engine:
    from attndrift.study.launchers.slurm import SlurmLauncher

    return SlurmLauncher(
        cpus_per_run=options.cpus_per_run,
        gpus_per_run=options.gpus_per_run,
        retries=options.retries,
        parameters=options.scheduler,
    )


ENGINES: dict[str, tuple[str, Callable[[Options], Engine]]] = {
    "in-process": ("this process, or `--jobs` processes on this machine", _in_process),
    "ray": ("tasks on a Ray cluster", _ray),
    "slurm": ("one SLURM job a run", _slurm),
}
"""Name -> what it is, and how it is made."""


def make_engine(name: str, options: Options) -> Engine:
    """The engine called ``name``. Raises ``ValueError`` for one that is not known, or an option that is not its own."""
    if name not in ENGINES:
        raise ValueError(f"there is no engine {name!r}; choose from {', '.join(ENGINES)}")
    own = {
        "in-process": {"jobs", "time_limit"},
        "ray": {"address", "cpus_per_run", "gpus_per_run", "retries"},
        "slurm": {"cpus_per_run", "gpus_per_run", "retries", "scheduler"},
    }[name]
    default = Options()
    for option in vars(default):
        if getattr(options, option) != getattr(default, option) and option not in own:
            raise ValueError(f"--{option.replace('_', '-')} is not an option of --engine {name}")
    return ENGINES[name][1](options)
