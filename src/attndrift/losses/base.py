"""What all preservation losses share, whether they look at attention, at features or at parameters.

Three lines in any training loop::

    preserve = L2SP(model, weight=0.1)                      # before the first step

    loss = cross_entropy(model(images), labels) + preserve(model)
    loss.backward()

Several are one loss: ``preserve = SummedLoss(L2SP(model, 0.5), LDIFS(model, 0.1))``.

Each call gives the loss of the forward pass before it. The loss knows its model, so ``preserve()`` is the same; naming it
makes the line speak for itself, and another model than the preserved one is an error. Studies use the same objects.

Importing this module does not import torch, so a loss class and its registry entry can share one file.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

if TYPE_CHECKING:
    from torch import Tensor, nn

# Imports inside functions: these packages take time to load, which only who needs them pays.


class PreservationLossError(RuntimeError):
    """A loss that was asked for where there is none; the message says what to do."""


class ReferenceImages(Protocol):
    """Images that a study does not train on, for losses that hold the model on them."""

    @property
    def pixels(self) -> Tensor:
        """Normalised, (images, 3, height, width), on the model's device."""

    @property
    def text_features(self) -> Tensor:
        """Of the class names of their dataset, (classes, dimensions), normalised."""

    def fisher(self) -> Mapping[str, Tensor]:
        """What :func:`~attndrift.losses.ewc.fisher_information` finds on them, measured once."""


@dataclass(frozen=True)
class StudyContext:
    """What a study knows of the pretrained model when it makes a loss.

    Attributes:
        pretrained_entropy: (layers,), nats, on the probe set.
        teachers: the pretrained model's values of the training images by number, by the name of the view.
        class_texts: makes the text features of the target's class names, (classes, dimensions).
        reference: the run's reference images, where a loss needs them.
    """

    pretrained_entropy: Tensor
    teachers: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    class_texts: Callable[[], Tensor] | None = None
    reference: ReferenceImages | None = None

    def reference_of(self, loss: str) -> ReferenceImages:
        """The reference images. Raises ValueError where the run names none."""
        if self.reference is None:
            raise ValueError(f"`reference`: {loss} needs reference images; name a dataset")
        return self.reference


@dataclass(frozen=True)
class Batch:
    """What a call was told of the batch whose forward pass is preserved.

    Attributes:
        index, flipped: numbers of its images and which were mirrored, where the loop named them.
        reference: what :meth:`PreservationLoss.reference` returned for it.
        images: how many images count, the first ones; None is all.
        args, kwargs: of the forward pass of the vision tower, where the loss watches it.
    """

    index: Any = None
    flipped: Any = None
    reference: Tensor | None = None
    images: int | None = None
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


class PreservationLoss(ABC):
    """A loss that holds a model near its pretrained state; subclasses give ``name`` and :meth:`value`.

    To be made before the first step, while the model is the pretrained one. In several processes the loss is that of
    each one's images, and the gradients are averaged as all others are.

    Args:
        model: the model in training, or a wrapper of it.
        weight: the factor lambda, at least 0.

    Attributes:
        weight: factor of the loss; may be changed during training. At 0 the loss is exactly 0.
        last: the loss of the last call, unweighted, as a number on the model's device; None before the first.
        last_active: of a loss that reports it, the share of what it looks at in which it was active in the last call.
    """

    name = ""

    def __init__(self, model: nn.Module, weight: float) -> None:
        # Imported here: a loss may stand in one file with its facts, which are read without torch.
        from attndrift.models.evaluation import unwrapped

        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"weight is {weight}; it must be at least 0")
        self.weight = float(weight)
        self.last: Tensor | None = None
        self.last_active: Tensor | None = None
        self.model = unwrapped(model)
        self._closed = False

    @classmethod
    def in_study(cls, model: nn.Module, weight: float, context: StudyContext, **settings: Any) -> Self:
        """The loss of a study's run, with its own settings by name."""
        return cls(model, weight, **settings)

    def watching(self) -> AbstractContextManager[None]:
        """Around each forward pass of a study; a loss that looks at activations sees them here."""
        return nullcontext()

    def reference(self, index: Any, flipped: Any) -> Tensor | None:
        """What the loss of these images needs besides their forward pass, where that can be known before it.

        Give it to the call as ``reference``. None where there is nothing.
        """
        return None

    def __call__(
        self,
        model: nn.Module | None = None,
        *,
        index: Any = None,
        flipped: Any = None,
        reference: Tensor | None = None,
        images: int | None = None,
    ) -> Tensor:
        """The weighted loss of the last forward pass: a scalar >= 0, differentiable.

        Args:
            model: the preserved model, or a wrapper of it, or nothing: no forward pass is run.
            index: numbers of the batch's images, where the loss knows images by number.
            flipped: which of them were mirrored; by default none.
            reference: what :meth:`reference` returned for these images, instead of ``index`` and ``flipped``.
            images: how many of the batch count, the first ones; by default all.

        Raises:
            PreservationLossError: there is nothing to preserve, or another ``model`` than the preserved one.
            TypeError: ``model`` is no model, such as image numbers given without their name.
        """
        if self._closed:
            raise PreservationLossError(
                "this preservation loss is closed, or a copy (copied or unpickled with its model), which watches nothing; "
                "make a new one of this model"
            )
        if model is not None:
            self._check(model)
        return self._weighted(Batch(index, flipped, reference, images))

    def _weighted(self, batch: Batch) -> Tensor:
        if self.weight == 0:
            self.last = None
            self.skip()
            return next(self.model.parameters()).new_zeros(())
        loss = self.value(batch)
        self.last = loss.detach()
        return self.weight * loss

    @abstractmethod
    def value(self, batch: Batch) -> Tensor:
        """The loss, not weighted: a scalar >= 0, differentiable. Must not move a value to the CPU (``.item()``): that forces a sync."""

    @property
    def weights(self) -> Mapping[str, float]:
        """The weight by the name of the loss; of a sum, of every part."""
        return {self.name: self.weight}

    def _holds(self, model: nn.Module) -> bool:
        return any(part is self.model for part in model.modules())

    def _check(self, model: nn.Module) -> None:
        # Here: this module must be importable without torch.
        from torch import nn

        from attndrift.models.evaluation import unwrapped

        if not isinstance(model, nn.Module):
            raise TypeError(f"expected the model, got a {type(model).__name__}; image numbers go by name, index=...")
        if not self._holds(unwrapped(model)):
            raise PreservationLossError(
                f"this {type(model).__name__} does not hold the model that is preserved; make a preservation loss for it, "
                f"{type(self).__name__}(model, ...)"
            )

    def skip(self) -> None:  # noqa: B027 - a loss that watches nothing has nothing to leave out
        """Leave the forward passes since the last call out."""

    def close(self) -> None:
        """Stop watching the model; further calls raise. Closing twice is allowed."""
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
