"""What all preservation losses share: they watch a model's forward passes, and are asked for the loss of each.

Three lines in any training loop::

    preserve = AttentionPreservation(model, weight=0.1)     # before the first step

    loss = cross_entropy(model(images), labels) + preserve(model)
    loss.backward()

``preserve`` watches the model's vision tower from its creation until ``close()`` (or the end of a ``with`` block), and each
call gives the loss of the forward pass before it. It knows the model, so ``preserve()`` is the same; naming it makes the
line speak for itself, and another model than the preserved one is an error. Studies use the same objects.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from attndrift.attention.families import find_vision_tower
from attndrift.attention.observation import Observation
from attndrift.attention.observer import observe
from attndrift.models.evaluation import is_measuring, unwrapped


class PreservationLossError(RuntimeError):
    """A loss that was asked for where there is none; the message says what to do."""


class PreservationLoss(ABC):
    """A loss on the attention of a model in training; see :class:`AttentionPreservation` and :class:`EntropyFloor`.

    To be made before ``torch.compile`` and after ``peft``; a copy of the model is not preserved. Gradient
    checkpointing must be the non-reentrant one. In several processes each preserves its own images, and the gradients
    are averaged as all others are.

    Args:
        model: the model in training, or a wrapper of it.
        weight: the factor lambda, at least 0.
        watch: see every forward pass until ``close()``; otherwise only those within ``with preserve.watching():``.
        check: raise where the attention is not finite; by default on a CPU, where looking at it costs nothing.

    Attributes:
        weight: factor of the loss; may be changed during training. At 0 the loss is exactly 0 and costs nothing
            beyond the observation.
        last: the loss of the last call, unweighted, as a number on the model's device; None before the first.
    """

    name = ""

    def __init__(self, model: nn.Module, weight: float, *, watch: bool = True, check: bool | None = None) -> None:
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"weight is {weight}; it must be at least 0")
        self.weight = float(weight)
        self.last: Tensor | None = None
        self.model = unwrapped(model)
        self._tower = find_vision_tower(self.model).module
        # A forward pass: its arguments, and what was seen of it. Of all but the last only that there was one.
        self._waiting: list[tuple[tuple[Any, ...], dict[str, Any], list[Tensor]] | None] = []
        self._open = ExitStack()
        self._closed = False
        # An accelerator is not made to wait: attention that is not finite gives it a loss that is not, and no error.
        on_cpu = all(parameter.device.type == "cpu" for parameter in self._tower.parameters())
        self._looks = on_cpu if check is None else check
        self._seen: Observation | None = None
        if watch:
            self._open.enter_context(self.watching())

    @contextmanager
    def watching(self) -> Iterator[None]:
        """See the forward passes within: for a loss that was made with ``watch=False``, around each forward pass."""
        with observe(self.model, gradients=True, check=self._looks) as self._seen:
            # After the forward pass, so that one which failed does not count.
            handle = self._tower.register_forward_hook(self._note, with_kwargs=True)
            try:
                yield
            finally:
                handle.remove()

    def _note(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if self._seen is None:  # the hook of a copied model
            return
        if is_measuring():
            if torch.is_grad_enabled():
                # The observation would hold the graph until the next pass.
                self._seen.forget()
            return
        # Validation runs without gradients, recomputation inside a backward pass.
        if not self._closed and torch.is_grad_enabled() and torch._C._current_graph_task_id() == -1:
            if self._waiting:
                self._waiting[-1] = None
            self._waiting.append((args, kwargs, self._seen._held()))

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
            index: numbers of the batch's images, where the teacher is a cache.
            flipped: which of them were mirrored, where the teacher is a cache; by default none.
            reference: what :meth:`reference` returned for these images, instead of ``index`` and ``flipped``.
            images: how many of the batch count, the first ones; by default all.

        Raises:
            PreservationLossError: no forward pass with gradients since the last call, or more than one; or one whose
                attention does not depend on any trained parameter; or another ``model`` than the preserved one.
            TypeError: ``model`` is no model, such as image numbers given without their name.
        """
        if model is not None:
            self._check(model)
        if not self._waiting:
            raise PreservationLossError(
                "this preservation loss is closed; make a new one"
                if self._closed
                else "there is no forward pass with gradients to preserve since the last call: run model(images) first, "
                "once for each call. A model that was compiled before, or a copy of the model, is not seen; forward "
                "passes under torch.no_grad do not count"
            )
        if len(self._waiting) > 1:
            count = len(self._waiting)
            self.skip()
            raise PreservationLossError(
                f"{count} forward passes with gradients since the last call, and only the last one could be preserved: "
                "call after each of them and add the losses, or call skip() after one that is not to count"
            )
        last = self._waiting.pop()
        assert last is not None
        args, kwargs, held = last
        assert self._seen is not None
        # Others without gradients (a measurement, a pseudo-label) may have come since.
        self._seen._put_back(held)
        if self.weight == 0:
            self.last = None
            self._seen.forget()
            return torch.zeros((), device=next(self._tower.parameters()).device)
        log_attention = self._seen.log_attention
        if images is not None and images < len(log_attention[0]):
            log_attention = [layer[:images] for layer in log_attention]
        if not any(layer.requires_grad for layer in log_attention):
            raise PreservationLossError(
                "the attention does not depend on a trained parameter (the vision tower is frozen), so there is nothing to "
                "preserve"
            )
        if images == 0:
            loss = self._nothing(log_attention)
        elif reference is not None:
            loss = self._against(log_attention, reference)
        else:
            loss = self._loss(log_attention, args, kwargs, index, flipped)
        # The hooks would otherwise hold the graph, and a model with a graph on it cannot be copied.
        self._seen.forget()
        self.last = loss.detach()
        return self.weight * loss

    @abstractmethod
    def _loss(
        self, log_attention: list[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], index: Any, flipped: Any
    ) -> Tensor:
        """The loss, not weighted, of the last forward pass with its arguments: a scalar >= 0."""

    def _against(self, log_attention: list[Tensor], reference: Tensor) -> Tensor:
        """The loss, not weighted, of attention beside a ``reference`` that is known."""
        raise TypeError(f"{type(self).__name__} takes no reference")

    def _nothing(self, log_attention: list[Tensor]) -> Tensor:
        """The loss of no image."""
        return log_attention[0].new_zeros(())

    def _check(self, model: nn.Module) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"expected the model, got a {type(model).__name__}; image numbers go by name, index=...")
        if not any(part is self._tower for part in unwrapped(model).modules()):
            raise PreservationLossError(
                f"this {type(model).__name__} does not hold the vision tower that is preserved; make a preservation loss for it, "
                "AttentionPreservation(model, ...)"
            )

    def skip(self) -> None:
        """Leave the forward passes since the last call out."""
        self._waiting.clear()
        if self._seen is not None:
            self._seen.forget()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # A copy of the model (an average of its weights, say) takes its hooks along, and is not what is preserved.
        copied = object.__new__(type(self))
        memo[id(self)] = copied
        copied._closed, copied._waiting, copied._open, copied._seen = True, [], ExitStack(), None
        return copied

    def close(self) -> None:
        """Stop watching the model; further calls raise. Closing twice is allowed."""
        self._open.close()
        self._waiting.clear()
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
