"""Every registered metric that compares an adapted model's representation with the pretrained one's.

An accelerator is asked for all of it before it is waited for.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from attndrift.metrics.deferred import DeferredScalars
from attndrift.metrics.registry import METRICS, Metric
from attndrift.metrics.representation import embedding_drift, linear_cka_layers_deferred

_FUSED = ("cka", "cka_debiased")
"""Both come of the same products."""


def compare_hidden_states(before: Tensor, after: Tensor, deferred: DeferredScalars) -> Callable[[], dict[str, Tensor]]:
    """Metrics of hidden states (layers, images, width); a function that gives (layers,) float64 on the CPU of each, by name.

    What has no value, and what a metric itself raises, that function raises as ValueError.
    """
    fused = linear_cka_layers_deferred(before, after, deferred)
    others = [metric for metric in METRICS if metric.needs == "hidden states" and metric.name not in _FUSED]
    later = {metric.name: deferred.defer(_of_layers(metric, before, after)) for metric in others}

    def read() -> dict[str, Tensor]:
        found = dict(zip(_FUSED, fused(), strict=True)) | {name: values() for name, values in later.items()}
        return {metric.name: found[metric.name] for metric in METRICS if metric.name in found}

    return read


def _of_layers(metric: Metric, before: Tensor, after: Tensor) -> Tensor:
    return torch.stack([_number(metric, one, other) for one, other in zip(before, after, strict=True)])


def compare_embeddings(
    before: Tensor, after: Tensor, deferred: DeferredScalars
) -> Callable[[], dict[str, float | None]]:
    """Metrics of image embeddings (images, dimensions); a function that gives the number of each, by name.

    That function raises ValueError for embeddings that have no drift: not finite, or zero.
    """
    turned = deferred.defer(embedding_drift(before, after, check=False))
    later = {
        metric.name: deferred.defer(_number(metric, before, after))
        for metric in METRICS
        if metric.needs == "embeddings" and metric.function is not embedding_drift
    }

    def read() -> dict[str, float | None]:
        found: dict[str, float | None] = {"embedding_drift": float(turned())}
        if not math.isfinite(float(turned())):
            # It has the words for what is wrong.
            embedding_drift(before, after)
        return found | {name: float(value()) for name, value in later.items()}

    return read


def _number(metric: Metric, before: Tensor, after: Tensor) -> Tensor:
    found = metric.function(before, after)
    found = found if isinstance(found, Tensor) else torch.tensor(float(found), dtype=torch.float64)
    if found.numel() != 1:
        raise ValueError(f"metric `{metric.name}`: it must give one number, not values of shape {tuple(found.shape)}")
    return found.reshape(())
