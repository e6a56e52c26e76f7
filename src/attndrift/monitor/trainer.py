"""The callback of ``transformers.Trainer``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import TrainerCallback

from attndrift.monitor.alerts import Alert, AlertEvent
from attndrift.monitor.drift import Drift
from attndrift.monitor.measuring import DriftMonitor
from attndrift.monitor.recording import Existing
from attndrift.monitor.undisturbed import unwrapped
from attndrift.monitor.watching import DriftWatch
from attndrift.observing import find_vision_tower

if TYPE_CHECKING:
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

    from attndrift.guarding import Guard, GuardEvent
    from attndrift.regularizers import Protection


_GUARD = "attndrift_guard"


class DriftCallback(TrainerCallback):
    """Measures drift during ``transformers.Trainer.train`` and logs it through the trainer, to all its trackers.

    ::

        monitor = DriftMonitor(model, probe_images)
        trainer = Trainer(model, args, callbacks=[DriftCallback(monitor, every=50)], ...)
        trainer.train()

    It measures at the start, every ``every`` steps and at the end, prints one line each time, and passes
    ``drift/...`` and the values per layer to ``trainer.log``.

    Args:
        monitor: what to measure; of the model that the trainer trains, or of a part of it.
        every: measure after this many optimiser steps; or the set of steps to measure after.
        alerts: thresholds, see :class:`Alert`. A stop puts the best state back and ends the training.
        folder: where tables are written, None for none.
        run: columns of the table ``runs`` (``dataset``, ``method``, ...); rate, seed, epochs, batch size and weight
            decay are taken from the trainer's arguments.
        existing: ``refuse``, ``replace`` or ``continue`` tables that the folder holds already.
        protect: an :class:`~attndrift.AttentionPreservation` or :class:`~attndrift.EntropyFloor`, added to every
            training loss of the trainer. Where its teacher is a cache, the batches hold the images' numbers under
            ``index`` and, if any were mirrored, ``flipped`` (``remove_unused_columns=False`` lets them through).
        guard: a :class:`~attndrift.Guard` of the same monitor; what it measures goes to the trainer's logs as ``guard/...``.
            A protection that it may raise is given to both. Its state is saved in the trainer's checkpoints.
        on_drift: called with (step, epoch, drift) after each measurement.
        at_start, at_end: whether the first and the last state are measured besides the steps of ``every``.
        echo: prints a line for each measurement, None for silence.

    Attributes:
        watch: the :class:`DriftWatch` underneath, with ``should_stop`` and ``best_step``.
        drift, alerts: (step, drift) of every measurement, and every alert that has fired.
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
        protect: Protection | None = None,
        guard: Guard | None = None,
        on_drift: Callable[[int, float, Drift], None] | None = None,
        at_start: bool = True,
        at_end: bool = True,
        echo: Callable[[str], Any] | None = tqdm.write,
    ) -> None:
        self.monitor = monitor
        self.protect = protect
        self._on_drift = on_drift
        self._at_start, self._at_end = at_start, at_end
        self._trainer: Trainer | None = None
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
        """Add this callback to ``trainer``, as ``trainer.add_callback`` does.

        A trainer does not tell its callbacks who it is. One that was given in ``Trainer(callbacks=[...])`` finds it
        among the callers of its first event; attaching says it outright.
        """
        self._trainer = trainer
        trainer.add_callback(self)
        return self

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Remember the trainer that was made with this callback."""
        self._trainer = self._trainer or _calling_trainer(self)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure where training starts from."""
        trainer = self._trainer = self._trainer or _calling_trainer(self)
        if trainer is None:
            raise RuntimeError("the trainer of this callback cannot be told: use DriftCallback(...).attach(trainer)")
        self._check_model(trainer.model, "monitor", self.monitor.model)
        if self.protect is not None:
            self._check_model(trainer.model, "protection", self.protect.model)
            _add_to_loss(trainer, self.protect)
            if args.torch_compile:
                # Code that was compiled for an unprotected model of the same class would be used again, without the hooks.
                torch.compiler.reset()
        self.watch.watch_model(trainer.model)
        self._describe(args)
        if self.guard is not None:
            stored = (state.stateful_callbacks or {}).get(_GUARD)
            if stored is not None:
                self.guard.load_state_dict(stored)
            self.guard.start()
        if self._at_start or self.watch.can_stop:
            self.watch.start(state.global_step, float(state.epoch or 0.0))
            control.should_training_stop = control.should_training_stop or self.watch.should_stop

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure where a measurement is due."""
        step = state.global_step
        # At the last step, and not when all is over: trackers are closed by then.
        last = step >= state.max_steps
        self.watch.guard_step(step, float(state.epoch or 0.0), last=last)
        if self.guard is not None and state.stateful_callbacks is not None:
            # Saved with the trainer's state; restoring a callback itself would make a new one.
            state.stateful_callbacks[_GUARD] = self.guard.state_dict()
        if self.watch.due(step) or (last and self._at_end):
            self.watch.measure(step, float(state.epoch or 0.0))
        if self.watch.should_stop or (self.guard is not None and self.guard.should_stop):
            control.should_training_stop = True

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Take the training loss into the table ``history``, where this step was measured."""
        if logs and isinstance(logs.get("loss"), float):
            self.watch.note(state.global_step, train_loss=logs["loss"])

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any = None, **kwargs: Any
    ) -> None:
        """Take the validation accuracy into the table ``history``, where this step was measured."""
        if metrics and isinstance(metrics.get("eval_accuracy"), float):
            self.watch.note(state.global_step, val_accuracy=metrics["eval_accuracy"])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure the last state, complete the tables, and take the protection out of the trainer's loss."""
        if self._trainer is not None:
            _remove_from_loss(self._trainer)
        loaded = args.load_best_model_at_end and state.best_model_checkpoint is not None
        if self.watch.should_stop:
            # The trainer may have loaded what it calls the best model since.
            self.watch.restore()
        elif self.guard is not None and args.load_best_model_at_end:
            self.guard.check(state.global_step, float(state.epoch or 0.0))
        elif loaded and state.best_global_step not in (None, state.global_step):
            self.watch.select(state.best_global_step, _epoch_of(state, state.best_global_step))
        self.watch.finish(state.global_step if self._at_end else None, float(state.epoch or 0.0))

    def _report(self, step: int, epoch: float | None, drift: Drift) -> None:
        scalars = drift.scalars()
        if self.protect is not None and self.protect.last is not None:
            scalars["drift/protect_loss"] = float(self.protect.last)
        if self._trainer is not None:
            # Logging clears the request for the trainer's own log of this step, which is yet to come.
            pending = self._trainer.control.should_log
            self._trainer.log(scalars)
            self._trainer.control.should_log = pending
        if self._on_drift is not None:
            self._on_drift(step, float(epoch or 0.0), drift)

    def _report_guard(self, event: GuardEvent) -> None:
        scalars = {f"guard/{reading.metric}": reading.value for reading in event.after if reading.value is not None}
        scalars |= {"guard/alpha": event.alpha, "guard/rate": event.rate}
        if self._trainer is not None and self._trainer.control is not None:
            pending = self._trainer.control.should_log
            self._trainer.log(scalars)
            self._trainer.control.should_log = pending

    def _check_model(self, trained: nn.Module, what: str, watched: nn.Module) -> None:
        tower = find_vision_tower(watched).module
        if not any(part is tower for part in unwrapped(trained).modules()):
            raise ValueError(
                f"the {what} of this callback watches another model than the trainer trains; make it from the same "
                "model object (with model_init, from the model that it returned)"
            )

    def _describe(self, args: TrainingArguments) -> None:
        self.watch.describe(
            learning_rate=args.learning_rate, weight_decay=args.weight_decay, epochs=float(args.num_train_epochs),
            seed=args.seed, data_seed=args.data_seed,
            batch_size=args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        )  # fmt: skip
        if self.protect is not None:
            self.watch.describe(regularizer=self.protect.name, regularizer_weight=self.protect.weight)


def _epoch_of(state: TrainerState, step: int) -> float | None:
    epochs = [entry["epoch"] for entry in state.log_history if entry.get("step") == step and "epoch" in entry]
    return float(epochs[-1]) if epochs else None


def _calling_trainer(callback: TrainerCallback) -> Trainer | None:
    """The trainer that is calling ``callback`` now, found among the callers; None where there is none."""
    from transformers import Trainer

    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, Trainer) and any(known is callback for known in caller.callback_handler.callbacks):
            return caller
        frame = frame.f_back
    return None


_KEYS = ("index", "flipped")


class _ProtectedLoss:
    """``compute_loss`` of one trainer, with a protection added."""

    def __init__(self, trainer: Trainer, protect: Protection) -> None:
        self._trainer, self._protect = trainer, protect
        self._own = trainer.compute_loss

    def __call__(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        named: dict[str, Any] = {}
        if getattr(self._protect, "needs_index", False):
            named = {name: inputs[name] for name in _KEYS if name in inputs}
            if model.training and "index" not in named:
                from attndrift.regularizers import ProtectionError

                raise ProtectionError(
                    "the teacher is a cache, and the batches do not say which images they hold: put each image's number "
                    "under `index`, and pass remove_unused_columns=False to TrainingArguments, which drops it otherwise"
                )
            inputs = {name: value for name, value in inputs.items() if name not in named}
        # Whatever ran with gradients in between (a probe of the user's) is not of this batch.
        self._protect.skip()
        loss, outputs = self._own(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if loss.requires_grad:
            loss = loss + self._added(num_items_in_batch, named)
        return (loss, outputs) if return_outputs else loss

    def _added(self, num_items_in_batch: Any, named: dict[str, Any]) -> Tensor:
        trainer = self._trainer
        scaled = getattr(trainer, "loss_is_scaled_for_ga", None)
        if scaled is None:
            counted = trainer.model_accepts_loss_kwargs and num_items_in_batch is not None
            scaled = counted or trainer.compute_loss_func is not None
        added = self._protect(**named)
        # A loss that is normalised over the accumulated batch is summed by the trainer, any other one averaged.
        return added / trainer.current_gradient_accumulation_steps if scaled else added


def _add_to_loss(trainer: Trainer, protect: Protection) -> None:
    _remove_from_loss(trainer)
    trainer.compute_loss = _ProtectedLoss(trainer, protect)


def _remove_from_loss(trainer: Trainer) -> None:
    if isinstance(trainer.__dict__.get("compute_loss"), _ProtectedLoss):
        own = trainer.__dict__.pop("compute_loss")._own
        if getattr(own, "__self__", None) is not trainer:
            trainer.compute_loss = own
