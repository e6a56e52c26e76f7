"""Runs in this process, or in processes of their own on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attndrift.study.launchers.registry import LAUNCHERS, Launcher, Options

if TYPE_CHECKING:
    from attndrift.study.runner import Engine


def _make(options: Options) -> Engine:
    # Imported here, so that a list of launchers takes no time.
    from attndrift.study.launchers.processes import ProcessLauncher
    from attndrift.study.runner import one_after_the_other

    # A run that hangs is ended from outside, so that with a limit it has a process of its own.
    if options.jobs == 1 and options.time_limit is None:
        return one_after_the_other
    return ProcessLauncher(options.jobs, time_limit=options.time_limit)


LAUNCHERS.register(
    Launcher(
        name="in-process",
        meaning="this process, or `--jobs` processes on this machine",
        make=_make,
        options=frozenset({"jobs", "time_limit"}),
        elsewhere=False,
    )
)
