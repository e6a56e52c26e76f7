"""The callback of ``transformers.Trainer``."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import TrainerCallback

from attndrift.attention.families import find_vision_tower
from attndrift.drift.alerts import Alert, AlertEvent
from attndrift.drift.drift import Drift
from attndrift.drift.monitor import DriftMonitor
from attndrift.drift.recording import Existing
from attndrift.drift.watch import DriftWatch
from attndrift.losses.names import canonical_losses
from attndrift.models.evaluation import is_measuring, unwrapped
from attndrift.trackers import scalars

if TYPE_CHECKING:
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

    from attndrift.guard.events import GuardEvent
    from attndrift.guard.guard import Guard
    from attndrift.losses.base import PreservationLoss


_GUARD = "attndrift_guard"


class DriftCallback(TrainerCallback):
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
        self._added_loss: _AddedLoss | None = None
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
        self._check_model(trainer.model, "monitor", self.monitor.model)
        if self.preserve is not None:
            self._check_model(trainer.model, "preservation loss", self.preserve.model)
            self._remove_added_loss()
            self._added_loss = _AddedLoss(trainer, self.preserve)
            if args.torch_compile:
                # Code that was compiled for a model that is not preserved of the same class would be used again, without the hooks.
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

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """From here to the end of the step the preservation loss is added."""
        if self._added_loss is not None:
            self._added_loss.in_step = True

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """See that the preservation loss has reached the gradients, before they are used."""
        if self._added_loss is not None:
            self._added_loss.check()

    on_substep_end = on_pre_optimizer_step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure where a measurement is due."""
        if self._added_loss is not None:
            self._added_loss.in_step = False
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
        """Measure the last state, complete the tables, and take the preservation loss out of the trainer's loss."""
        self._remove_added_loss()
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
        logged = scalars(drift.row())
        if self.preserve is not None and self.preserve.last is not None:
            logged["drift/preservation_loss"] = float(self.preserve.last)
        if self._trainer is not None:
            # Logging clears the request for the trainer's own log of this step, which is yet to come.
            pending = self._trainer.control.should_log
            self._trainer.log(logged)
            self._trainer.control.should_log = pending
        if self._on_drift is not None:
            self._on_drift(step, float(epoch or 0.0), drift)

    def _report_guard(self, event: GuardEvent) -> None:
        if self._trainer is not None and self._trainer.control is not None:
            pending = self._trainer.control.should_log
            self._trainer.log(event.scalars())
            self._trainer.control.should_log = pending

    def _remove_added_loss(self) -> None:
        if self._added_loss is not None:
            self._added_loss.remove()
        self._added_loss = None

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
        if self.preserve is not None:
            self.watch.describe(loss=canonical_losses({self.preserve.name: self.preserve.weight}))


def _epoch_of(state: TrainerState, step: int) -> float | None:
    epochs = [entry["epoch"] for entry in state.log_history if entry.get("step") == step and "epoch" in entry]
    return float(epochs[-1]) if epochs else None


_KEYS = ("index", "flipped")


class _AddedLoss:
    """A preservation loss in every training loss of a trainer, from now until it is removed.

    It goes where the trainer takes its loss from: into ``compute_loss_func`` or the label smoother where there is one,
    else into the loss that the model returns, by a forward hook. Whether it has reached the gradients is seen in the
    backward pass. It is added within steps of its own trainer alone (``in_step``), and a later one on the same model
    or trainer takes the place of one that an interrupted training has left.
    """

    _of: ClassVar[WeakKeyDictionary[Any, _AddedLoss]] = WeakKeyDictionary()

    def __init__(self, trainer: Trainer, preserve: PreservationLoss) -> None:
        self._trainer, self._preserve = trainer, preserve
        self._live, self._missed, self.in_step = True, False, False
        self._named: dict[str, Any] = {}
        self._items: Any = None
        model = trainer.model_wrapped
        for owner in (unwrapped(model), trainer):
            earlier = self._of.get(owner)
            if earlier is not None:
                earlier.remove()
            self._of[owner] = self
        self._hooks = [
            model.register_forward_pre_hook(self._before, with_kwargs=True),
            model.register_forward_hook(self._after, with_kwargs=True),
        ]
        names = ("compute_loss_func", "label_smoother")
        self._functions = {name: getattr(trainer, name) for name in names if getattr(trainer, name) is not None}
        for name, function in self._functions.items():
            setattr(trainer, name, self._with_added(function))

    def remove(self) -> None:
        """Leave the model and the trainer as they were."""
        self._live = False
        for hook in self._hooks:
            hook.remove()
        for name, function in self._functions.items():
            setattr(self._trainer, name, function)
        self._functions = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> _AddedLoss:
        # A copy of the model (an average of its weights, say) takes its hooks along, and is not what is preservted.
        copied = object.__new__(type(self))
        copied._live = False
        return copied

    def check(self) -> None:
        """Raise PreservationLossError where the last loss was one that the preservation loss is no part of."""
        if self._missed:
            from attndrift.losses.base import PreservationLossError

            raise PreservationLossError(
                "the trainer's loss is not the one that its model returns, so `preserve` is no part of it: add it in your "
                "compute_loss, loss = loss + preserve(), and give the callback no `preserve`"
            )

    def _before(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self._adds():
            return None
        self._items = kwargs.get("num_items_in_batch")
        if getattr(self._preserve, "needs_index", False):
            self._named = {name: kwargs[name] for name in _KEYS if name in kwargs}
            if model.training and "index" not in self._named:
                from attndrift.losses.base import PreservationLossError

                raise PreservationLossError(
                    "the teacher is a cache, and the batches do not say which images they hold: put each image's number "
                    "under `index`, and pass remove_unused_columns=False to TrainingArguments, which drops it otherwise"
                )
        # Whatever ran with gradients in between (a probe of the user's) is not of this batch.
        self._preserve.skip()
        return args, {name: value for name, value in kwargs.items() if name not in self._named}

    def _after(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if not self._adds() or not model.training or not torch.is_grad_enabled():
            return None
        self._missed = True
        if self._functions:
            return None
        if not isinstance(output, dict):
            return (output[0] + self._added(self._items), *output[1:])
        if output.get("loss") is not None:
            output["loss"] = output["loss"] + self._added(self._items)
        return output

    def _adds(self) -> bool:
        return self._live and self.in_step and not is_measuring()

    def _with_added(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def total(*args: Any, **kwargs: Any) -> Tensor:
            loss = function(*args, **kwargs)
            # Older label smoothers are not told the number of items; the model is.
            items = kwargs.get("num_items_in_batch", self._items)
            return loss + self._added(items) if loss.requires_grad and self._adds() else loss

        return total

    def _added(self, num_items_in_batch: Any) -> Tensor:
        trainer = self._trainer
        own, counted = trainer.compute_loss_func is not None, num_items_in_batch is not None
        added = self._preserve(**self._named)
        self._missed = added.requires_grad
        if added.requires_grad:
            added.register_hook(self._reached)
        scaled = getattr(trainer, "loss_is_scaled_for_ga", None)
        if scaled is None:
            scaled = (trainer.model_accepts_loss_kwargs and counted) or own
        # A loss that is normalised over the accumulated batch is summed by the trainer, any other one averaged; and over
        # the processes, which are averaged, likewise.
        if scaled:
            added = added / trainer.current_gradient_accumulation_steps
        if trainer.args.average_tokens_across_devices and (trainer.model_accepts_loss_kwargs or own) and counted:
            added = added / (trainer.args.n_gpu if trainer.args.n_gpu > 1 else trainer.accelerator.num_processes)
        return added

    def _reached(self, gradient: Tensor) -> None:
        self._missed = False
