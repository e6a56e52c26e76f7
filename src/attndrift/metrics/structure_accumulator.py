"""Structure of attention over many batches: sums and counts, so the batch size cannot matter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attndrift.metrics import kernels
from attndrift.metrics.attention import (
    TIE,
    entropy_of_normalised,
    erf_of_sorted,
    gini_of_sorted,
    validate,
    wide_dtype,
)
from attndrift.metrics.deferred import Deferred, DeferredScalars
from attndrift.metrics.registry import METRICS, Metric
from attndrift.registry import near_match

# Imports inside functions: these packages take time to load, which only who needs them pays.

_FUSED = ("entropy", "erf95", "gini")
"""Computed together: they share the normalisation and the sort, and on an accelerator one kernel."""


@dataclass(frozen=True)
class StructureSummary:
    """Structure of attention per layer and head, averaged over images. float64 on the CPU.

    Attributes:
        values: (L, H) of each structural metric by name, and of ``cls_mass`` where it was given. Of a metric on mean maps
            each head against the others; the mean over heads is the layer's value.
        images: images that were averaged; each counts once.
    """

    values: Mapping[str, Tensor]
    images: int

    def heads(self, metric: str) -> Tensor:
        """(L, H) of ``metric``. Raises ValueError for an unknown metric or one that was not measured."""
        try:
            return self.values[metric]
        except KeyError:
            hint = near_match(metric, self.values)
            raise ValueError(
                f"metric: `{metric}` was not measured{hint}; measured are {', '.join(self.values)}"
            ) from None

    def layers(self, metric: str) -> Tensor:
        """(L,): mean of ``metric`` over heads, per layer."""
        return self.heads(metric).mean(1)

    def mean(self, metric: str) -> float:
        """Mean of ``metric`` over heads, then layers."""
        return float(self.layers(metric).mean())


def _structure(values: Tensor) -> tuple[Tensor, Tensor]:
    """Normalised attention (layers, images, heads, N), and entropy, ERF and Gini of it: (3, layers, images, heads)."""
    if values.dtype == torch.float32 and values.shape[-1] <= kernels.LONGEST and kernels.usable(values):
        from attndrift.metrics.kernels.row_structure import structure_of_rows

        return structure_of_rows(values, 0.95 - TIE)
    a = values / values.sum(-1, keepdim=True)
    descending = a.sort(-1, descending=True).values
    return a, torch.stack([entropy_of_normalised(a), erf_of_sorted(descending, 0.95), gini_of_sorted(descending)])


class StructureAccumulator:
    """Every registered metric of attention over any number of batches.

    Sums over images run in float64, and what needs mean maps is taken from those of all images, so the result is that of
    one single batch, however the images were split. Layers of equal shape are stacked and sorted once.

    Args:
        check: look at the values of every batch (one fused pass, for which an accelerator waits). Observed
            attention is a softmax and may skip it; :meth:`compute` then refuses what was not finite.
    """

    def __init__(self, *, check: bool = True) -> None:
        self._check = check
        registered = [metric for metric in METRICS if metric.needs == "attention"]
        self._of_rows = [metric for metric in registered if metric.name not in _FUSED]
        self._per_image = (*_FUSED, *(metric.name for metric in self._of_rows))
        self._of_maps = [metric for metric in METRICS if metric.needs == "mean maps"]
        self._images = 0
        self._shape: tuple[tuple[int, int], ...] | None = None
        self._sums: dict[str, list[Tensor]] = {}
        self._maps: list[Tensor] = []
        self._mass: list[Tensor] | None = None

    @property
    def images(self) -> int:
        """Images accumulated so far."""
        return self._images

    @torch.no_grad()
    def update(self, attention: Sequence[Tensor], cls_mass: Sequence[Tensor] | None = None) -> None:
        """Add one batch.

        Args:
            attention: per layer (images, heads, N), non-negative; normalised over N here. All layers have
                the same images and heads; layers, heads and N stay the same from batch to batch.
            cls_mass: per layer (images, heads), in every batch or in none.

        Raises:
            ValueError: invalid attention, or shapes that do not fit together or the earlier batches;
                nothing has been added then.
        """
        if not len(attention):
            raise ValueError("attention: expected one tensor (images, heads, patches) a layer, got no layer")
        shapes = self._validate_shapes(attention)
        images = attention[0].shape[0]
        masses = self._validate_mass(cls_mass, attention)
        groups: dict[int, list[int]] = {}
        for layer, (_, patches) in enumerate(shapes):
            groups.setdefault(patches, []).append(layer)

        rows: dict[str, dict[int, Tensor]] = {name: {} for name in (*self._per_image, "map")}
        for members in groups.values():
            stack = torch.stack([attention[layer].detach() for layer in members])
            values = validate(stack, "attention", shape="(images, heads, patches)", dims=4, check=self._check)
            wide = wide_dtype(values)
            a, per_image = _structure(values)
            sums = dict(zip(_FUSED, per_image.sum(2, dtype=wide).unbind(0), strict=True))
            sums |= {metric.name: _checked(metric, a, a.shape[:-1]).sum(1, dtype=wide) for metric in self._of_rows}
            sums["map"] = a.sum(1, dtype=wide)
            for name, summed in sums.items():
                rows[name].update(zip(members, summed.unbind(0), strict=True))

        order = range(len(attention))
        maps = [rows["map"][layer] for layer in order]
        sums_now = {name: [rows[name][layer] for layer in order] for name in self._per_image}
        if self._shape is None:
            self._shape, self._maps, self._sums, self._mass = shapes, maps, sums_now, masses
        else:
            for name in self._per_image:
                self._sums[name] = [x + y for x, y in zip(self._sums[name], sums_now[name], strict=True)]
            self._maps = [x + y for x, y in zip(self._maps, maps, strict=True)]
            if self._mass is not None and masses is not None:
                self._mass = [x + y for x, y in zip(self._mass, masses, strict=True)]
        self._images += images

    def _validate_shapes(self, attention: Sequence[Tensor]) -> tuple[tuple[int, int], ...]:
        for layer, tensor in enumerate(attention):
            if not isinstance(tensor, Tensor) or tensor.ndim != 3 or 0 in tensor.shape:
                got = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
                raise ValueError(f"attention: layer {layer + 1} must have shape (images, heads, patches), got {got}")
            if tensor.shape[:2] != attention[0].shape[:2]:
                raise ValueError(
                    f"attention: layer {layer + 1} has (images, heads) {tuple(tensor.shape[:2])}, "
                    f"layer 1 has {tuple(attention[0].shape[:2])}; they must be equal"
                )
        if attention[0].shape[1] < 2:
            raise ValueError("attention: head diversity compares heads and needs at least 2, got 1")
        shapes = tuple((int(tensor.shape[1]), int(tensor.shape[2])) for tensor in attention)
        if self._shape is not None and shapes != self._shape:
            raise ValueError(
                f"attention: {len(shapes)} layers with (heads, patches) {shapes[0]} do not fit the earlier "
                f"batches, which had {len(self._shape)} layers with {self._shape[0]}"
            )
        return shapes

    def _validate_mass(self, cls_mass: Sequence[Tensor] | None, attention: Sequence[Tensor]) -> list[Tensor] | None:
        if self._shape is not None and (cls_mass is None) != (self._mass is None):
            raise ValueError("cls_mass: give it with every batch or with none")
        if cls_mass is None:
            return None
        if len(cls_mass) != len(attention):
            raise ValueError(f"cls_mass: has {len(cls_mass)} layers, attention has {len(attention)}")
        for layer, (mass, tensor) in enumerate(zip(cls_mass, attention, strict=True)):
            if mass.shape != tensor.shape[:2]:
                raise ValueError(
                    f"cls_mass: layer {layer + 1} must have shape (images, heads) {tuple(tensor.shape[:2])}, "
                    f"got {tuple(mass.shape)}"
                )
        stack = torch.stack([mass.detach() for mass in cls_mass])
        if self._check and not bool(((stack >= 0) & (stack <= 1 + 1e-6)).all()):
            raise ValueError("cls_mass: must lie in 0..1 (NaN is not allowed)")
        return list(stack.sum(1, dtype=wide_dtype(stack)).unbind(0))

    def combine(self, total: Callable[[Tensor], Tensor]) -> None:
        """Replace every sum over images, and their number, by ``total`` of it.

        With ``total`` the sum over processes, :meth:`compute` then gives the means over the images of all of them.
        Raises ValueError before the first batch.
        """
        if self._images == 0:
            raise ValueError("no batch was added yet: call update before combine")
        self._images = int(total(torch.tensor(self._images)))
        self._sums = {name: list(total(torch.stack(sums)).unbind(0)) for name, sums in self._sums.items()}
        self._maps = [total(summed) for summed in self._maps]
        if self._mass is not None:
            self._mass = list(total(torch.stack(self._mass)).unbind(0))

    def compute(self) -> StructureSummary:
        """The means over all images so far; more batches may follow.

        Raises ValueError before the first batch, and for attention that was not finite in any batch.
        """
        return self.compute_deferred(DeferredScalars())()

    def compute_deferred(self, deferred: DeferredScalars) -> Callable[[], StructureSummary]:
        """:meth:`compute` of what was added so far: a function that does the rest.

        With ``check=False``, an accelerator is not waited for. Raises ValueError before the first batch; what attention was
        not finite, the function raises.
        """
        if self._images == 0:
            raise ValueError("no batch was added yet: call update before compute")
        images = self._images
        per_image = deferred.defer(torch.stack([torch.stack(self._sums[name]) for name in self._per_image]))
        same = len({summed.shape for summed in self._maps}) == 1
        alike = [self._maps] if same else [[maps] for maps in self._maps]
        of_maps = {metric.name: [self._on_maps(metric, maps, deferred) for maps in alike] for metric in self._of_maps}
        mass = None if self._mass is None else deferred.defer(torch.stack(self._mass))

        def read() -> StructureSummary:
            means = dict(zip(self._per_image, (per_image() / images).unbind(0), strict=True))
            # Whatever is not finite makes the entropy so, and the mean map.
            for layer, finite in enumerate(torch.isfinite(means["entropy"]).all(1).tolist(), 1):
                if not finite:
                    raise ValueError(f"attention: layer {layer} had NaN or infinite values; it has no mean")
            means |= {name: torch.cat([part() for part in parts]) for name, parts in of_maps.items()}
            values = {metric.name: means[metric.name] for metric in METRICS if metric.name in means}
            if mass is not None:
                values["cls_mass"] = mass() / images
            return StructureSummary(values, images)

        return read

    def _on_maps(self, metric: Metric, maps: list[Tensor], deferred: DeferredScalars) -> Deferred:
        """Of layers whose maps are alike, (layers, heads)."""
        sums, images = torch.stack(maps), self._images
        if sums.device.type in deferred.TOGETHER:
            return deferred.defer(_checked(metric, sums.to(torch.float64) / images, sums.shape[:-1]))
        later = deferred.defer(sums)
        return lambda: _checked(metric, later() / images, sums.shape[:-1])


def _checked(metric: Metric, values: Tensor, shape: torch.Size) -> Tensor:
    """``metric`` of ``values``. Raises ValueError where it gives another shape than it must."""
    found: Tensor = metric.function(values)
    if not isinstance(found, Tensor) or found.shape != shape:
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(
            f"metric `{metric.name}`: of {metric.needs} {tuple(values.shape)} it must give {tuple(shape)}, not {got}"
        )
    return found
