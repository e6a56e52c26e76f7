"""A launcher: the runs one after the other in this process, the last one first."""

from __future__ import annotations

from typing import Any

from attndrift.study.launchers.registry import LAUNCHERS, Launcher, Options


def make(options: Options) -> Any:
    """An engine that turns the order of the runs around."""
    # Imported here, so that a list of launchers takes no time.
    from attndrift.study.runner import one_after_the_other

    def engine(study: Any, *others: Any) -> Any:
        return one_after_the_other(study.model_copy(update={"runs": study.runs[::-1]}), *others)

    return engine


LAUNCHERS.register(Launcher(name="backwards", meaning="the last run first", make=make, elsewhere=False))
