"""The entropy floor: the entropy of attention missing below a share of its pretrained value."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from attndrift.attention.families import find_vision_tower
from attndrift.attention.observer import observe
from attndrift.losses.base import Batch, StudyContext
from attndrift.losses.forward_loss import ForwardLoss
from attndrift.losses.teacher_cache import AttentionCache
from attndrift.losses.views import AttentionView
from attndrift.metrics.attention import wide_dtype
from attndrift.metrics.structure_accumulator import StructureAccumulator, StructureSummary
from attndrift.models.embedding import image_embeddings
from attndrift.models.evaluation import preserve_state, unwrapped
from attndrift.models.input_images import checked_images, named_size
from attndrift.models.parameters import bare


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


class EntropyFloor(ForwardLoss):
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
        watch, check: see :class:`~attndrift.losses.forward_loss.ForwardLoss`.

    Attributes:
        active_fraction: mean fraction of (layer, image, head) cells below the floor so far; None before the first call
            (and where ``watch`` is false).
        last_active: that fraction in the last call, a scalar on the model's device.
    """

    name, sees = "entropy_floor", "the attention"
    view = AttentionView()

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
        watch: bool = True,
        check: bool | None = None,
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
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction is {fraction}; it must lie in (0, 1]")
        self.fraction = fraction
        self.pretrained_entropy = torch.as_tensor(pretrained_entropy, dtype=torch.float64).detach()
        self._active: Tensor | None = None
        self._batches = 0
        # A step that is captured as a CUDA graph may keep nothing from one batch to the next; its loop counts.
        self._counts = watch
        super().__init__(model, weight, watch=watch, check=check)

    @property
    def active_fraction(self) -> float | None:
        """How often the floor was active: a floor that is never reached does nothing."""
        return None if self._active is None else float(self._active) / self._batches

    @classmethod
    def in_study(cls, model: nn.Module, weight: float, context: StudyContext, **settings: Any) -> Self:
        """With the pretrained entropy that the study has measured on its probe set."""
        # Neither watches the evaluations in between, nor looks at values, which an accelerator would be waited for.
        return cls(
            model, weight, pretrained_entropy=context.pretrained_entropy, fraction=settings["entropy_floor_fraction"],
            watch=False, check=False,
        )  # fmt: skip

    def _loss(self, current: list[Tensor], batch: Batch) -> Tensor:
        first = current[0]
        # Once, and summed there: a number that is moved or read at every batch would make an accelerator wait.
        self.pretrained_entropy = self.pretrained_entropy.to(first.device, wide_dtype(first))
        loss, self.last_active = entropy_floor_loss(current, self.pretrained_entropy, self.fraction)
        if self._counts:
            active = self.last_active.to(wide_dtype(self.last_active))
            self._active = active if self._active is None else self._active + active
            self._batches += 1
        return loss

    def _nothing(self, current: list[Tensor]) -> Tensor:
        self.last_active = current[0].new_zeros(())
        return self.last_active


def _bare_entropy(model: nn.Module, probe: Tensor | Iterable[Tensor]) -> Tensor:
    weight = next(p for p in find_vision_tower(model).module.parameters() if p.is_floating_point())
    structure = StructureAccumulator()
    images = 0
    with preserve_state(model), bare(model):
        for batch in checked_images(probe.split(200) if isinstance(probe, Tensor) else probe, "probe"):
            images += len(batch)
            with observe(model) as seen, named_size(model, batch, "probe"):
                image_embeddings(model, batch.to(weight.device, weight.dtype))
            structure.update(seen.attention, seen.cls_mass)
    if not images:
        raise ValueError("probe: there are no images to measure the pretrained entropy on")
    return structure.compute().layers("entropy")
