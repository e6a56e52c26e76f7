"""How long the phases of a run take."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any


class PhaseReporter:
    """The reporter of a run, which also times the phases that it is told of."""

    def __init__(self, reporter: Any) -> None:
        self._reporter = reporter
        self._started = time.monotonic()
        self._seconds: dict[str, float] = {}
        self._current: tuple[str, float] | None = None

    def phase(self, what: str) -> None:
        """A phase begins, and the one before ends."""
        self._end()
        self._current = what, time.monotonic()
        self._reporter.phase(what)
        self._reporter.say(what)

    def step(self, done: int, total: int) -> None:
        """See :class:`attndrift.study.training.plan.Reporter`."""
        self._reporter.step(done, total)

    def say(self, message: str) -> None:
        """See :class:`attndrift.study.training.plan.Reporter`."""
        self._reporter.say(message)

    def evaluated(self, step: int, total: int, values: Mapping[str, float]) -> None:
        """See :class:`attndrift.study.training.plan.Reporter`."""
        self._reporter.evaluated(step, total, values)

    def saved(self, step: int) -> None:
        """See :class:`attndrift.study.training.plan.Reporter`."""
        self._reporter.saved(step)

    def inputs(self, found: Mapping[str, Any], places: Mapping[str, str]) -> None:
        """What the run is about to use. Raises where it began with something else, or other runs did."""
        self._reporter.inputs(found, places)

    def seconds(self) -> dict[str, Any]:
        """Seconds since the run began, and of each phase; the last one ends."""
        self._end()
        phases = {what: round(seconds, 3) for what, seconds in self._seconds.items()}
        return {"seconds": round(time.monotonic() - self._started, 3), "phases": phases}

    def _end(self) -> None:
        if self._current is not None:
            what, begun = self._current
            self._seconds[what] = self._seconds.get(what, 0.0) + time.monotonic() - begun
            self._current = None
