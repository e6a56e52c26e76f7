"""The registry of launchers: one :class:`Launcher` for each place where the runs of a study can be run.

Each schedules :func:`attndrift.study.runner.run_one`, so that a run computes the same in all of them, bit for bit on a
CPU. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attndrift.registry import Registry

if TYPE_CHECKING:
    from attndrift.study.runner import Engine


@dataclass(frozen=True)
class Options:
    """What a user may ask of a launcher.

    Attributes:
        jobs: runs at a time, each in a process of its own on this machine (``in-process``).
        time_limit: seconds after which a run is ended, as one that hangs; None for none.
        address: of a Ray cluster; None starts one on this machine for the time being.
        cpus_per_run: processor cores a run; None is the ``threads`` of its settings.
        gpus_per_run: accelerators a run.
        retries: how often a run is begun again after its worker died.
        scheduler: ``KEY=VALUE``, settings of the launcher's own.
    """

    jobs: int = 1
    time_limit: float | None = None
    address: str | None = None
    cpus_per_run: float | None = None
    gpus_per_run: float = 0.0
    retries: int = 3
    scheduler: Sequence[str] = ()


@dataclass(frozen=True)
class Launcher:
    """One launcher.

    Attributes:
        name: of ``--engine``; ``meaning`` says where runs are run, in one phrase.
        make: an :data:`~attndrift.study.runner.Engine` of what was asked.
        options: fields of :class:`Options` that it takes; another one is refused.
        package: that must be installed, and the ``extra`` that installs it.
        worker: asks one worker what it has, for ``attndrift check``: (folder, cores, what was asked) to the plain values of
            :func:`attndrift.study.launchers.worker.look`. None: it is not asked.
        elsewhere: whether runs are run on other machines, so that this one's devices and speed say nothing.
    """

    name: str
    meaning: str
    make: Callable[[Options], Engine]
    options: frozenset[str] = frozenset()
    package: str = ""
    extra: str = ""
    worker: Callable[[str, float, Options], dict[str, Any]] | None = None
    elsewhere: bool = True


LAUNCHERS: Registry[Launcher] = Registry("engine", "attndrift.study.launchers.known", group="attndrift.launchers")
"""All launchers: those of this package, those of installed packages, and those of this process."""


def make_engine(name: str, options: Options) -> Engine:
    """The engine of the launcher ``name``. Raises ``ValueError`` for an unknown one, or an option that is not its own."""
    launcher = LAUNCHERS[name]
    default = Options()
    for option in vars(default):
        if getattr(options, option) != getattr(default, option) and option not in launcher.options:
            raise ValueError(f"--{option.replace('_', '-')} is not an option of --engine {name}")
    return launcher.make(options)
