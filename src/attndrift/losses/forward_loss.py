"""What the losses on forward passes share: they watch a model's, and are asked for the loss of each."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from attndrift.losses.base import Batch, PreservationLoss, PreservationLossError
from attndrift.losses.views import Seen, View
from attndrift.models.evaluation import is_measuring
from attndrift.models.hooks import TemporaryHooks
from attndrift.models.input_images import checked_images


class ForwardLoss(PreservationLoss):
    """A loss on what a view sees of a model in training, such as its attention; subclasses give ``view`` and :meth:`_loss`.

    It watches the model's vision tower from its creation until ``close()`` (or the end of a ``with`` block). To be made
    before ``torch.compile`` and after ``peft``; a copy of the model is not preserved. Gradient checkpointing must be the
    non-reentrant one.

    Args:
        model: the model in training, or a wrapper of it.
        weight: the factor lambda, at least 0. At 0 the loss costs nothing beyond the watching.
        watch: see every forward pass until ``close()``; otherwise only those within ``with preserve.watching():``.
        check: raise where attention is not finite, or the first images are not normalised; by default on a CPU, where
            looking at them costs nothing.
    """

    view: View
    sees: ClassVar[str] = "what the loss compares"

    def __init__(self, model: nn.Module, weight: float, *, watch: bool = True, check: bool | None = None) -> None:
        super().__init__(model, weight)
        self._tower = self.view.tower(self.model)
        # Forward passes since the last call: arguments and what was seen. Earlier entries than the last are None.
        self._waiting: list[tuple[tuple[Any, ...], dict[str, Any], Any] | None] = []
        self._hooks = ExitStack()
        # No finiteness check on a GPU, where it forces a sync: there the loss is not finite, and nothing raises.
        on_cpu = all(parameter.device.type == "cpu" for parameter in self._tower.parameters())
        self._looks = on_cpu if check is None else check
        self._images_checked = False
        self._seen: Seen | None = None
        if watch:
            self._hooks.enter_context(self.watching())

    @contextmanager
    def watching(self) -> Iterator[None]:
        """See the forward passes within: for a loss that was made with ``watch=False``, around each forward pass."""
        with self.view.watch(self.model, check=self._looks) as self._seen:
            # After the forward pass, so that one which failed does not count.
            hooks = TemporaryHooks()
            hooks.add(self._tower.register_forward_hook(self._note, with_kwargs=True))
            try:
                yield
            finally:
                hooks.remove()

    def _note(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        assert self._seen is not None
        if is_measuring():
            if torch.is_grad_enabled():
                # What was seen would hold the graph until the next pass.
                self._seen.forget()
            return
        # Validation runs without gradients, recomputation inside a backward pass.
        if not self._closed and torch.is_grad_enabled() and torch._C._current_graph_task_id() == -1:
            if self._waiting:
                self._waiting[-1] = None
            self._waiting.append((args, kwargs, self._seen.hold()))

    def _weighted(self, batch: Batch) -> Tensor:
        if not self._waiting:
            raise PreservationLossError(
                "there is no forward pass with gradients to preserve since the last call: run model(images) first, "
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
        if self._looks and not self._images_checked:
            self._images_checked = True
            given = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.dim() == 4)
            list(checked_images(given, "images of this forward pass"))
        assert self._seen is not None
        # Others without gradients (a measurement, a pseudo-label) may have come since.
        self._seen.restore(held)
        return super()._weighted(replace(batch, args=args, kwargs=kwargs))

    def value(self, batch: Batch) -> Tensor:
        """The loss of what was seen, of the images that count."""
        assert self._seen is not None
        current, images = self._seen.read(), batch.images
        if images is not None and images < len(current[0]):
            current = [part[:images] for part in current]
        if not any(part.requires_grad for part in current):
            raise PreservationLossError(
                f"{self.sees} does not depend on a trained parameter (the vision tower is frozen), so there is nothing to "
                "preserve"
            )
        if images == 0:
            loss = self._nothing(current)
        elif batch.reference is not None:
            loss = self._against(current, batch.reference)
        else:
            loss = self._loss(current, batch)
        # The hooks would otherwise hold the graph, and a model with a graph on it cannot be copied.
        self._seen.forget()
        return loss

    @abstractmethod
    def _loss(self, current: list[Tensor], batch: Batch) -> Tensor:
        """The loss, not weighted, of the images that count: a scalar >= 0. ``current``: what the view saw."""

    def _against(self, current: list[Tensor], reference: Tensor) -> Tensor:
        """The loss, not weighted, of what was seen beside a ``reference`` that is known."""
        raise TypeError(f"{type(self).__name__} takes no reference")

    def _nothing(self, current: list[Tensor]) -> Tensor:
        """The loss of no image."""
        return current[0].new_zeros(())

    def _holds(self, model: nn.Module) -> bool:
        return any(part is self._tower for part in model.modules())

    def skip(self) -> None:
        """Leave the forward passes since the last call out."""
        self._waiting.clear()
        if self._seen is not None:
            self._seen.forget()

    def __getstate__(self) -> dict[str, Any]:
        # A copy (an average of the weights, a model sent to another process) is not what is preserved: it is closed.
        return {
            "weight": self.weight, "last": None, "last_active": None,
            "_closed": True, "_waiting": [], "_hooks": ExitStack(), "_seen": None,
        }  # fmt: skip

    def close(self) -> None:
        """Stop watching the model; further calls raise. Closing twice is allowed."""
        self._hooks.close()
        self._waiting.clear()
        super().close()
