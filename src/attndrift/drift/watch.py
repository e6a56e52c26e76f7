"""A monitor in a training loop: when to measure, what to say, when to stop. The callbacks are made of this."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn

from attndrift.drift.alerts import Alert, AlertEvent
from attndrift.drift.drift import Drift
from attndrift.drift.guarding import GuardLike, NoGuard
from attndrift.drift.live import LivePlot
from attndrift.drift.monitor import DriftMonitor
from attndrift.drift.record import TrainingRecord
from attndrift.drift.schedule import Schedule
from attndrift.drift.stopping import AlertActions
from attndrift.models.checksum import weights_checksum
from attndrift.models.evaluation import unwrapped
from attndrift.models.pickling import Picklable
from attndrift.process_group import DivergedError

if TYPE_CHECKING:
    from attndrift.drift.recording import Existing


class DriftWatch(Picklable):
    """Watches the drift in any training loop.

    ::

        with DriftWatch(monitor, every=50, alerts=[Alert("cka_mean", below=0.9, action="stop")]) as watch:
            for step, batch in enumerate(batches, 1):
                ...                                   # forward, backward, optimizer.step()
                watch.step(step)
                if watch.should_stop:
                    break

    The block measures at its start (step 0), every ``every`` steps and at its end. Where the weights are replaced after
    the last step (by their average, say), the end is measured again: the last row is of the weights that remain. With
    ``existing="continue"`` a block measures nothing at its start, as the first step says where it goes on. In several
    processes every one of them must run the same calls; the first one speaks and writes.

    Args:
        monitor: what to measure.
        every: measure after this many optimiser steps; or the steps to measure after.
        alerts: thresholds, see :class:`Alert`.
        folder: where tables are written (and the best state, where an alert stops), None for none.
        run: columns of the table ``runs`` by name: ``dataset``, ``method``, ``learning_rate``, ``seed``, ...
        existing: ``refuse``, ``replace`` or ``continue`` tables that the folder holds already.
        guard: a :class:`~attndrift.Guard` of the same monitor; it steps before anything is measured, writes its table
            into ``folder``, and may stop the training too.
        model: the model whose state is kept and put back on a stop; by default the monitor's.
        on_drift: called with (step, epoch, drift) after each measurement; epoch is None where the loop does not say it.
        echo: prints the line of each measurement, None for silence.
        live: draw all measurements anew after each one, in a notebook.

    Attributes:
        drift: (step, drift) of every measurement so far, one a step; a training that begins again begins a new list.
        record: what ``drift`` is part of: :meth:`~TrainingRecord.note`, :meth:`~TrainingRecord.describe`, and
            :meth:`~TrainingRecord.write`, to be called where a checkpoint is saved.
        alerts: every alert that has fired so far, an :class:`AlertEvent` each.
        should_stop: an alert has stopped the training; the best state is back in the model then.
        best_step: the step of the kept state; None before the first one.
    """

    def __init__(
        self,
        monitor: DriftMonitor,
        every: int | Collection[int] = 100,
        *,
        alerts: Sequence[Alert] = (),
        folder: str | os.PathLike[str] | None = None,
        run: Mapping[str, Any] | None = None,
        existing: Existing = "refuse",
        guard: GuardLike | None = None,
        model: nn.Module | None = None,
        on_drift: Callable[[int, float | None, Drift], None] | None = None,
        echo: Callable[[str], Any] | None = print,
        live: bool = False,
    ) -> None:
        if guard is not None and guard.monitor is not monitor:
            raise ValueError("guard watches another monitor; make both from the same one")
        self.monitor = monitor
        self._guard = guard or NoGuard()
        self._schedule = Schedule(every)
        self._actions = AlertActions(alerts, monitor, None if folder is None else Path(folder))
        self.record = TrainingRecord(monitor, self._actions.events, folder, run, existing)
        self.drift = self.record.drift
        self._on_drift = on_drift
        self._echo = echo
        self._live = LivePlot(alerts) if live else None
        if guard is not None and self.record.tables is not None:
            guard.folder = guard.folder or self.record.tables.folder
            guard.run_id = guard.run_id or self.record.tables.run["run_id"]
        self._since: int | None = None  # last step checked against the schedule
        self._last: tuple[int | None, float | None] = (None, None)  # last step and epoch reported
        self._measured: tuple[int, ...] = ()  # checksum of the weights measured last
        self.watch_model(monitor.model if model is None else model)

    def watch_model(self, model: nn.Module) -> None:
        """Keep (and put back, on a stop) the state of ``model``, which has the monitor's model inside."""
        self.record.model = unwrapped(model)
        self._guard.guard_model(self.record.model)
        self._actions.watch_model(self.record.model)
        self.monitor.trained = self.record.model

    @property
    def alerts(self) -> list[AlertEvent]:
        """Every alert that has fired so far."""
        return self._actions.events

    @property
    def can_stop(self) -> bool:
        """Whether one of the alerts stops the training."""
        return self._actions.can_stop

    @property
    def should_stop(self) -> bool:
        """Whether an alert has stopped the training; the best state is back in the model then."""
        return self._actions.should_stop

    @property
    def best_step(self) -> int | None:
        """The step of the kept state; None before the first one, and where no alert stops."""
        return self._actions.best_step

    def start(self, step: int = 0, epoch: float | None = 0.0, *, measure: bool = True) -> None:
        """A training begins, or goes on, after ``step``: measure the state that it starts from, unless told not to.

        What an interrupted training has measured after ``step`` is dropped. Raises
        :class:`~attndrift.results.tables.TableError` where a finished training of the same watch would be written over.
        """
        kept = self.record.begin(step)
        self._actions.begin(kept)
        self._since = step
        self._guard.start(step)
        if measure:
            self.measure(step, epoch)
        self._last = None, None

    def step(self, step: int, epoch: float | None = None, *, last: bool = False, **noted: float) -> Drift | None:
        """To be called after every optimiser step: measures where that is due.

        Args:
            step: optimiser steps done. Where some were not reported, what fell due in between is measured now.
            epoch: epochs done.
            last: measure this step in any case, as the last one.
            noted: further columns of the table ``history``: ``train_loss``, ``val_accuracy``, ...
        """
        if self.should_stop:
            return None
        if self._since is None or step < self._since:
            self.start(step - 1, epoch, measure=False)
        due = last or self._schedule.due(step, self._since)
        self._since, self._last = step, (step, epoch)
        # First the guard: what is measured is the guarded state.
        self._guard.step(step, epoch)
        if last:
            self._guard.finish(step, epoch)
        return self.measure(step, epoch, **noted) if due else None

    def measure(self, step: int, epoch: float | None = None, **noted: float) -> Drift | None:
        """Measure now, whatever the step; None where the model has diverged and the best state was put back.

        Raises DivergedError for a model that has left the finite numbers where there is no state to put back.
        """
        if self.should_stop:
            raise RuntimeError("an alert has stopped this training; the best state is back in the model")
        try:
            drift = self.monitor.measure(step)
        except DivergedError as error:
            error.at(step)
            self.record.status = "diverged"
            if not self._actions.diverged(step, epoch):
                self.record.write()
                raise
            self.record.selected = self._actions.best
            self.record.write()
            return None
        self._last, self._measured = (step, epoch), weights_checksum(self.monitor.model)
        self.record.add(step, epoch, drift, noted)
        self._print(f"drift at step {step}: {drift.line()}")
        if self._on_drift is not None:
            self._on_drift(step, epoch, drift)
        if self._live is not None and self.monitor.processes.first:
            self._live.show(self.drift)
        fired = self._actions.act(step, epoch, drift)
        if self._actions.should_stop:
            self.record.selected = self._actions.best
        if fired or (self.record.tables is not None and self.record.tables.due):
            self.record.write()
        return drift

    def select(self, step: int, epoch: float | None = None) -> Drift:
        """Measure the earlier state that a loop has loaded in place of its last one: the table ``runs`` ends with it.

        Args:
            step, epoch: of that state. The table ``history`` stays as it is.
        """
        drift = self.monitor.measure(keep=False)
        self._measured = weights_checksum(self.monitor.model)
        self.record.selected = drift, epoch
        self._print(f"drift of the selected state (step {step}): {drift.line()}")
        return drift

    def finish(self, step: int | None = None, epoch: float | None = None, *, status: str = "finished") -> None:
        """Measure the last state, unless it has been, and complete the tables.

        May be called again after the weights were replaced: the last row is then measured again.

        Args:
            step: optimiser steps done; None measures nothing more, unless a guard has changed the weights.
            status: ``finished``, or ``failed`` for a training that ended with an error: nothing is measured then.
        """
        if self.should_stop:
            # The loop may have loaded another state since.
            self._actions.restore()
        elif status == "finished":
            changed = self._guard.finish(step, epoch)
            if self.record.selected is not None:
                if self._replaced():
                    self.record.selected = self.monitor.measure(keep=False), self.record.selected[1]
            elif step is None:
                if changed:
                    self.record.selected = self.monitor.measure(keep=False), None
            elif step != self.record.last_step or self._replaced():
                self.measure(step, epoch)
        if self.record.status != "diverged":
            self.record.status = status
        self.record.write()

    def _replaced(self) -> bool:
        """Whether the weights are others than those measured last, in any process."""
        changed = weights_checksum(self.monitor.model) != self._measured
        return bool(self.monitor.processes.sum(torch.tensor([int(changed)]))[0])

    def _print(self, text: str) -> None:
        # Asked anew each time: a trainer may start its processes after this was made.
        if self._echo is not None and self.monitor.processes.first:
            self._echo(text)

    def __enter__(self) -> Self:
        if self.record.continues:
            self._guard.start()
        else:
            self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish(*self._last)
        elif not isinstance(error, DivergedError):
            self.finish(status="failed")
