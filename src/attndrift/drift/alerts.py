"""Thresholds on measured drift, and what happens where one is crossed."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from attndrift.drift.drift import Drift, watchable
from attndrift.files import read_json
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
        until: the last step at which it is checked, as of an alert that was learned from the first steps; None: always.
        action: ``log`` writes a warning; ``stop`` also ends the training and puts the best state back, the last
            measured one in which no alert of the same watch was on; a function is called with the
            :class:`AlertEvent`, in every process.

    An alert fires when its value crosses into the forbidden side, and again only after it has been back.
    """

    metric: str
    below: float | None = None
    above: float | None = None
    action: Action = "log"
    until: int | None = None

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
        if self.until is not None and (
            isinstance(self.until, bool) or not isinstance(self.until, int) or self.until < 0
        ):
            raise ValueError(f"alert on {self.metric}: until is {self.until!r}; it is a step, 0 or later, or None")
        if self.action not in ("log", "stop") and not callable(self.action):
            raise ValueError(f"alert on {self.metric}: action is {self.action!r}; it must be log, stop or a function")

    @property
    def action_name(self) -> str:
        """``log``, ``stop`` or the function's name."""
        return self.action if isinstance(self.action, str) else getattr(self.action, "__name__", repr(self.action))

    def crossed(self, value: float, step: int = 0) -> tuple[str, float] | None:
        """Direction and threshold where ``value`` lies on the forbidden side at a step that is watched, else None."""
        if self.until is not None and step > self.until:
            return None
        if self.below is not None and value < self.below:
            return "below", self.below
        if self.above is not None and value > self.above:
            return "above", self.above
        return None


def read_alerts(path: str | os.PathLike[str], action: Action = "log") -> list[Alert]:
    """The alerts that ``attndrift calibrate`` wrote into ``path``, each with ``action`` and checked until its step.

    Raises ``ValueError`` for a file of another form, naming what is wrong.
    """
    content = read_json(Path(path))
    rows = content.get("alerts") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: holds no alerts; `attndrift calibrate STUDY` writes them")
    try:
        return [
            Alert(row["metric"], below=row["below"], above=row["above"], until=row.get("step"), action=action)
            for row in rows
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: {error if isinstance(error, ValueError) else f'an alert without {error}'}"
        ) from error


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
                reason = drift.missing.get(alert.metric, "it is not measured for this model")
                raise ValueError(f"alert on {alert.metric}: {reason}, so it cannot be watched")
            crossing = alert.crossed(value, step)
            if crossing is not None and not self._on[position]:
                event = AlertEvent(step, epoch, alert.metric, value, *crossing, alert.action_name)
                fired.append((alert, event))
                self.events.append(event)
            self._on[position] = crossing is not None
        return fired
