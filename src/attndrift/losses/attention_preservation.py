"""Attention preservation (APR): KL(current || pretrained) of the attention of the images in training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Self

import torch
from torch import Tensor, nn

from attndrift.attention.families import find_vision_tower
from attndrift.attention.observer import observe
from attndrift.losses.attention_loss import AttentionLoss
from attndrift.losses.base import Batch, PreservationLossError, StudyContext
from attndrift.models.computed import copy_without_hooks
from attndrift.models.evaluation import preserve_state, unwrapped
from attndrift.models.parameters import bare, has_adapters

CachedAttention = Callable[[Sequence[int], Sequence[bool]], Sequence[Tensor] | Tensor]
"""Called with image numbers and flips, returns pretrained log-attention (layers, images, heads, patches)."""


def attention_preservation_loss(log_attention: Sequence[Tensor], reference: Sequence[Tensor] | Tensor) -> Tensor:
    """KL(current || pretrained) in nats, averaged over images, heads and layers.

    Args:
        log_attention: current log-attention, a tensor (images, heads, patches) per layer.
        reference: pretrained log-attention of the same images, per layer, or one tensor
            (layers, images, heads, patches).

    Returns:
        A scalar >= 0, 0 where the attention is the pretrained one. Differentiable in ``log_attention``.
    """
    if len(log_attention) != len(reference):
        raise ValueError(f"reference has {len(reference)} layers, log_attention has {len(log_attention)}")
    for layer, (current, pretrained) in enumerate(zip(log_attention, reference, strict=True)):
        if current.shape != pretrained.shape:
            raise ValueError(
                f"layer {layer + 1}: reference has shape {tuple(pretrained.shape)}, "
                f"log_attention {tuple(current.shape)}"
            )
    if len({layer.shape for layer in log_attention}) == 1:
        # All layers at once: on an accelerator a handful of operations instead of as many for each.
        now = torch.stack(list(log_attention)).float()
        before = reference if isinstance(reference, Tensor) else torch.stack(list(reference))
        before = before.to(now, non_blocking=now.device.type != "cpu")
        return (now.exp() * (now - before)).sum(-1).flatten(1).mean(1).mean()
    terms = []
    for current, pretrained in zip(log_attention, reference, strict=True):
        now = current.float()
        terms.append((now.exp() * (now - pretrained.to(now))).sum(-1).mean())
    return torch.stack(terms).mean()


class AttentionPreservation(AttentionLoss):
    """Attention preservation (APR): ``weight`` times KL(current || pretrained) of the images in training.

    ::

        preserve = AttentionPreservation(model, weight=0.1)
        ...
        loss = task_loss + preserve(model)             # after model(images)

    The pretrained attention of the very same images (flips, crops and all) comes from the ``teacher``:

    - None: under ``peft``, the same model with the adapters off, one more forward pass of the tower; otherwise
      a frozen copy of the vision tower as it is now;
    - a second model, for instance the pretrained one, whose tower is run on the same input;
    - a cache, :class:`AttentionCache` or any callable (numbers, flips) -> log-attention: no further forward
      pass, but images are named at each call, ``preserve(index=..., flipped=...)``.

    A teacher runs in evaluation mode, without gradients, and draws from no random generator; it runs in the precision of
    its weights, whatever ``autocast`` surrounds it, so that training in bfloat16 may have one in bfloat16.

    Args:
        model: the model in training, or a wrapper of it (``peft``, ``DistributedDataParallel``).
        weight: the factor lambda, at least 0.
        teacher: see above.
        watch, check: see :class:`~attndrift.losses.attention_loss.AttentionLoss`.

    Raises:
        ObservationError: a model (or a teacher) that cannot be observed.
    """

    name = "attention_preservation"

    def __init__(
        self,
        model: nn.Module,
        weight: float,
        teacher: nn.Module | CachedAttention | None = None,
        *,
        watch: bool = True,
        check: bool | None = None,
    ) -> None:
        super().__init__(model, weight, watch=watch, check=check)
        self._cache: CachedAttention | None = None
        self._teacher: nn.Module | None = None
        try:
            if teacher is None:
                if not has_adapters(self.model):
                    self._teacher = copy_without_hooks(self._tower).requires_grad_(False)
            elif isinstance(teacher, nn.Module):
                self._teacher = find_vision_tower(unwrapped(teacher)).module
                if self._teacher is self._tower:
                    raise ValueError("the teacher is the model in training itself; leave `teacher` out, or give a copy")
            elif callable(teacher):
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
    def in_study(cls, model: nn.Module, weight: float, context: StudyContext, **settings: Any) -> Self:
        """With the pretrained attention that the study has measured as its teacher."""
        # Neither watches the evaluations in between, nor looks at values, which an accelerator would be waited for.
        return cls(model, weight, teacher=context.cached_attention, watch=False, check=False)

    def _loss(self, log_attention: list[Tensor], batch: Batch) -> Tensor:
        index, flipped = batch.index, batch.flipped
        if self._cache is None:
            if index is not None or flipped is not None:
                raise PreservationLossError(
                    "index and flipped belong to a cache; this teacher sees the images themselves"
                )
            return attention_preservation_loss(log_attention, self._ask(batch))
        if index is None:
            raise PreservationLossError(
                "the teacher is a cache: say which images these are, preserve(index=..., flipped=...)"
            )
        reference = self.reference(index, flipped)
        count, images = reference.shape[1], len(log_attention[0])
        if count != images:
            raise PreservationLossError(f"{count} numbers for a batch of {images} images")
        return self._against(log_attention, reference)

    def reference(self, index: Any, flipped: Any = None) -> Tensor:
        """Pretrained log-attention of images by number, (layers, images, heads, patches), where the teacher is a cache."""
        if self._cache is None:
            raise PreservationLossError("this teacher sees the images themselves; only a cache knows them by number")
        numbers = torch.as_tensor(index).tolist()
        flips = [False] * len(numbers) if flipped is None else torch.as_tensor(flipped).bool().tolist()
        if len(numbers) != len(flips):
            raise PreservationLossError(f"{len(numbers)} numbers and {len(flips)} flips; give as many of both")
        found = self._cache(numbers, flips)
        return found if isinstance(found, Tensor) else torch.stack(list(found))

    def _against(self, log_attention: list[Tensor], reference: Tensor) -> Tensor:
        return attention_preservation_loss(log_attention, reference)

    @torch.no_grad()
    def _ask(self, batch: Batch) -> list[Tensor]:
        """The teacher's log-attention of the input of the forward pass."""
        teacher = self._teacher if self._teacher is not None else self._tower
        weight = next(p for p in teacher.parameters() if p.is_floating_point())

        def moved(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return value.detach().to(weight.device, weight.dtype if value.is_floating_point() else None)

        with ExitStack() as stack:
            stack.enter_context(preserve_state(teacher))
            if self._teacher is None:
                stack.enter_context(bare(self._tower))
            seen = stack.enter_context(observe(teacher, check=self._looks))
            given = {name: moved(value) for name, value in batch.kwargs.items()}
            teacher(*(moved(value) for value in batch.args), **given)
            return [layer.detach() for layer in seen.log_attention]
