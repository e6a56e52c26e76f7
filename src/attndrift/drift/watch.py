"""A monitor in a training loop: when to measure, what to say, when to stop. The callbacks are made of this."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from torch import nn

from attndrift.drift.alerts import Alert, AlertBook, AlertEvent, logger
from attndrift.drift.best_state import BestState
from attndrift.drift.drift import Drift
from attndrift.drift.monitor import DriftMonitor
from attndrift.drift.recording import DriftTables, Existing, check_columns, describe_training
from attndrift.models.evaluation import unwrapped
from attndrift.process_group import DivergedError


class GuardLike(Protocol):
    """What a watch needs of a guard; :class:`attndrift.Guard` is one."""

    monitor: DriftMonitor
    folder: Path | None
    run_id: str | None

    def guard_model(self, model: nn.Module) -> None:
        """Guard ``model``, which has the monitor's model inside."""

    def start(self) -> None:
        """Training begins."""

    def step(self, step: int, epoch: float | None = None) -> Any:
        """After an optimizer step."""

    def finish(self, step: int | None = None, epoch: float | None = None) -> bool:
        """Training has ended; whether the guard changed the weights."""


class DriftWatch:
    """Watches the drift in any training loop.

    ::

        with DriftWatch(monitor, every=50, alerts=[Alert("cka_mean", below=0.9, action="stop")]) as watch:
            for step, batch in enumerate(batches, 1):
                ...                                   # forward, backward, optimizer.step()
                watch.step(step)
                if watch.should_stop:
                    break

    The block measures at its start (step 0), every ``every`` steps and at its end. In several processes every one of
    them must run the same calls; the first one speaks and writes.

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

    Attributes:
        drift: (step, drift) of every measurement so far.
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
    ) -> None:
        if guard is not None and guard.monitor is not monitor:
            raise ValueError("guard watches another monitor; make both from the same one")
        if isinstance(every, int) and every < 1:
            raise ValueError(f"every is {every}; it must be at least 1")
        if run is not None and folder is None:
            raise ValueError("run describes the row of a table: give a folder for the tables")
        self.monitor = monitor
        self.guard = guard
        self._every = every if isinstance(every, int) else frozenset(every)
        self._book = AlertBook(alerts)
        self._folder = None if folder is None else Path(folder)
        self._on_drift = on_drift
        self._echo = echo
        self.tables = DriftTables(folder, run or {}, existing) if folder is not None else None
        if guard is not None and self.tables is not None:
            guard.folder = guard.folder or self.tables.folder
            guard.run_id = guard.run_id or self.tables.run["run_id"]
        self._described: dict[str, Any] = {}
        self._best: BestState | None = None
        self._best_drift: Drift | None = None
        self._best_epoch: float | None = None
        # What the guard made of the last state after it was measured.
        self._ended: Drift | None = None
        self._selected: tuple[Drift, float | None] | None = None
        self._status = "running"
        self._last: tuple[int | None, float | None] = (None, None)
        self.drift: list[tuple[int, Drift]] = []
        self.should_stop = False
        self.watch_model(monitor.model if model is None else model)

    def watch_model(self, model: nn.Module) -> None:
        """Keep (and put back, on a stop) the state of ``model``, which has the monitor's model inside."""
        self._model = unwrapped(model)
        if self.guard is not None:
            self.guard.guard_model(self._model)
        if self._book.can_stop:
            self._best = BestState(self._model, self._folder, lambda: self.monitor.processes)

    @property
    def _speaks(self) -> bool:
        # Asked anew each time: a trainer may start its processes after this was made.
        return self.monitor.processes.first

    @property
    def alerts(self) -> list[AlertEvent]:
        """Every alert that has fired so far."""
        return self._book.events

    @property
    def can_stop(self) -> bool:
        """Whether one of the alerts stops the training."""
        return self._book.can_stop

    @property
    def best_step(self) -> int | None:
        """The step of the kept state; None before the first one, and where no alert stops."""
        return None if self._best is None else self._best.step

    def describe(self, **columns: Any) -> None:
        """Columns of the table ``runs`` that the loop knows; those given as ``run`` go first."""
        check_columns(columns)
        self._described |= {name: value for name, value in columns.items() if value is not None}

    def due(self, step: int) -> bool:
        """Whether to measure after this step."""
        return step % self._every == 0 if isinstance(self._every, int) else step in self._every

    def step(self, step: int, epoch: float | None = None, **noted: float) -> Drift | None:
        """To be called after every optimiser step: measures where that is due.

        Args:
            step: optimiser steps done.
            epoch: epochs done.
            noted: further columns of the table ``history``: ``train_loss``, ``val_accuracy``, ...
        """
        self._last = step, epoch
        self.guard_step(step, epoch)
        return self.measure(step, epoch, **noted) if self.due(step) and not self.should_stop else None

    def guard_step(self, step: int, epoch: float | None = None, *, last: bool = False) -> None:
        """The guard's part of a step: before the measurement of the same step, which is of the guarded state."""
        if self.guard is None or self.should_stop:
            return
        self.guard.step(step, epoch)
        if last:
            self.guard_finish(step, epoch)

    def guard_finish(self, step: int | None, epoch: float | None = None) -> None:
        """The guard's last check; what it changes in a state that was measured already is measured again."""
        if self.guard is None or self.should_stop:
            return
        changed = self.guard.finish(step, epoch)
        if changed and self.drift and (step is None or step == self.drift[-1][0]):
            self._ended = self.monitor.measure()

    def measure(self, step: int, epoch: float | None = None, **noted: float) -> Drift | None:
        """Measure now, whatever the step; None where the model has diverged and the best state was put back.

        Raises DivergedError for a model that has left the finite numbers where there is no state to put back.
        """
        if self.should_stop:
            raise RuntimeError("an alert has stopped this training; the best state is back in the model")
        try:
            drift = self.monitor.measure()
        except DivergedError:
            self._status = "diverged"
            if self.best_step is None:
                self._write()
                raise
            self._book.events.append(AlertEvent(step, epoch, "finite", None, "diverged", None, "stop"))
            self._stop(self._book.events[-1])
            return None
        self.drift.append((step, drift))
        if self.tables is not None:
            self.tables.add(step, epoch, drift)
            self.tables.note(step, noted)
        self._print(f"drift at step {step}: {drift.line()}")
        fired = self._book.check(step, epoch, drift)
        if self._on_drift is not None:
            self._on_drift(step, epoch, drift)
        if self._book.quiet and self._best is not None:
            self._best.keep(step)
            self._best_drift, self._best_epoch = drift, epoch
        stopping: AlertEvent | None = None
        for alert, event in fired:
            if callable(alert.action):
                alert.action(event)
            elif alert.action == "stop":
                stopping = stopping or event
            else:
                self._say(str(event))
        if stopping is not None:
            self._stop(stopping)
        elif self.tables is not None and (self.tables.due or fired):
            self._write()
        return drift

    def _print(self, text: str) -> None:
        if self._echo is not None and self._speaks:
            self._echo(text)

    def _say(self, text: str) -> None:
        if self._speaks:
            logger.warning(text)

    def _stop(self, event: AlertEvent) -> None:
        self.should_stop = True
        if self._best is None or self._best.step is None:
            self._say(f"{event}; training stops. No measured state was without an alert, so none is put back")
        else:
            self._say(f"{event}; training stops, and the state of step {self._best.restore()} is put back")
        self._write()

    def restore(self) -> None:
        """Put the best state back once more, for a loop that has loaded another one since the stop."""
        if self._best is not None and self._best.step is not None:
            self._best.restore()

    def select(self, step: int, epoch: float | None = None) -> Drift:
        """Measure the earlier state that a loop has loaded in place of its last one: the table ``runs`` ends with it.

        Args:
            step, epoch: of that state. The table ``history`` stays as it is.
        """
        drift = self.monitor.measure()
        self._selected = drift, epoch
        self._print(f"drift of the selected state (step {step}): {drift.line()}")
        return drift

    def note(self, step: int, **values: float) -> bool:
        """Add columns of the table ``history`` to the row of ``step``; False where that step was not measured."""
        return self.tables is not None and self.tables.note(step, values)

    def _write(self) -> None:
        if self.tables is None or not self.tables.history or not self._speaks:
            return
        # After a stop the model is in its best state again, and that is what the run ended with.
        restored = self.should_stop and self._best_drift is not None
        last = self._ended or (self.drift[-1][1] if self.drift else None)
        final = self._best_drift if restored else last
        selected = self._best_epoch if restored else None
        if self._selected is not None:
            final, selected = self._selected
        row = describe_training(self._model, self.monitor) | self._described | {"status": self._status}
        if final is not None:
            row |= final.columns("runs")
        if selected is not None:
            row["selected_epoch"] = selected
        self.tables.write(row, self.alerts)

    def start(self, step: int = 0, epoch: float | None = 0.0) -> None:
        """Measure the state that training starts from."""
        if self.guard is not None:
            self.guard.start()
        self.measure(step, epoch)

    def finish(self, step: int | None = None, epoch: float | None = None, *, status: str = "finished") -> None:
        """Measure the last state, unless it has been, and complete the tables.

        Args:
            step: optimiser steps done; None where the last measurement was the last state.
            status: ``finished``, or ``failed`` for a training that ended with an error: nothing is measured then.
        """
        if status == "finished":
            self.guard_finish(step, epoch)
        measured = self.drift[-1][0] if self.drift else None
        if status == "finished" and step is not None and step != measured and not self.should_stop:
            self.measure(step, epoch)
        if self._status != "diverged":
            self._status = status
        self._write()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish(*self._last)
        elif not isinstance(error, DivergedError):
            self.finish(status="failed")
