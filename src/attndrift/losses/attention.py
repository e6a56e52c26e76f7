"""Losses that hold the attention of a vision transformer near its pretrained state.

Three lines in any training loop::

    preserve = AttentionPreservation(model, weight=0.1)     # before the first step

    loss = cross_entropy(model(images), labels) + preserve(model)
    loss.backward()

``preserve`` watches the model's vision tower from its creation until ``close()`` (or the end of a ``with``
block), and each call gives the loss of the forward pass before it. It knows the model, so ``preserve()`` is the
same; naming it makes the line speak for itself, and another model than the protected one is an error. The functions underneath work on the
log-attention that :func:`attndrift.observe` yields, in float32, whatever precision the model runs in.
``log_attention`` is a sequence over layers of tensors (images, heads, patches).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from attndrift.attention.families import find_vision_tower
from attndrift.attention.observer import observe
from attndrift.metrics.attention import wide_dtype
from attndrift.metrics.structure_accumulator import StructureAccumulator, StructureSummary
from attndrift.models.embedding import image_embeddings
from attndrift.models.evaluation import is_measuring, preserve_state, unwrapped
from attndrift.models.parameters import bare, copy_without_hooks, has_adapters

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


def entropy_floor_loss(
    log_attention: Sequence[Tensor], pretrained_entropy: Sequence[float] | Tensor, fraction: float = 0.7
) -> tuple[Tensor, Tensor]:
    """relu(fraction * H0 - H) in nats, averaged over images and heads, summed over layers.

    Args:
        log_attention: current log-attention, a tensor (images, heads, patches) per layer.
        pretrained_entropy: (layers,), mean entropy of each layer of the pretrained model on the probe set.
        fraction: the floor as a fraction of ``pretrained_entropy``.

    Returns:
        The loss (a scalar >= 0) and the fraction of (layer, image, head) cells in which the floor was
        active, without gradient: a floor that is never reached does nothing, and that should be seen.
    """
    if len(log_attention) != len(pretrained_entropy):
        raise ValueError(
            f"pretrained_entropy has {len(pretrained_entropy)} layers, log_attention has {len(log_attention)}"
        )
    floors = torch.as_tensor(pretrained_entropy, dtype=wide_dtype(log_attention[0]), device=log_attention[0].device)
    floors = (fraction * floors).float()
    if len({layer.shape for layer in log_attention}) == 1:
        # All layers at once, as above.
        below = [(floors[:, None, None] - _entropy(torch.stack(list(log_attention)))).relu().flatten(1)]
    else:
        layers = zip(log_attention, floors, strict=True)
        below = [(floor - _entropy(current)).relu().reshape(1, -1) for current, floor in layers]
    active = torch.cat([(part.detach() > 0).float().mean(1) for part in below]).mean()
    return torch.cat([part.mean(1) for part in below]).sum(), active


def _entropy(log_attention: Tensor) -> Tensor:
    logs = log_attention.float()
    return -(logs.exp() * logs).sum(-1)


class MeasuredReference(Protocol):
    """What the entropy floor needs of a monitor; :class:`attndrift.DriftMonitor` is one."""

    @property
    def reference(self) -> HasStructure:
        """The pretrained state on the probe images."""


class HasStructure(Protocol):
    """A measured state."""

    @property
    def structure(self) -> StructureSummary:
        """Structure of its attention."""


class PreservationLossError(RuntimeError):
    """A loss that was asked for where there is none; the message says what to do."""


class PreservationLoss(ABC):
    """A loss on the attention of a model in training; see :class:`AttentionPreservation` and :class:`EntropyFloor`.

    To be made before ``torch.compile`` and after ``peft``; a copy of the model is not protected. Gradient
    checkpointing must be the non-reentrant one. In several processes each protects its own images, and the gradients
    are averaged as all others are.

    Attributes:
        weight: factor of the loss; may be changed during training. At 0 the loss is exactly 0 and costs nothing
            beyond the observation.
        last: the loss of the last call, unweighted, as a number on the model's device; None before the first.
    """

    name = ""

    def __init__(self, model: nn.Module, weight: float) -> None:
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
        self._looks = all(parameter.device.type == "cpu" for parameter in self._tower.parameters())
        self._seen = self._open.enter_context(observe(self.model, gradients=True, check=self._looks))
        # After the forward pass, so that one which failed does not count.
        handle = self._tower.register_forward_hook(self._note, with_kwargs=True)
        self._open.callback(handle.remove)

    def _note(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
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

    def __call__(self, model: nn.Module | None = None, *, index: Any = None, flipped: Any = None) -> Tensor:
        """The weighted loss of the last forward pass: a scalar >= 0, differentiable.

        Args:
            model: the protected model, or a wrapper of it, or nothing: no forward pass is run.
            index: numbers of the batch's images, where the teacher is a cache.
            flipped: which of them were mirrored, where the teacher is a cache; by default none.

        Raises:
            PreservationLossError: no forward pass with gradients since the last call, or more than one; or one whose
                attention does not depend on any trained parameter; or another ``model`` than the protected one.
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
            self._waiting.clear()
            raise PreservationLossError(
                f"{count} forward passes with gradients since the last call, and only the last one could be protected: "
                "call after each of them and add the losses, or call skip() after one that is not to count"
            )
        last = self._waiting.pop()
        assert last is not None
        args, kwargs, held = last
        # Others without gradients (a measurement, a pseudo-label) may have come since.
        self._seen._put_back(held)
        if self.weight == 0:
            self.last = None
            return torch.zeros((), device=next(self._tower.parameters()).device)
        log_attention = self._seen.log_attention
        if not any(layer.requires_grad for layer in log_attention):
            raise PreservationLossError(
                "the attention does not depend on a trained parameter (the vision tower is frozen), so there is nothing to "
                "preserve"
            )
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

    def _check(self, model: nn.Module) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"expected the model, got a {type(model).__name__}; image numbers go by name, index=...")
        if not any(part is self._tower for part in unwrapped(model).modules()):
            raise PreservationLossError(
                f"this {type(model).__name__} does not hold the vision tower that is protected; make a preservation loss for it, "
                "AttentionPreservation(model, ...)"
            )

    def skip(self) -> None:
        """Leave the forward passes since the last call unprotected."""
        self._waiting.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # A copy of the model (an average of its weights, say) takes its hooks along, and is not what is protected.
        copied = object.__new__(type(self))
        memo[id(self)] = copied
        copied._closed, copied._waiting, copied._open = True, [], ExitStack()
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


class AttentionPreservation(PreservationLoss):
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

    Raises:
        ObservationError: a model (or a teacher) that cannot be observed.
    """

    name = "apr"

    def __init__(self, model: nn.Module, weight: float, teacher: nn.Module | CachedAttention | None = None) -> None:
        super().__init__(model, weight)
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

    def _loss(
        self, log_attention: list[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], index: Any, flipped: Any
    ) -> Tensor:
        if self._cache is None:
            if index is not None or flipped is not None:
                raise PreservationLossError(
                    "index and flipped belong to a cache; this teacher sees the images themselves"
                )
            return attention_preservation_loss(log_attention, self._ask(args, kwargs))
        if index is None:
            raise PreservationLossError(
                "the teacher is a cache: say which images these are, preserve(index=..., flipped=...)"
            )
        numbers = torch.as_tensor(index).tolist()
        flips = [False] * len(numbers) if flipped is None else torch.as_tensor(flipped).bool().tolist()
        images = len(log_attention[0])
        if not len(numbers) == len(flips) == images:
            raise PreservationLossError(f"{len(numbers)} numbers and {len(flips)} flips for a batch of {images} images")
        return attention_preservation_loss(log_attention, self._cache(numbers, flips))

    @torch.no_grad()
    def _ask(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
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
            teacher(*(moved(value) for value in args), **{name: moved(value) for name, value in kwargs.items()})
            return [layer.detach() for layer in seen.log_attention]


class EntropyFloor(PreservationLoss):
    """Entropy floor: ``weight`` times the entropy missing below ``fraction`` of the pretrained layer mean.

    ::

        preserve = EntropyFloor(model, weight=0.1, monitor=monitor)
        ...
        loss = task_loss + preserve(model)             # after model(images)

    The pretrained entropy of each layer comes from one of ``monitor``, ``probe``, ``pretrained_entropy`` and an
    :class:`AttentionCache` as ``teacher``.

    Args:
        model: the model in training, or a wrapper of it (``peft``, ``DistributedDataParallel``).
        weight: the factor lambda, at least 0.
        fraction: the floor as a fraction of the pretrained entropy, in (0, 1].
        monitor: its reference has the pretrained entropy.
        probe: normalised images, one tensor (images, 3, height, width) or batches of them, on which the entropy
            of the ``teacher`` is measured here: of a second model, by default of the model as it is now, without its
            ``peft`` adapters.
        pretrained_entropy: (layers,), nats.
        teacher: a second model, with ``probe``; or an :class:`AttentionCache` of the training images, alone.

    Attributes:
        active_fraction: mean fraction of (layer, image, head) cells below the floor so far; None before the first call.
    """

    name = "entropy_floor"

    def __init__(
        self,
        model: nn.Module,
        weight: float,
        *,
        fraction: float = 0.7,
        monitor: MeasuredReference | None = None,
        probe: Tensor | Iterable[Tensor] | None = None,
        pretrained_entropy: Sequence[float] | Tensor | None = None,
        teacher: nn.Module | AttentionCache | None = None,
    ) -> None:
        cache = teacher if isinstance(teacher, AttentionCache) else None
        given = [monitor is not None, probe is not None, pretrained_entropy is not None, cache is not None]
        if sum(given) != 1:
            raise ValueError(
                "give exactly one of monitor, probe, pretrained_entropy and a cache as the teacher: the floor is relative to it"
            )
        if teacher is not None and cache is None and (probe is None or not isinstance(teacher, nn.Module)):
            raise ValueError(f"teacher is a {type(teacher).__name__}; give a model and its probe, or an AttentionCache")
        if monitor is not None:
            pretrained_entropy = monitor.reference.structure.layers("entropy")
        elif cache is not None:
            pretrained_entropy = cache.layer_entropy()
        elif probe is not None:
            measured = teacher if isinstance(teacher, nn.Module) else model
            pretrained_entropy = _bare_entropy(unwrapped(measured), probe)
        assert pretrained_entropy is not None
        self._floor = EntropyFloorTerm(weight, pretrained_entropy, fraction)
        super().__init__(model, weight)

    @property
    def active_fraction(self) -> float | None:
        """How often the floor was active: a floor that is never reached does nothing."""
        return self._floor.active_fraction

    def _loss(
        self, log_attention: list[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], index: Any, flipped: Any
    ) -> Tensor:
        return self._floor.missing(log_attention)


def _bare_entropy(model: nn.Module, probe: Tensor | Iterable[Tensor]) -> Tensor:
    weight = next(p for p in find_vision_tower(model).module.parameters() if p.is_floating_point())
    structure = StructureAccumulator()
    with preserve_state(model), bare(model):
        for batch in probe.split(200) if isinstance(probe, Tensor) else probe:
            with observe(model) as seen:
                image_embeddings(model, batch.to(weight.device, weight.dtype))
            structure.update(seen.attention, seen.cls_mass)
    return structure.compute().layers("entropy")


class EntropyFloorTerm:
    """The entropy floor of given log-attention, without a model; counts how often it was active."""

    def __init__(self, weight: float, pretrained_entropy: Sequence[float] | Tensor, fraction: float = 0.7) -> None:
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"weight is {weight}; it must be at least 0")
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction is {fraction}; it must lie in (0, 1]")
        self.weight = weight
        self.fraction = fraction
        self.pretrained_entropy = torch.as_tensor(pretrained_entropy, dtype=torch.float64).detach().cpu()
        self.batches = 0
        self._active: Tensor | None = None

    def __call__(self, log_attention: Sequence[Tensor]) -> Tensor:
        """The weighted loss of one batch."""
        return self.weight * self.missing(log_attention)

    def missing(self, log_attention: Sequence[Tensor]) -> Tensor:
        """The loss of one batch, unweighted."""
        first = log_attention[0]
        # Once, and summed there: a number that is moved or read at every batch would make an accelerator wait.
        self.pretrained_entropy = self.pretrained_entropy.to(first.device, wide_dtype(first))
        loss, active = entropy_floor_loss(log_attention, self.pretrained_entropy, self.fraction)
        active = active.to(wide_dtype(active))
        self._active = active if self._active is None else self._active + active
        self.batches += 1
        return loss

    @property
    def active_fraction(self) -> float | None:
        """Mean fraction of active cells over the batches so far; None before the first."""
        return None if self._active is None else float(self._active) / self.batches


class AttentionCache:
    """Pretrained log-attention of training images by number, in both orientations: a teacher that costs no forward.

    ::

        cache = AttentionCache(model, images)                # before training; images[i] has number i
        preserve = AttentionPreservation(model, weight=0.1, teacher=cache)
        ...
        loss = task_loss + preserve(index=numbers, flipped=flips)

    A flip moves patches, and what the model sees, so the two orientations are measured, not mirrored. Takes
    4 x layers x heads x patches bytes an image and orientation, on the CPU (ViT-B/32: 28 KB).

    Args:
        model: measured as it is now, without its ``peft`` adapters.
        images: normalised, one tensor (images, 3, height, width) or batches of them in the order of their numbers.
        flips: also measure the images mirrored left to right.
        batch_size: images a forward pass, where ``images`` is one tensor.
    """

    def __init__(
        self, model: nn.Module, images: Tensor | Iterable[Tensor], *, flips: bool = True, batch_size: int = 200
    ) -> None:
        inner = unwrapped(model)
        tower = find_vision_tower(inner).module
        weight = next(p for p in tower.parameters() if p.is_floating_point())
        parts: tuple[list[Tensor], ...] = ([], []) if flips else ([],)
        with preserve_state(inner), bare(inner):
            for batch in images.split(batch_size) if isinstance(images, Tensor) else images:
                for flipped, into in enumerate(parts):
                    pixels = (batch.flip(-1) if flipped else batch).to(weight.device, weight.dtype)
                    with observe(inner) as seen:
                        tower(pixels)
                    into.append(torch.stack(seen.log_attention, dim=1).float().cpu())
        if not parts[0]:
            raise ValueError("there are no images to remember the attention of")
        self._maps = [torch.cat(part) for part in parts]
        self._pinned = weight.device.type == "cuda"

    def __len__(self) -> int:
        return len(self._maps[0])

    def layer_entropy(self) -> Tensor:
        """Mean entropy of each layer over images and heads, as they are and not mirrored: (layers,), nats."""
        logs = self._maps[0].double()
        return -(logs.exp() * logs).sum(-1).mean(dim=(0, 2))

    def __call__(self, index: Sequence[int], flipped: Sequence[bool]) -> Tensor:
        """(layers, images, heads, patches), float32. Raises IndexError for a number that is not in the cache."""
        if any(flipped) and len(self._maps) == 1:
            raise IndexError("the cache holds no mirrored images; make it with flips=True")
        for number in index:
            if not 0 <= number < len(self):
                raise IndexError(f"no image has number {number}; the cache holds 0 to {len(self) - 1}")
        rows = [self._maps[int(mirror)][number] for number, mirror in zip(index, flipped, strict=True)]
        stacked = torch.stack(rows, dim=1)
        # From pinned memory the copy to the device waits for nothing.
        return stacked.pin_memory() if self._pinned else stacked
