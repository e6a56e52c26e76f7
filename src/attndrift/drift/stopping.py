"""What alerts do to a training: say so, call a function, or end it with the best state."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from torch import nn

from attndrift.drift.alerts import Alert, AlertBook, AlertEvent, logger
from attndrift.drift.best_state import BestState
from attndrift.drift.drift import Drift
from attndrift.drift.monitor import DriftMonitor


class AlertActions:
    """Acts on the alerts of one training, and keeps its best state where one of them stops it.

    Args:
        alerts: thresholds.
        monitor: of the model in training; says which process speaks.
        folder: where the best state is kept; None keeps it in memory.

    Attributes:
        events: every alert that has fired so far.
        should_stop: an alert has stopped the training; the best state is back in the model then.
        best: drift and epoch of the kept state; None before the first one.
    """

    def __init__(self, alerts: Sequence[Alert], monitor: DriftMonitor, folder: Path | None) -> None:
        self._book = AlertBook(alerts)
        self._monitor, self._folder = monitor, folder
        self._kept: BestState | None = None
        self.events = self._book.events
        self.best: tuple[Drift, float | None] | None = None
        self.should_stop = False

    @property
    def can_stop(self) -> bool:
        """Whether one of the alerts stops the training."""
        return self._book.can_stop

    @property
    def best_step(self) -> int | None:
        """The step of the kept state; None before the first one, and where no alert stops."""
        return None if self._kept is None else self._kept.step

    def watch_model(self, model: nn.Module) -> None:
        """Keep (and put back, on a stop) the state of ``model``."""
        if self.can_stop:
            self._kept = BestState(model, self._folder, partial(getattr, self._monitor, "processes"))

    def begin(self, step: int) -> None:
        """A training begins, or goes on, after ``step``: what came later is forgotten."""
        self._book.begin(step)
        self.should_stop = False
        if self.best_step is not None and self.best_step > step:
            self._kept.step = self.best = None  # type: ignore[union-attr]

    def act(self, step: int, epoch: float | None, drift: Drift) -> bool:
        """Act on what was measured after ``step``; whether an alert has fired."""
        fired = self._book.check(step, epoch, drift)
        if self._book.quiet and self._kept is not None:
            self._kept.keep(step)
            self.best = drift, epoch
        for alert, event in fired:
            if callable(alert.action):
                alert.action(event)
            elif alert.action == "log":
                self._say(str(event))
        stopping = next((event for alert, event in fired if alert.action == "stop"), None)
        if stopping is not None:
            self._stop(stopping)
        return bool(fired)

    def diverged(self, step: int, epoch: float | None) -> bool:
        """The model has left the finite numbers; whether there was a state to put back, and training stops."""
        if self.best_step is None:
            return False
        self.events.append(AlertEvent(step, epoch, "finite", None, "diverged", None, "stop"))
        self._stop(self.events[-1])
        return True

    def restore(self) -> None:
        """Put the best state back once more, where a stop has; a loop may have loaded another one since."""
        if self.should_stop and self._kept is not None and self._kept.step is not None:
            self._kept.restore()

    def _stop(self, event: AlertEvent) -> None:
        self.should_stop = True
        self.restore()
        if self.best_step is None:
            self._say(f"{event}; training stops. No measured state was without an alert, so none is put back")
        else:
            self._say(f"{event}; training stops, and the state of step {self.best_step} is put back")

    def _say(self, text: str) -> None:
        # Asked anew each time: a trainer may start its processes after this was made.
        if self._monitor.processes.first:
            logger.warning(text)
