"""Every registered metric that compares an adapted model's representation with the pretrained one's.

An accelerator is asked for all of it before it is waited for.
"""

from __future__ import annotations

import math
from collections.abc import Callable

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
    later: dict[str, _Later] = {"embedding_drift": (deferred.defer(embedding_drift(before, after, check=False)), None)}
    for metric in METRICS:
        if metric.needs == "embeddings" and metric.name not in later:
            later[metric.name] = _of_layers(metric, before[None], after[None], deferred)

    def read() -> tuple[dict[str, float | None], Reasons]:
        values, reasons = _read(later)
        if not math.isfinite(float(values["embedding_drift"])):
            try:
                embedding_drift(before, after)
            except ValueError as error:
                # It has the words for what is wrong.
                reasons["embedding_drift"] = str(error)
        return {name: finite(float(value)) for name, value in values.items()}, reasons

    return read


def compare_texts(before: Tensor, after: Tensor) -> dict[str, float | None]:
    """Metrics of embeddings of texts (texts, dimensions), by name; None where one has no value."""
    found: dict[str, float | None] = {}
    for metric in METRICS:
        if metric.needs == "texts":
            try:
                found[metric.name] = finite(float(_number(metric, before, after)))
            except ValueError:
                found[metric.name] = None
    return found


def finite(value: float) -> float | None:
    """``value``; None where it is no number."""
    return value if math.isfinite(value) else None


def _number(metric: Metric, before: Tensor, after: Tensor) -> Tensor:
    found = metric.function(before, after)
    found = found if isinstance(found, Tensor) else torch.tensor(float(found), dtype=torch.float64)
    if found.numel() != 1:
        raise ValueError(f"metric `{metric.name}`: it must give one number, not values of shape {tuple(found.shape)}")
    return found.reshape(())
