"""The guard: keeps a model within budgets while it is trained."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn

from attndrift.drift.alerts import logger
from attndrift.drift.best_state import BestState
from attndrift.drift.drift import Drift
from attndrift.drift.monitor import DriftMonitor
from attndrift.guard.budget import Budget, Reading, RetentionBudget
from attndrift.guard.events import GuardEvent, write_events
from attndrift.guard.head import follow
from attndrift.guard.interpolator import State, WeightInterpolator
from attndrift.losses.base import PreservationLoss
from attndrift.models.evaluation import preserve_state, unwrapped
from attndrift.process_group import DivergedError

SMALLEST_SHARE = 1 / 64  # of the change; a budget that only less than this keeps is out of reach
SLOWEST = 1 / 64
TOLERANCE = 0.05  # of the room that the pretrained state has: where the way back ends
MOST_MEASUREMENTS = 12  # for one way back


class Guard:
    """Keeps what the user names within a budget during any training, and reports what that took.

    ::

        guard = Guard(monitor, Budget("cka_mean", at_least=0.9), every=50)
        with guard:
            for step, batch in enumerate(batches, 1):
                ...                                   # forward, backward, optimizer.step()
                guard.step(step)
        print(guard.report())

    At every check the budgets are measured. Where one is crossed,

    - the trained weights that the image embedding depends on are rewound along the line to their pretrained values,
      (1 - alpha) theta0 + alpha theta1, with the largest alpha that is found to keep every budget;
    - a linear classifier that is given as ``head`` follows: it is changed so that it makes of the monitor's probe images
      what it made of them before, without labels. Any other one stays as it is and trains on behind the encoder that it finds;
    - from then on no step leads further from the pretrained weights than they are now (norm of the whole change): what
      is beyond is rewound along the same line after each step, so that the classifier never trains behind an encoder
      that it will not have;
    - these weights learn more slowly, by alpha (at least a quarter, at most three quarters): after each step the rest of
      it is taken back, which for AdamW and SGD is the same as a lower rate; and a preservation loss counts double.

    At every check with room to spare all three relax. Where even 1/64 of the change is too much, or the pretrained
    model itself is outside, the pretrained weights are put back bit for bit and frozen, and the guard says so.

    A guard that stays inactive leaves the training bit for bit as it was. Measuring touches nothing of the
    training. The optimizer is never touched either: after a way back its momentum still points outwards, and that is
    what the limit on the distance holds.

    Make it where the model is in its pretrained state (before a checkpoint is loaded): its present weights, without
    ``peft`` adapters, are where the way back leads. Full weights and plain LoRA can be guarded, frozen parts too.
    In several processes every one of them must run the same calls; the first one's measurements decide.

    Args:
        monitor: of the model in training; it measures the budgets on drift, on its own probe images.
        budgets: one or more; all of them are kept.
        every: check after this many optimiser steps; or the steps to check after. Besides, at the end.
        first: no check before this step. Until then the model may leave the budget; see docs/guard.md on what that is good for.
        head: the linear classifier on the image embedding, where there is one; the monitor's probe should then be images
            like those that it classifies.
        preserve: an :class:`~attndrift.AttentionPreservation` or :class:`~attndrift.EntropyFloor` of the loop, whose
            weight the guard raises and lowers, never below where it began.
        validate: returns the validation accuracy, 0..1, of the model as it is; for the report of what the guard cost.
        keep_best: put the checked state with the best validation accuracy back at the end. Needs ``validate``.
        patience: stop (``should_stop``) after this many checks in a row without a better one. Needs ``validate``.
        folder: where the table ``guard.parquet`` is written; under a :class:`~attndrift.drift.DriftWatch` its folder.
        echo: prints a line for each check, None for silence.

    Attributes:
        events: every check so far, a :class:`GuardEvent` each.
        lr_scale: factor of the guarded weights' learning rate; 0 where they are frozen.
        radius: how far the guarded weights may go, norm of the change; None for any distance.
        infeasible: whether a budget was out of reach, and the pretrained weights were put back.
        should_stop: ``patience`` has run out.
        seconds: time spent in the guard.

    Raises:
        ValueError: a budget that has no value for this model, nothing to guard, or adapters other than plain LoRA.
    """

    def __init__(
        self,
        monitor: DriftMonitor,
        budgets: Budget | RetentionBudget | Sequence[Budget | RetentionBudget],
        every: int | Collection[int] = 100,
        *,
        first: int = 0,
        head: nn.Linear | None = None,
        preserve: PreservationLoss | None = None,
        validate: Callable[[], float] | None = None,
        keep_best: bool = False,
        patience: int | None = None,
        folder: str | os.PathLike[str] | None = None,
        echo: Callable[[str], Any] | None = print,
    ) -> None:
        if isinstance(every, int) and every < 1:
            raise ValueError(f"every is {every}; it must be at least 1")
        if validate is None and (keep_best or patience is not None):
            raise ValueError("keep_best and patience compare validation accuracies: give validate=")
        self.budgets = [budgets] if isinstance(budgets, (Budget, RetentionBudget)) else list(budgets)
        for budget in self.budgets:
            if not isinstance(budget, (Budget, RetentionBudget)):
                raise TypeError(f"budgets: expected Budget objects, got {type(budget).__name__}")
        if not self.budgets:
            raise ValueError("budgets: there is none, so there is nothing to keep")
        if head is not None and not isinstance(head, nn.Linear):
            raise ValueError(f"head is a {type(head).__name__}; only a linear layer on the image embedding can follow")
        self.monitor = monitor
        self.head = head
        self.preserve = preserve
        self.folder = None if folder is None else Path(folder)
        self.run_id: str | None = None
        self.on_event: Callable[[GuardEvent], Any] | None = None
        self._every = every if isinstance(every, int) else frozenset(every)
        self._first = first
        self._validate, self._keep_best, self._patience = validate, keep_best, patience
        self._echo = echo
        self._first_weight = None if preserve is None else preserve.weight
        self._interpolator = WeightInterpolator(monitor)
        self._best: BestState | None = None
        self.guard_model(monitor.model)
        self._previous: State | None = None
        self._last: tuple[int | None, float | None] = (None, None)
        self._best_accuracy: float | None = None
        self._waited = 0
        self._measurements = 0
        self.events: list[GuardEvent] = []
        self.lr_scale = 1.0
        self.radius: float | None = None
        self.infeasible = False
        self.should_stop = False
        self.seconds = 0.0
        # Adapters that have been trained already are at zero while the pretrained state is measured.
        present = self._interpolator.state()
        self._interpolator.interpolate(0.0, present)
        try:
            self._meters = {
                i: b.against(monitor.model, monitor.processes)
                for i, b in enumerate(self.budgets)
                if isinstance(b, RetentionBudget)
            }
            self.pretrained = self._measure()
        finally:
            self._interpolator.interpolate(1.0, present)
        self._room = [reading.slack for reading in self.pretrained]

    def guard_model(self, model: nn.Module) -> None:
        """Keep (and put back, with ``keep_best``) the state of ``model``, which has the monitor's model inside."""
        self._model = unwrapped(model)
        if self._keep_best:
            # A folder of its own: an alert of the same training keeps its best state beside the tables.
            folder = None if self.folder is None else self.folder / "guard"
            self._best = BestState(self._model, folder, lambda: self.monitor.processes)

    # -- in a loop ---------------------------------------------------------------------------------

    def due(self, step: int) -> bool:
        """Whether to check after this step."""
        if step < self._first:
            return False
        return step % self._every == 0 if isinstance(self._every, int) else step in self._every

    def checked(self, step: int) -> bool:
        """Whether the state after ``step``, the last one that was checked, is within every budget (or the pretrained)."""
        return bool(self.events) and self.events[-1].step == step

    def start(self) -> None:
        """Say so, and hold the pretrained weights from the beginning, where they themselves are outside a budget."""
        if self._reachable or self.infeasible:
            return
        self._give_up(0, 0.0, self.pretrained, None, 0)

    def step(self, step: int, epoch: float | None = None) -> GuardEvent | None:
        """To be called after every optimiser step: lowers the rate where that is lowered, checks where that is due."""
        self._last = step, epoch
        if self._previous is not None:
            self._interpolator.scale_step(self._previous, self.lr_scale)
        if self.radius is not None:
            distance = self._interpolator.distance()
            if distance > self.radius:
                self._interpolator.interpolate(self.radius / distance, self._interpolator.state())
        if self._previous is not None and self.lr_scale:
            self._previous = self._interpolator.state()
        return self.check(step, epoch) if self.due(step) else None

    def check(self, step: int, epoch: float | None = None) -> GuardEvent:
        """Check now, whatever the step. Raises :class:`DivergedError` where a guarded weight is not finite."""
        started = time.perf_counter()
        try:
            event = self._check(step, epoch)
        finally:
            self.seconds += time.perf_counter() - started
        return event

    def finish(self, step: int | None = None, epoch: float | None = None) -> bool:
        """The last check, unless the last state has been checked; with ``keep_best`` the best state is put back.

        A loop that loads another state afterwards calls :meth:`check` once more. Returns whether weights were changed.
        """
        known = len(self.events)
        number, epochs = self._last if step is None else (step, epoch)
        if not self.events or self.events[-1].step != number:
            self.check(number or 0, epochs)
        event = self.events[-1]
        better = event.accuracy is None or (self._best_accuracy is not None and self._best_accuracy > event.accuracy)
        if self._best is not None and self._best.step is not None and better and not self.infeasible:
            self._best.restore()
            self._record(
                replace(
                    event, action="best", before=event.after, after=self._measure(), alpha=1.0, measurements=1,
                    accuracy_before=event.accuracy, accuracy=self._best_accuracy,
                )
            )  # fmt: skip
        self._previous = self.radius = None
        return any(event.action not in ("kept", "frozen") for event in self.events[known:])

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()

    # -- what is said ------------------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        """What the guard did and what it cost, as plain values; accuracies 0..1, the cost in points.

        ``accuracy_outside`` is the best validation accuracy of a state that was found outside the budget, ``accuracy``
        that of the last state, ``cost_points`` the difference: what going on from there would have had at once. What a
        training without a guard would have ended with only such a training can tell.
        """
        last = self.events[-1] if self.events else None
        taken = [event for event in self.events if event.action == "rewound"]
        outside = [
            e.accuracy_before for e in self.events if e.action in ("rewound", "infeasible") and e.accuracy_before
        ]
        accuracy = None if last is None else last.accuracy
        cost = 100 * (max(outside) - accuracy) if outside and accuracy is not None else None
        reason = None
        if cost is None:
            reason = "no validation function was given" if self._validate is None else "no state was outside the budget"
        return {
            "budgets": [str(budget) for budget in self.budgets],
            "outcome": "infeasible" if self.infeasible else "kept" if taken else "inactive",
            "checks": len({event.step for event in self.events}),
            "rewound": len(taken),
            "smallest_alpha": min((event.alpha for event in taken), default=None),
            "lr_scale": self.lr_scale,
            "loss_weight": self._weight,
            "readings": [] if last is None else [vars(reading) for reading in last.after],
            "accuracy": accuracy,
            "accuracy_outside": max(outside, default=None),
            "cost_points": cost,
            "why_no_cost": reason,
            "measurements": self._measurements,
        }

    def report(self) -> str:
        """The summary as a few readable lines."""
        told = self.summary()
        words = {
            "infeasible": "out of reach; the pretrained weights were put back",
            "kept": f"kept; weights were taken back {told['rewound']} times",
            "inactive": "never crossed; nothing was done",
        }
        lines = [f"guard: {', '.join(told['budgets'])}: {words[told['outcome']]}"]
        if self.events:
            lines.append(f"  at the end {', '.join(map(str, self.events[-1].after))}")
        lines.append(
            f"  {told['checks']} checks, {told['measurements']} measurements, {self.seconds:.1f} s; "
            f"learning rate x {self.lr_scale:.3g}"
            + ("" if self._weight is None else f", loss weight {self._weight:.3g}")
        )
        if told["cost_points"] is not None:
            lines.append(
                f"  validation accuracy {told['accuracy']:.4f}; the best state outside the budget had "
                f"{told['accuracy_outside']:.4f}: a cost of {told['cost_points']:.1f} points"
            )
        else:
            lines.append(f"  cost in accuracy: not known, {told['why_no_cost']}")
        return "\n".join(lines)

    # -- resuming ----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs besides the weights, as plain values for JSON."""
        return {
            "events": [event.to_json() for event in self.events],
            "lr_scale": self.lr_scale,
            "radius": self.radius,
            "weight": self._weight,
            "infeasible": self.infeasible,
            "best_accuracy": self._best_accuracy,
            "best_step": None if self._best is None else self._best.step,
            "waited": self._waited,
            "measurements": self._measurements,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state``; the model must be in the state of the same step already."""
        self.events = [GuardEvent.from_json(event) for event in state["events"]]
        self.lr_scale, self.radius, self.infeasible = state["lr_scale"], state["radius"], state["infeasible"]
        if self.preserve is not None and state["weight"] is not None:
            self.preserve.weight = state["weight"]
        self._waited, self._measurements = state["waited"], state["measurements"]
        # A best state that was held in memory is gone.
        if self._best is None or self.folder is not None:
            self._best_accuracy = state["best_accuracy"]
        if self._best is not None and self.folder is not None:
            self._best.step = state["best_step"]
        self._previous = self._interpolator.state() if self.lr_scale < 1 else None

    # -- how it works ------------------------------------------------------------------------------

    @property
    def _weight(self) -> float | None:
        return None if self.preserve is None else self.preserve.weight

    @property
    def _reachable(self) -> bool:
        return all(reading.met for reading in self.pretrained)

    def _measure(self) -> tuple[Reading, ...]:
        """The budgets' readings of the model as it is, those of the first process in every one."""
        self._measurements += 1
        drift: Drift | None = None
        if len(self._meters) < len(self.budgets):
            try:
                drift = self.monitor.measure()
            except DivergedError:
                # The weights are finite, so the representation has collapsed: as far outside as can be.
                drift = None
        readings = []
        for i, budget in enumerate(self.budgets):
            if isinstance(budget, RetentionBudget):
                readings.append(self._agreed(self._meters[i].read(self.monitor.model, self.monitor.processes)))
            else:
                readings.append(budget.read(drift))
        return tuple(readings)

    def _agreed(self, reading: Reading) -> Reading:
        if self.monitor.processes.count == 1:
            return reading
        own = torch.tensor([reading.value, reading.standard_error, reading.bound, reading.slack], dtype=torch.float64)
        value, error, bound, slack = self.monitor.processes.from_first(own).tolist()
        return Reading(reading.metric, value, error, bound, reading.limit, slack)

    def _accuracy(self) -> float | None:
        if self._validate is None:
            return None
        # Evaluation mode is often left on by such functions, and their loaders draw.
        with preserve_state(self._model):
            value = float(self._validate())
        return float(self.monitor.processes.from_first(torch.tensor(value, dtype=torch.float64)))

    def _room_left(self, readings: Sequence[Reading]) -> float:
        """The least slack of any budget, as a share of what the pretrained state has; negative outside."""
        shares = []
        for reading, room in zip(readings, self._room, strict=True):
            if reading.slack is None:
                return -math.inf
            shares.append(reading.slack / room if room else math.copysign(1.0, reading.slack) if reading.slack else 0.0)
        return min(shares)

    def _check(self, step: int, epoch: float | None) -> GuardEvent:
        if self.infeasible:
            self._interpolator.interpolate(0.0, self._interpolator.state())
            return self._hold(step, epoch)
        if not self._reachable:
            return self._give_up(step, epoch, self.pretrained, self._accuracy(), 0)
        if not self._interpolator.finite():
            raise DivergedError(f"a guarded weight is not finite after step {step}")
        count = self._measurements
        before = self._measure()
        room = self._room_left(before)
        if room >= 0:
            return self._kept(step, epoch, before, room)
        outside = self._accuracy()
        end = self._interpolator.state()
        embeddings = None if self.head is None else self.monitor.embeddings()
        alpha, after = self._take_back(end, room)
        if self.head is not None and embeddings is not None:
            follow(self.head, embeddings, self.monitor.embeddings())
        if alpha == 0:
            return self._give_up(step, epoch, before, outside, self._measurements - count)
        self.lr_scale = max(self.lr_scale * min(0.75, max(0.25, alpha)), SLOWEST)
        self.radius = self._interpolator.distance()
        if self.preserve is not None:
            self.preserve.weight *= 2
        self._previous = self._interpolator.state()
        accuracy = self._accuracy()
        event = GuardEvent(
            step, epoch, "rewound", before, after, alpha, self.lr_scale, self._weight, outside, accuracy,
            self._measurements - count,
        )  # fmt: skip
        return self._compare(event)

    def _kept(self, step: int, epoch: float | None, readings: tuple[Reading, ...], room: float) -> GuardEvent:
        if self.radius is not None and room > TOLERANCE:
            # Drift grows about as the square of the distance.
            self.radius *= min(1.5, math.sqrt((1 - TOLERANCE / 2) / max(1e-6, 1 - room)))
        if room > 0.25 and self.lr_scale < 1:
            self.lr_scale = min(1.0, self.lr_scale * 1.5)
            if self.preserve is not None and self._first_weight is not None:
                self.preserve.weight = max(self._first_weight, self.preserve.weight / 1.5)
            self._previous = None if self.lr_scale == 1 else self._interpolator.state()
        accuracy = self._accuracy()
        event = GuardEvent(
            step, epoch, "kept", readings, readings, 1.0, self.lr_scale, self._weight, accuracy, accuracy, 1
        )  # fmt: skip
        return self._compare(event)

    def _take_back(self, end: State, room: float) -> tuple[float, tuple[Reading, ...]]:
        """Put the model at the largest alpha found to keep every budget; 0 where none of 1/64 or more does."""
        low, high = 0.0, 1.0
        inside, outside = 1.0, room
        found = self.pretrained
        for _ in range(MOST_MEASUREMENTS):
            alpha = _between(low, high, inside, outside)
            self._interpolator.interpolate(alpha, end)
            readings = self._measure()
            left = self._room_left(readings)
            if left >= 0:
                low, inside, found = alpha, left, readings
                if left <= TOLERANCE:
                    break
            else:
                high, outside = alpha, left
            if high - low < SMALLEST_SHARE:
                break
        self._interpolator.interpolate(low, end)
        return low, found

    def _give_up(
        self, step: int, epoch: float | None, before: tuple[Reading, ...], accuracy: float | None, measurements: int
    ) -> GuardEvent:
        self.infeasible, self.lr_scale, self.radius = True, 0.0, None
        self._interpolator.interpolate(0.0, self._interpolator.state())
        self._previous = self._interpolator.state()
        after = self._accuracy()
        event = GuardEvent(
            step, epoch, "infeasible", before, self.pretrained, 0.0, 0.0, self._weight, accuracy, after, measurements
        )
        if self._echo is None and self.monitor.processes.first:
            logger.warning("guard at step %d: %s", step, event)
        return self._record(event)

    def _hold(self, step: int, epoch: float | None) -> GuardEvent:
        """The held pretrained weights, behind a classifier that has trained on."""
        accuracy, readings = self._accuracy(), self.pretrained
        return self._record(
            GuardEvent(step, epoch, "frozen", readings, readings, 0.0, 0.0, self._weight, accuracy, accuracy, 0)
        )

    def _compare(self, event: GuardEvent) -> GuardEvent:
        """Note the accuracy of a state within the budget: keep it where it is the best, and count where it is not."""
        if event.accuracy is not None:
            if self._best_accuracy is None or event.accuracy > self._best_accuracy:
                self._best_accuracy, self._waited = event.accuracy, 0
                if self._best is not None:
                    self._best.keep(event.step)
            else:
                self._waited += 1
                self.should_stop = self._patience is not None and self._waited >= self._patience
        return self._record(event)

    def _record(self, event: GuardEvent) -> GuardEvent:
        self.events.append(event)
        # Asked now: a trainer may have started its processes after this was made.
        if self._echo is not None and self.monitor.processes.first:
            self._echo(f"guard at step {event.step}: {event}")
        if self.folder is not None and self.monitor.processes.rank == 0:
            write_events(self.events, self.run_id or self.folder.resolve().name, self.folder)
        if self.on_event is not None:
            self.on_event(event)
        return event


def _between(low: float, high: float, inside: float, outside: float) -> float:
    """Where a budget with these shares of room at both ends is probably just kept; never close to either end."""
    # Drift grows about as the square of the way; where it has no value, halve.
    share = 0.5 if not math.isfinite(outside) else inside / (inside - outside)
    share = min(0.85, max(0.15, 0.95 * share))
    return math.sqrt(low**2 + (high**2 - low**2) * share)
