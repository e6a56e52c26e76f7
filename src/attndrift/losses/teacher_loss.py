"""What the losses beside a teacher share: where the pretrained values of the same images come from."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Self

import torch
from torch import Tensor, nn

from attndrift.losses.base import Batch, PreservationLossError, StudyContext
from attndrift.losses.forward_loss import ForwardLoss
from attndrift.losses.views import View
from attndrift.models.computed import copy_without_hooks
from attndrift.models.evaluation import preserve_state, unwrapped
from attndrift.models.module_utils import named_modules
from attndrift.models.parameters import adapter_types, bare, decomposed_by

CachedTeacher = Callable[[Sequence[int], Sequence[bool]], Sequence[Tensor] | Tensor]
"""Called with image numbers and flips, returns the pretrained values (views, images, ...)."""


class TeacherLoss(ForwardLoss):
    """A loss beside the pretrained values of the very same images (flips, crops and all), which come from a ``teacher``.

    - None: where adapters of ``peft`` alone are trained, the same model with these off, one more forward pass of the tower;
      otherwise a frozen copy of the vision tower (and of the projection, where the loss compares embeddings) as it is now;
    - a second model, for instance the pretrained one, whose tower is run on the same input;
    - a cache, :class:`~attndrift.losses.TeacherCache` or any callable (numbers, flips) -> values: no further forward
      pass, but images are named at each call, ``preserve(index=..., flipped=...)``.

    A teacher runs in evaluation mode, without gradients, and draws from no random generator; it runs in the precision of
    its weights, whatever ``autocast`` surrounds it, so that training in bfloat16 may have one in bfloat16.

    Args:
        model: the model in training, or a wrapper of it (``peft``, ``DistributedDataParallel``).
        weight: the factor lambda, at least 0.
        teacher: see above.
        watch, check: see :class:`~attndrift.losses.forward_loss.ForwardLoss`.
    """

    def __init__(
        self,
        model: nn.Module,
        weight: float,
        teacher: nn.Module | CachedTeacher | None = None,
        *,
        watch: bool = True,
        check: bool | None = None,
    ) -> None:
        super().__init__(model, weight, watch=watch, check=check)
        self._cache: CachedTeacher | None = None
        self._teacher: nn.Module | None = None
        self.teacher, self._bare = teacher, False
        try:
            if teacher is None:
                own = self.view.encoder(self.model)
                # Adapters that started from a part of the weights belong to the pretrained model.
                self._bare = decomposed_by(named_modules(self.model)) is None
                if not self._bare or not _trains_adapters_alone(own):
                    self._teacher = copy_without_hooks(own).requires_grad_(False)
            elif isinstance(teacher, nn.Module):
                self._teacher = self.view.encoder(unwrapped(teacher))
                if self.view.tower(self._teacher) is self._tower:
                    raise ValueError("the teacher is the model in training itself; leave `teacher` out, or give a copy")
            elif callable(teacher):
                if getattr(teacher, "view", self.view.name) != self.view.name:
                    raise ValueError(f"the cache holds {teacher.view}, and the loss compares {self.view.name}")  # type: ignore[attr-defined]
                self._cache = teacher
            else:
                raise ValueError(f"teacher is a {type(teacher).__name__}; give a model, a cache or nothing")
        except BaseException:
            self.close()
            raise

    @property
    def needs_index(self) -> bool:
        """Whether a call needs the numbers of the images."""
        return self._cache is not None

    @classmethod
    def cached_view(cls, **settings: Any) -> View:
        """What a study measures once of every training image, for this loss's settings."""
        return cls.view

    @classmethod
    def in_study(cls, model: nn.Module, weight: float, context: StudyContext, **settings: Any) -> Self:
        """With the pretrained values that the study has measured as its teacher."""
        # Neither watches the evaluations in between, nor looks at values, which an accelerator would be waited for.
        cache = context.teachers[cls.cached_view(**settings).name]
        return cls(model, weight, teacher=cache, watch=False, check=False, **settings)

    @abstractmethod
    def _compare(self, current: list[Tensor], reference: Sequence[Tensor] | Tensor) -> Tensor:
        """The loss, not weighted. ``reference``: the pretrained values, (images, ...) a view, as a list or stacked."""

    def _loss(self, current: list[Tensor], batch: Batch) -> Tensor:
        index, flipped = batch.index, batch.flipped
        if self._cache is None:
            if index is not None or flipped is not None:
                raise PreservationLossError(
                    "index and flipped belong to a cache; this teacher sees the images themselves"
                )
            return self._compare(current, [part[: len(current[0])] for part in self._ask(batch)])
        if index is None:
            raise PreservationLossError(
                "the teacher is a cache: say which images these are, preserve(index=..., flipped=...)"
            )
        reference = self.reference(index, flipped)
        assert reference is not None
        count, images = reference.shape[1], len(current[0])
        if count != images:
            raise PreservationLossError(f"{count} numbers for a batch of {images} images")
        return self._compare(current, reference)

    def reference(self, index: Any, flipped: Any = None) -> Tensor | None:
        """Pretrained values of images by number, (views, images, ...); None where the teacher is no cache."""
        if self._cache is None:
            return None
        numbers = torch.as_tensor(index).tolist()
        flips = [False] * len(numbers) if flipped is None else torch.as_tensor(flipped).bool().tolist()
        if len(numbers) != len(flips):
            raise PreservationLossError(f"{len(numbers)} numbers and {len(flips)} flips; give as many of both")
        found = self._cache(numbers, flips)
        return found if isinstance(found, Tensor) else torch.stack(list(found))

    def _against(self, current: list[Tensor], reference: Tensor) -> Tensor:
        return self._compare(current, reference)

    @torch.no_grad()
    def _ask(self, batch: Batch) -> list[Tensor]:
        """The teacher's values of the input of the forward pass."""
        teacher = self._teacher if self._teacher is not None else self.view.encoder(self.model)
        weight = next(p for p in teacher.parameters() if p.is_floating_point())

        def moved(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return value.detach().to(weight.device, weight.dtype if value.is_floating_point() else None)

        with ExitStack() as stack:
            stack.enter_context(preserve_state(teacher))
            if self._bare:
                stack.enter_context(bare(teacher))
            given = {name: moved(value) for name, value in batch.kwargs.items()}
            found = self.view.run(teacher, tuple(moved(value) for value in batch.args), given, check=self._looks)
            return [part.detach() for part in found]


def _trains_adapters_alone(encoder: nn.Module) -> bool:
    """Whether switching the adapters off gives the pretrained encoder: nothing else of it is trained."""
    tuners, copies = adapter_types()
    layers: list[Any] = [part for part in named_modules(encoder) if isinstance(part, tuners + copies)]
    own = {id(parameter) for layer in layers for parameter in layer.parameters()}
    adapted: list[Any] = [layer for layer in layers if isinstance(layer, tuners)]
    own -= {id(p) for layer in adapted for p in layer.get_base_layer().parameters()}
    return bool(layers) and all(id(p) in own for p in encoder.parameters() if p.requires_grad)
