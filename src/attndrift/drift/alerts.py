"""Thresholds on measured drift, and what happens where one is crossed."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from attndrift.drift.drift import Drift, watchable
from attndrift.models.pickling import Picklable
from attndrift.registry import near_match

logger = logging.getLogger("attndrift.drift")


@dataclass(frozen=True)
class AlertEvent:
    """One crossing of a threshold.

    Attributes:
        step, epoch: when it was measured; epoch is None where the loop does not say it.
        metric, value: what was measured; value is None where the model had left the finite numbers.
        direction, threshold: ``below`` or ``above`` which value; ``diverged`` and None for a model that left them.
        action: ``log``, ``stop`` or the name of the function that was called.
    """

    step: int
    epoch: float | None
    metric: str
    value: float | None
    direction: str
    threshold: float | None
    action: str

    def __str__(self) -> str:
        if self.value is None or self.threshold is None:
            return f"step {self.step}: the model has diverged"
        return f"step {self.step}: {self.metric} is {self.value:.6g}, {self.direction} {self.threshold:g}"


Action = Literal["log", "stop"] | Callable[[AlertEvent], Any]


@dataclass(frozen=True)
class Alert(Picklable):
    """What must not happen: ``Alert("entropy_change_pct", below=-5, action="stop")``.

    Attributes:
        metric: one of :func:`~attndrift.drift.watchable`: ``entropy_change_pct``, ``cka_mean``, ``cka_last``,
            ``embedding_drift``, ``weight_drift``, ... in their own units (percent where the name says so).
        below, above: the alert is on while the value lies strictly below or above; give one, or both for a band.
        action: ``log`` writes a warning; ``stop`` also ends the training and puts the best state back, the last
            measured one in which no alert of the same watch was on; a function is called with the
            :class:`AlertEvent`, in every process.

    An alert fires when its value crosses into the forbidden side, and again only after it has been back.
    """

    metric: str
    below: float | None = None
    above: float | None = None
    action: Action = "log"

    def __post_init__(self) -> None:
        if self.metric not in watchable():
            hint = near_match(self.metric, watchable()) or "; `attndrift list` shows every metric"
            raise ValueError(f"alert: there is no metric `{self.metric}`{hint}")
        bounds = [bound for bound in (self.below, self.above) if bound is not None]
        if not bounds:
            raise ValueError(f"alert on {self.metric}: give below=, above= or both")
        if not all(math.isfinite(bound) for bound in bounds):
            raise ValueError(f"alert on {self.metric}: a threshold must be a finite number, got {bounds}")
        if self.below is not None and self.above is not None and self.below > self.above:
            raise ValueError(
                f"alert on {self.metric}: below={self.below} lies above above={self.above}, so it would always be on"
            )
        if self.action not in ("log", "stop") and not callable(self.action):
            raise ValueError(f"alert on {self.metric}: action is {self.action!r}; it must be log, stop or a function")

    @property
    def action_name(self) -> str:
        """``log``, ``stop`` or the function's name."""
        return self.action if isinstance(self.action, str) else getattr(self.action, "__name__", repr(self.action))

    def crossed(self, value: float) -> tuple[str, float] | None:
        """Direction and threshold where ``value`` lies on the forbidden side, else None."""
        if self.below is not None and value < self.below:
            return "below", self.below
        if self.above is not None and value > self.above:
            return "above", self.above
        return None


class AlertBook:
    """Which alerts are on, and what has fired so far."""

    def __init__(self, alerts: Sequence[Alert]) -> None:
        for alert in alerts:
            if not isinstance(alert, Alert):
                raise TypeError(f"alerts: expected Alert objects, got {type(alert).__name__}")
        self._alerts = tuple(alerts)
        self._on = [False] * len(self._alerts)
        self.events: list[AlertEvent] = []

    @property
    def can_stop(self) -> bool:
        """Whether one of the alerts stops the training."""
        return any(alert.action == "stop" for alert in self._alerts)

    @property
    def quiet(self) -> bool:
        """Whether no alert was on at the last check."""
        return not any(self._on)

    def begin(self, step: int) -> None:
        """A training begins, or goes on, after ``step``: what fired there or later may fire again."""
        self.events[:] = [event for event in self.events if event.step < step]
        self._on = [False] * len(self._alerts)

    def check(self, step: int, epoch: float | None, drift: Drift) -> list[tuple[Alert, AlertEvent]]:
        """The alerts that fire at this measurement. Raises ValueError for a quantity that is not measured."""
        values = drift.values()
        fired: list[tuple[Alert, AlertEvent]] = []
        for position, alert in enumerate(self._alerts):
            value = values[alert.metric]
            if value is None:
                raise ValueError(f"alert on {alert.metric}: it is not measured for this model, so it cannot be watched")
            crossing = alert.crossed(value)
            if crossing is not None and not self._on[position]:
                event = AlertEvent(step, epoch, alert.metric, value, *crossing, alert.action_name)
                fired.append((alert, event))
                self.events.append(event)
            self._on[position] = crossing is not None
        return fired
