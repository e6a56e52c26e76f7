"""The callback of ``transformers.Trainer``."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from attndrift.callbacks.added_loss import PreservationCallback, check_trained
from attndrift.drift.alerts import Alert, AlertEvent
from attndrift.drift.drift import Drift
from attndrift.drift.monitor import DriftMonitor
from attndrift.drift.watch import DriftWatch
from attndrift.losses.names import canonical_losses
from attndrift.models.pickling import Picklable
from attndrift.trackers import scalars

if TYPE_CHECKING:
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

    from attndrift.drift.recording import Existing
    from attndrift.guard.events import GuardEvent
    from attndrift.guard.guard import Guard
    from attndrift.losses.base import PreservationLoss


_GUARD = "attndrift_guard"


class DriftCallback(Picklable, TrainerCallback):
    """Measures drift during ``transformers.Trainer.train`` and logs it through the trainer, to all its trackers.

    ::

        monitor = DriftMonitor(model, probe_images)
        trainer = Trainer(model, args, ...)
        DriftCallback(monitor, every=50).attach(trainer)
        trainer.train()

    A trainer does not tell the callbacks in ``Trainer(callbacks=[...])`` who it is, so this one is attached. It measures at the start, every ``every`` steps and at the end, prints one line each time, and passes
    ``drift/...`` and the values per layer to ``trainer.log``.

    Args:
        monitor: what to measure; of the model that the trainer trains, or of a part of it.
        every: measure after this many optimiser steps; or the set of steps to measure after.
        alerts: thresholds, see :class:`Alert`. A stop puts the best state back and ends the training.
        folder: where tables are written, None for none.
        run: columns of the table ``runs`` (``dataset``, ``method``, ...); rate, seed, epochs, batch size and weight
            decay are taken from the trainer's arguments.
        existing: ``refuse``, ``replace`` or ``continue`` tables that the folder holds already.
        preserve: an :class:`~attndrift.AttentionPreservation` or :class:`~attndrift.EntropyFloor`, added to every
            training loss of the trainer: to the model's own, that of ``compute_loss_func``, or the smoothed one. A trainer
            with a ``compute_loss`` of its own that uses none of these is told to add it itself. Where its teacher is a cache, the batches hold the images' numbers under
            ``index`` and, if any were mirrored, ``flipped`` (``remove_unused_columns=False`` lets them through).
        guard: a :class:`~attndrift.Guard` of the same monitor; what it measures goes to the trainer's logs as ``guard/...``.
            A preservation loss that it may raise is given to both. Its state is saved in the trainer's checkpoints.
        on_drift: called with (step, epoch, drift) after each measurement.
        at_start, at_end: whether the first and the last state are measured besides the steps of ``every``.
        echo: prints a line for each measurement, None for silence.

    Attributes:
        watch: the :class:`DriftWatch` underneath, with ``should_stop`` and ``best_step``.
        drift, alerts: (step, drift) of every measurement, and every alert that has fired.
    """

    _left_out = ("_trainer",)

    def __init__(
        self,
        monitor: DriftMonitor,
        every: int | Collection[int] = 100,
        *,
        alerts: Sequence[Alert] = (),
        folder: str | os.PathLike[str] | None = None,
        run: Mapping[str, Any] | None = None,
        existing: Existing = "refuse",
        preserve: PreservationLoss | None = None,
        guard: Guard | None = None,
        on_drift: Callable[[int, float, Drift], None] | None = None,
        at_start: bool = True,
        at_end: bool = True,
        echo: Callable[[str], Any] | None = tqdm.write,
    ) -> None:
        self.monitor = monitor
        self.preserve = preserve
        self._on_drift = on_drift
        self._at_start, self._at_end = at_start, at_end
        self._trainer: Trainer | None = None
        self._adds_loss = None if preserve is None else PreservationCallback(preserve)
        self.watch = DriftWatch(
            monitor, every, alerts=alerts, folder=folder, run=run, existing=existing, guard=guard,
            on_drift=self._report, echo=echo,
        )  # fmt: skip
        self.guard = guard
        if guard is not None:
            guard.on_event = self._report_guard

    @property
    def drift(self) -> list[tuple[int, Drift]]:
        """(step, drift) of every measurement so far."""
        return self.watch.drift

    @property
    def alerts(self) -> list[AlertEvent]:
        """Every alert that has fired so far."""
        return self.watch.alerts

    def attach(self, trainer: Trainer) -> DriftCallback:
        """Add this callback to ``trainer``, through which it logs; ``preserve`` is added to its losses."""
        self._trainer = trainer
        if self._adds_loss is not None:
            self._adds_loss.attach(trainer)
        if self not in trainer.callback_handler.callbacks:
            trainer.add_callback(self)
        return self

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Refuse a place among ``Trainer(callbacks=[...])`` before anything is trained."""
        self._attached()

    def _attached(self) -> Trainer:
        if self._trainer is None:
            raise RuntimeError(
                "DriftCallback logs through its trainer, and a trainer does not tell its callbacks who it is. Make the trainer "
                "without this callback, and attach it: DriftCallback(...).attach(trainer)"
            )
        return self._trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure where training starts from."""
        trainer = self._attached()
        check_trained(trainer.model, "monitor", self.monitor.model)
        _move_last(trainer, self)
        self.watch.watch_model(trainer.model)
        self.watch.record.describe(**_described(args, self.preserve))
        if self.guard is not None:
            stored = (state.stateful_callbacks or {}).get(_GUARD)
            if stored is not None:
                self.guard.load_state_dict(stored)
        measure = self._at_start or self.watch.can_stop
        self.watch.start(state.global_step, float(state.epoch or 0.0), measure=measure)
        control.should_training_stop = control.should_training_stop or self.watch.should_stop

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure where a measurement is due."""
        _move_last(self._attached(), self)
        # At the last step, and not when all is over: trackers are closed by then.
        last = self._at_end and state.global_step >= state.max_steps
        self.watch.step(state.global_step, float(state.epoch or 0.0), last=last)
        if self.guard is not None and state.stateful_callbacks is not None:
            # Saved with the trainer's state; restoring a callback itself would make a new one.
            state.stateful_callbacks[_GUARD] = self.guard.state_dict()
        if self.watch.should_stop or (self.guard is not None and self.guard.should_stop):
            control.should_training_stop = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the tables, so that a training that is resumed from this checkpoint finds all its rows."""
        self.watch.record.write()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Take the training loss into the table ``history``, where this step was measured."""
        if logs and isinstance(logs.get("loss"), float):
            self.watch.record.note(state.global_step, train_loss=logs["loss"])

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any = None, **kwargs: Any
    ) -> None:
        """Take the validation accuracy into the table ``history``, where this step was measured."""
        if metrics and isinstance(metrics.get("eval_accuracy"), float):
            self.watch.record.note(state.global_step, val_accuracy=metrics["eval_accuracy"])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure the state that remains, where that is not the one measured last, and complete the tables."""
        best = state.best_global_step
        if args.load_best_model_at_end and state.best_model_checkpoint is not None and not self.watch.should_stop:
            if self.guard is not None:
                self.guard.check(state.global_step, float(state.epoch or 0.0))
            if best not in (None, state.global_step):
                self.watch.select(best, _epoch_of(state, best))
        self.watch.finish(state.global_step if self._at_end else None, float(state.epoch or 0.0))

    def _report(self, step: int, epoch: float | None, drift: Drift) -> None:
        logged = scalars(drift.row())
        if self.preserve is not None and self.preserve.last is not None:
            logged["drift/preservation_loss"] = float(self.preserve.last)
        self._log(logged)
        if self._on_drift is not None:
            self._on_drift(step, float(epoch or 0.0), drift)

    def _report_guard(self, event: GuardEvent) -> None:
        self._log(event.scalars())

    def _log(self, values: dict[str, float]) -> None:
        """Pass ``values`` to the trainer's trackers and its history; the console has its line from ``echo``."""
        trainer = self._trainer
        if trainer is None or trainer.control is None:
            return
        handler, pending = trainer.callback_handler, trainer.control.should_log
        every = handler.callbacks
        handler.callbacks = [one for one in every if not isinstance(one, (PrinterCallback, ProgressCallback))]
        try:
            trainer.log(values)
        finally:
            # Logging clears the request for the trainer's own log of this step, which is yet to come.
            handler.callbacks, trainer.control.should_log = every, pending


def _move_last(trainer: Trainer, callback: DriftCallback) -> None:
    """Call ``callback`` after the others: what they put into the model at the end of a step or of the training is measured.

    The list is replaced and not changed: the trainer is going through it.
    """
    callbacks = trainer.callback_handler.callbacks
    behind = callbacks[callbacks.index(callback) + 1 :]
    if any(not isinstance(one, DriftCallback) for one in behind):
        trainer.callback_handler.callbacks = [one for one in callbacks if one is not callback] + [callback]


def _described(args: TrainingArguments, preserve: PreservationLoss | None) -> dict[str, Any]:
    return {
        "learning_rate": args.learning_rate, "weight_decay": args.weight_decay, "epochs": float(args.num_train_epochs),
        "seed": args.seed, "data_seed": args.data_seed,
        "batch_size": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "loss": None if preserve is None else canonical_losses(preserve.weights),
    }  # fmt: skip


def _epoch_of(state: TrainerState, step: int) -> float | None:
    epochs = [entry["epoch"] for entry in state.log_history if entry.get("step") == step and "epoch" in entry]
    return float(epochs[-1]) if epochs else None
