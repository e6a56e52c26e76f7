"""Pure functions that measure attention, representations and weights. They know no model.

``METRICS`` has one row a metric: what it is, its unit and range, and where it comes from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from attndrift.metrics.attention import entropy, erf, gini, head_diversity, rollout
from attndrift.metrics.representation import (
    cka_chance_level,
    embedding_drift,
    linear_cka,
    linear_cka_both,
    linear_cka_layers,
)
from attndrift.metrics.structure_accumulator import STRUCTURE_METRICS, StructureAccumulator, StructureSummary
from attndrift.metrics.weights import LowRankUpdate, squared_norm, weight_drift

__all__ = [
    "METRICS",
    "STRUCTURE_METRICS",
    "LowRankUpdate",
    "Metric",
    "StructureAccumulator",
    "StructureSummary",
    "cka_chance_level",
    "embedding_drift",
    "entropy",
    "erf",
    "gini",
    "head_diversity",
    "linear_cka",
    "linear_cka_both",
    "linear_cka_layers",
    "rollout",
    "squared_norm",
    "weight_drift",
]


@dataclass(frozen=True)
class Metric:
    """One metric: its name in the tables, the function, and the words that explain it.

    ``function`` is None where the value is read from the model itself rather than computed.
    """

    name: str
    function: Callable[..., Any] | None
    unit: str
    range: str
    meaning: str
    source: str


def _debiased_cka(x: Any, y: Any) -> Any:
    return linear_cka(x, y, debiased=True)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "entropy",
            entropy,
            "nats",
            "0 .. ln N",
            "spread of the class token's attention over the N patches; lower is more concentrated",
            "Shannon 1948",
        ),
        Metric(
            "erf95",
            erf,
            "share of patches",
            "1/N .. 1",
            "effective receptive field: patches that carry 95% of the attention; lower is narrower",
            "first study of this project, ERF@0.95",
        ),
        Metric(
            "gini",
            gini,
            "none",
            "0 .. (N-1)/N",
            "inequality of attention among patches; higher is more concentrated",
            "Hurley and Rickard 2009",
        ),
        Metric(
            "head_diversity",
            head_diversity,
            "1 - cosine",
            "0 .. 1",
            "how much the heads' mean maps differ; lower means heads look at the same patches",
            "first study of this project",
        ),
        Metric(
            "cls_mass",
            None,
            "share of attention",
            "0 .. 1",
            "attention of the class token to itself, which renormalising over patches drops; "
            "a rise is an attention sink on the class token",
            "Xiao et al. 2023 (attention sinks)",
        ),
        Metric(
            "rollout",
            rollout,
            "share of attention",
            "0 .. 1 a patch",
            "flow from the class token to each patch through all layers",
            "Abnar and Zuidema 2020",
        ),
        Metric(
            "cka",
            linear_cka,
            "none",
            "0 .. 1",
            "similarity of pretrained and adapted class-token states; lower has drifted further. "
            "Biased upwards where images are fewer than dimensions",
            "Kornblith et al. 2019",
        ),
        Metric(
            "cka_debiased",
            _debiased_cka,
            "none",
            "about 0 .. 1",
            "CKA from the unbiased HSIC: 0 is chance whatever the number of images",
            "Song et al. 2012; Nguyen et al. 2021",
        ),
        Metric(
            "embedding_drift",
            embedding_drift,
            "1 - cosine",
            "0 .. 2",
            "how far image embeddings have turned from the pretrained ones; higher has drifted further",
            "first study of this project",
        ),
        Metric(
            "weight_drift",
            weight_drift,
            "ratio of norms",
            "0 ..",
            "norm of the weight change over the norm of the pretrained weights; higher has moved further",
            "first study of this project",
        ),
    )
}
"""One row a metric, by its name in the tables."""
