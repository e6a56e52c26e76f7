"""Every registered metric of representations: of one model's, and of an adapted model's against the pretrained one's.

An accelerator is asked for all of it before it is waited for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from attndrift.metrics.attention import wide_dtype
from attndrift.metrics.deferred import DeferredScalars
from attndrift.metrics.registry import METRICS, Metric
from attndrift.metrics.representation import embedding_drift, linear_cka_layers_deferred

_FUSED = ("cka", "cka_debiased")
"""Both come of the same products."""

Reasons = dict[str, str]
"""Why a metric has no value (somewhere), by the metric's name: what it raised."""


def compare_hidden_states(
    before: Tensor, after: Tensor, deferred: DeferredScalars
) -> Callable[[], tuple[dict[str, Tensor], Reasons]]:
    """Metrics of hidden states (layers, images, width), without waiting for an accelerator.

    Returns:
        A function that gives, by name, (layers,) float64 on the CPU, and why some are NaN: a layer without a value.
    """
    fused = linear_cka_layers_deferred(before, after, deferred)
    asked = [metric for metric in METRICS if metric.needs == "hidden states" and metric.name not in _FUSED]
    later = {metric.name: _of_layers(metric, before, after, deferred) for metric in asked}

    def read() -> tuple[dict[str, Tensor], Reasons]:
        try:
            values, reasons = dict(zip(_FUSED, fused(), strict=True)), Reasons()
        except ValueError:
            # One of the two may have values, and in some layers, where together they have none.
            alone = {name: _of_layers(METRICS[name], before, after, deferred) for name in _FUSED}
            values, reasons = _read(alone)
        others, more = _read(later)
        values |= others
        return {metric.name: values[metric.name] for metric in METRICS if metric.name in values}, reasons | more

    return read


_Later = tuple[Callable[[], Tensor], str | None]


def _read(later: dict[str, _Later]) -> tuple[dict[str, Tensor], Reasons]:
    values = {name: value() for name, (value, _) in later.items()}
    return values, {name: reason for name, (_, reason) in later.items() if reason is not None}


def _of_layers(metric: Metric, before: Tensor, after: Tensor, deferred: DeferredScalars) -> _Later:
    found: list[Tensor | None] = []
    reason = None
    for one, other in zip(before, after, strict=True):
        try:
            found.append(_number(metric, one, other))
        except ValueError as error:
            found.append(None)
            reason = reason or str(error)
    none = before.new_full((), math.nan)
    values = [(none if value is None else value).to(before.device, wide_dtype(before)) for value in found]
    return deferred.defer(torch.stack(values)), reason


def compare_embeddings(
    before: Tensor, after: Tensor, deferred: DeferredScalars
) -> Callable[[], tuple[dict[str, float | None], Reasons]]:
    """Metrics of image embeddings (images, dimensions), without waiting for an accelerator.

    Returns:
        A function that gives the number of each, by name, and why one is None.
    """
    distance = METRICS["embedding_distance"]
    later: dict[str, _Later] = {
        "embedding_drift": (deferred.defer(embedding_drift(before, after, check=False)), None),
        distance.name: _of_layers(distance, before[None], after[None], deferred),
    }
    asked = [metric for metric in METRICS if metric.needs == "embeddings" and metric.name not in later]
    both = [deferred.defer(values) for values in (before, after)]

    def read() -> tuple[dict[str, float | None], Reasons]:
        values, reasons = _read(later)
        # On the CPU, as a singular value decomposition waits for an accelerator in the midst of what it is asked for.
        of_cpu, more = _numbers(asked, *(values() for values in both))
        if not math.isfinite(float(values["embedding_drift"])):
            try:
                embedding_drift(before, after)
            except ValueError as error:
                # It has the words for what is wrong.
                reasons["embedding_drift"] = str(error)
        return {name: finite(float(value)) for name, value in values.items()} | of_cpu, reasons | more

    return read


def measure_embeddings(embeddings: Tensor) -> tuple[dict[str, float | None], Reasons]:
    """Metrics of the image embeddings (images, dimensions) of one model, by name, and why one is None."""
    return _numbers([metric for metric in METRICS if metric.needs == "own embeddings"], embeddings.cpu())


def measure_with_texts(images: Tensor, texts: Tensor) -> tuple[dict[str, float | None], Reasons]:
    """Metrics of the embeddings of images and of texts of one model, by name, and why one is None."""
    return _numbers([metric for metric in METRICS if metric.needs == "own images and texts"], images.cpu(), texts.cpu())


def compare_texts(before: Tensor, after: Tensor) -> dict[str, float | None]:
    """Metrics of embeddings of texts (texts, dimensions), by name; None where one has no value."""
    return _numbers([metric for metric in METRICS if metric.needs == "texts"], before, after)[0]


def _numbers(metrics: Sequence[Metric], *values: Tensor) -> tuple[dict[str, float | None], Reasons]:
    """The number of each, by name, and why one is None."""
    found: dict[str, float | None] = {}
    reasons = Reasons()
    for metric in metrics:
        try:
            found[metric.name] = finite(float(_number(metric, *values)))
        except ValueError as error:
            found[metric.name], reasons[metric.name] = None, str(error)
    return found, reasons


def finite(value: float) -> float | None:
    """``value``; None where it is no number."""
    return value if math.isfinite(value) else None


def _number(metric: Metric, *values: Tensor) -> Tensor:
    found = metric.function(*values)
    found = found if isinstance(found, Tensor) else torch.tensor(float(found), dtype=torch.float64)
    if found.numel() != 1:
        raise ValueError(f"metric `{metric.name}`: it must give one number, not values of shape {tuple(found.shape)}")
    return found.reshape(())
