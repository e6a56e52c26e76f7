"""A preservation loss in every training loss of a ``transformers.Trainer``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from attndrift.attention.families import find_vision_tower
from attndrift.losses.base import PreservationLoss, PreservationLossError
from attndrift.models.evaluation import is_measuring, unwrapped
from attndrift.models.hooks import TemporaryHooks
from attndrift.models.pickling import Picklable

if TYPE_CHECKING:
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

_KEYS = ("index", "flipped")


def check_trained(trained: nn.Module, what: str, watched: nn.Module) -> None:
    """Raise ValueError where the vision tower of ``watched`` is no part of the model that is ``trained``."""
    tower = find_vision_tower(watched).module
    if not any(part is tower for part in unwrapped(trained).modules()):
        raise ValueError(
            f"the {what} of this callback watches another model than the trainer trains; make it from the same "
            "model object (with model_init, from the model that it returned)"
        )


class PreservationCallback(Picklable, TrainerCallback):
    """Adds a preservation loss to every training loss of a trainer; :class:`DriftCallback` attaches it.

    Args:
        preserve: the loss, of the model that the trainer trains.
    """

    _left_out = ("_trainer", "_added")

    def __init__(self, preserve: PreservationLoss) -> None:
        self.preserve = preserve
        self._trainer: Trainer | None = None
        self._added: _AddedLoss | None = None

    def attach(self, trainer: Trainer) -> None:
        """Add this callback to ``trainer``, whose losses it adds to."""
        self._trainer = trainer
        if self not in trainer.callback_handler.callbacks:
            trainer.add_callback(self)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Add the loss from here on."""
        assert self._trainer is not None
        check_trained(self._trainer.model, "preservation loss", self.preserve.model)
        self._remove()
        self._added = _AddedLoss(self._trainer, self.preserve)
        if args.torch_compile:
            # Code that was compiled for a model of the same class that is not preserved would be used again, without the hooks.
            torch.compiler.reset()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """From here to the end of the step the preservation loss is added."""
        if self._added is not None:
            self._added.in_step = True

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """See that the preservation loss has reached the gradients, before they are used."""
        if self._added is not None:
            self._added.check()

    on_substep_end = on_pre_optimizer_step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """A forward pass after this is none of the training's."""
        if self._added is not None:
            self._added.in_step = False

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the preservation loss out of the trainer's loss."""
        self._remove()

    def _remove(self) -> None:
        if self._added is not None:
            self._added.remove()
        self._added = None


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
        self._hooks = TemporaryHooks()
        self._hooks.add(model.register_forward_pre_hook(self._before, with_kwargs=True))
        self._hooks.add(model.register_forward_hook(self._after, with_kwargs=True))
        names = ("compute_loss_func", "label_smoother")
        self._functions = {name: getattr(trainer, name) for name in names if getattr(trainer, name) is not None}
        for name, function in self._functions.items():
            setattr(trainer, name, self._with_added(function))

    def remove(self) -> None:
        """Leave the model and the trainer as they were."""
        self._live = False
        self._hooks.remove()
        for name, function in self._functions.items():
            setattr(self._trainer, name, function)
        self._functions = {}

    def check(self) -> None:
        """Raise PreservationLossError where the last loss was one that the preservation loss is no part of."""
        if self._missed:
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
