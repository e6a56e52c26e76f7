"""The guard: keeps a model within budgets while it is trained."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import nn

from attndrift.drift.alerts import logger
from attndrift.drift.monitor import DriftMonitor
from attndrift.drift.schedule import Schedule
from attndrift.extras import importing
from attndrift.guard.budget import Budget, RetentionBudget, text_parameters
from attndrift.guard.coverage import why_unmeasured
from attndrift.guard.events import GuardEvent
from attndrift.guard.interpolator import WeightInterpolator
from attndrift.guard.keeper import BudgetKeeper
from attndrift.guard.limits import StepLimits
from attndrift.guard.meter import BudgetMeter
from attndrift.guard.report import GuardReport, report_lines, summarize
from attndrift.guard.validation import ValidationTracker
from attndrift.losses.base import PreservationLoss


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
    - after that, the weights may not move further from the pretrained ones (norm of the total change). After each step,
      any excess is rewound along the same line. So the classifier never trains on features that a later rewind removes;
    - the learning rate of these weights is multiplied by alpha, limited to 0.25..0.75. The guard does this by undoing part
      of each step; for AdamW and SGD this equals a lower rate. A preservation loss gets double weight.

    At every check with room to spare all three relax. Where even 1/64 of the change is too much, or the pretrained
    model itself is outside, the pretrained weights are put back bit for bit and frozen, and the guard says so.

    A guard that stays inactive leaves the training bit for bit as it was. Measuring touches nothing of the
    training. The optimizer is never touched either: after a rewind its momentum still points away from the
    pretrained weights, and the distance limit stops that.

    The way back leads to the weights of the monitor's reference, so make the monitor where the model is in its pretrained
    state (before a checkpoint is loaded), or give it the pretrained model as ``reference``. A guard that is made after
    training began is refused where that reference lacks a weight. Full weights and adapters of ``peft`` can be guarded,
    frozen parts too. In several processes every one of them must run the same calls; the first one's measurements decide.

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
        limits: learning rate and distance that the guarded weights are held to, :class:`StepLimits`.
        meter: measures the budgets, :class:`BudgetMeter`; ``meter.pretrained`` is what the pretrained state had.
        infeasible: whether a budget was out of reach, and the pretrained weights were put back.
        should_stop: ``patience`` has run out.
        seconds: time spent in the guard.

    Raises:
        ValueError: a budget that has no value for this model, nothing to guard, adapters that are merged, or pretrained
            weights that are not known.
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
        self._schedule = Schedule(every)
        chosen = [budgets] if isinstance(budgets, (Budget, RetentionBudget)) else list(budgets)
        for budget in chosen:
            if not isinstance(budget, (Budget, RetentionBudget)):
                raise TypeError(f"budgets: expected Budget objects, got {type(budget).__name__}")
        if not chosen:
            raise ValueError("budgets: there is none, so there is nothing to keep")
        if head is not None and not isinstance(head, nn.Linear):
            raise ValueError(f"head is a {type(head).__name__}; only a linear layer on the image embedding can follow")
        self.monitor = monitor
        self.folder = None if folder is None else Path(folder)
        if self.folder is not None:
            _table_writer()  # a missing package must fail now, not after an hour of training
        self.run_id: str | None = None
        self.on_event: Callable[[GuardEvent], Any] | None = None
        self.events: list[GuardEvent] = []
        self.infeasible = self.should_stop = False
        self.seconds = 0.0
        self._first, self._echo = first, echo
        self._since: int | None = None  # last step that was looked at
        self._last: tuple[int | None, float | None] = (None, None)
        self._validation = ValidationTracker(
            validate, keep_best=keep_best, patience=patience, processes=partial(getattr, monitor, "processes")
        )
        self.guard_model(monitor.model)
        self._interpolator = WeightInterpolator(monitor, text_parameters(chosen, monitor))
        self.meter = BudgetMeter(monitor, chosen, self._interpolator)
        self.limits = StepLimits(self._interpolator, preserve)
        self._keeper = BudgetKeeper(
            self._interpolator, self.meter, self.limits, self._validation, head, monitor.embeddings
        )
        unmeasured = why_unmeasured(monitor.model, self._interpolator.names, head, chosen)
        if unmeasured is not None and monitor.processes.first:
            logger.warning(unmeasured)

    def guard_model(self, model: nn.Module) -> None:
        """Keep (and put back, with ``keep_best``) the state of ``model``, which has the monitor's model inside."""
        # A folder of its own: an alert of the same training keeps its best state beside the tables.
        self._validation.watch_model(model, None if self.folder is None else self.folder / "guard")

    # -- in a loop ---------------------------------------------------------------------------------

    def due(self, step: int) -> bool:
        """Whether to check after this step: a check falls due at it, or at one since the last that was reported."""
        since = step - 1 if self._since is None or step <= self._since else self._since
        return step >= self._first and self._schedule.due(step, max(since, self._first - 1))

    def checked(self, step: int) -> bool:
        """Whether the last check was made at ``step``: then the state is within every budget, or is the pretrained one."""
        return bool(self.events) and self.events[-1].step == step

    def start(self, step: int | None = None) -> None:
        """Training begins, or goes on, after ``step``, None where the first step will tell.

        If the pretrained weights already break a budget: record it, restore them and freeze them.
        """
        self._since = step
        if not self.meter.reachable and not self.infeasible:
            self._record(self._keeper.give_up(0, 0.0, self.meter.pretrained, None, self.meter.measurements))

    def step(self, step: int, epoch: float | None = None) -> GuardEvent | None:
        """To be called after every optimiser step: lowers the rate where that is lowered, checks where that is due."""
        self._last = step, epoch
        self.limits.after_step()
        due, self._since = self.due(step), step
        return self.check(step, epoch) if due else None

    def check(self, step: int, epoch: float | None = None) -> GuardEvent:
        """Check now, whatever the step. Raises :class:`DivergedError` where a guarded weight is not finite."""
        started = time.perf_counter()
        try:
            event = self._keeper.check(step, epoch)
        finally:
            self.seconds += time.perf_counter() - started
        return self._record(event)

    def finish(self, step: int | None = None, epoch: float | None = None) -> bool:
        """The last check, unless the last state has been checked; with ``keep_best`` the best state is put back.

        A loop that loads another state afterwards calls :meth:`check` once more. Returns whether weights were changed.
        """
        known = len(self.events)
        number, epochs = self._last if step is None else (step, epoch)
        if not self.events or self.events[-1].step != number:
            self.check(number or 0, epochs)
        event = self.events[-1]
        if not self.infeasible and self._validation.put_back(event):
            self._record(
                replace(
                    event, action="best", before=event.after, after=self.meter.measure(), alpha=1.0, measurements=1,
                    accuracy_before=event.accuracy, accuracy=self._validation.best_accuracy,
                )
            )  # fmt: skip
        self.limits.release()
        return any(event.action not in ("kept", "frozen") for event in self.events[known:])

    def __enter__(self) -> Self:
        self.start(self.events[-1].step if self.events else 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()

    # -- what is said ------------------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        """What the guard did and what it cost, as plain values; accuracies 0..1, the cost in points.

        ``cost_points``: validation accuracy lost in the costliest rewind, ``accuracy_outside`` before it minus
        ``accuracy_inside`` after it, both at ``cost_step``. It is negative if every rewind improved the accuracy. It is no
        comparison with an unguarded training. ``accuracy`` is that of the last state.
        """
        return summarize(
            self.events, self.meter.budgets, lr_scale=self.limits.lr_scale, loss_weight=self.limits.loss_weight,
            measurements=self.meter.measurements, validated=self._validation.known,
        )  # fmt: skip

    def report(self) -> GuardReport:
        """The summary as a few readable lines; in a notebook with a table of the checks."""
        return GuardReport.of(report_lines(self.summary(), self.events, self.seconds), self.events)

    # -- resuming ----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs besides the weights, as plain values for JSON."""
        return {
            "events": [event.to_json() for event in self.events],
            "distance": self._interpolator.distance(),
            "infeasible": self.infeasible,
            "measurements": self.meter.measurements,
            "limits": self.limits.state_dict(),
            "validation": self._validation.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state``; the model must be in the state of the same step already.

        Raises ValueError where its weights are not as far from the pretrained ones as they were then: the guard was made
        after they had been loaded, or they have not been loaded yet.
        """
        distance = self._interpolator.distance()
        if not math.isclose(distance, state["distance"], rel_tol=1e-3, abs_tol=1e-6):
            raise ValueError(
                f"guard: the weights are {distance:.4g} from the pretrained ones, and were {state['distance']:.4g} when its state "
                "was saved. Make monitor and guard of the pretrained model, load the checkpoint's weights, then the guard's state"
            )
        self.events = [GuardEvent.from_json(event) for event in state["events"]]
        self.infeasible = self._keeper.infeasible = state["infeasible"]
        self.meter.measurements = state["measurements"]
        self.limits.load_state_dict(state["limits"])
        self._validation.load_state_dict(state["validation"])

    def _record(self, event: GuardEvent) -> GuardEvent:
        if event.action in ("kept", "rewound"):
            self._validation.note(event)
        self.infeasible, self.should_stop = self._keeper.infeasible, self._validation.should_stop
        self.events.append(event)
        # Asked now: a trainer may have started its processes after this was made.
        processes = self.monitor.processes
        if processes.first and self._echo is not None:
            self._echo(f"guard at step {event.step}: {event}")
        elif processes.first and event.action == "infeasible":
            logger.warning("guard at step %d: %s", event.step, event)
        if self.folder is not None and processes.rank == 0:
            _table_writer()(self.events, self.run_id or self.folder.resolve().name, self.folder)
        if self.on_event is not None:
            self.on_event(event)
        return event


def _table_writer() -> Callable[[Sequence[GuardEvent], str, Path], None]:
    # Here, so that a guard without a table needs no package of tables.
    with importing("study", "a guard that writes a table (folder=...)"):
        from attndrift.guard.recording import write_events
    return write_events
