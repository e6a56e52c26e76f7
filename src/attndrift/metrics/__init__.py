"""Pure functions that measure attention, representations and weights. They know no model.

``METRICS`` has one :class:`Metric` a metric: its function, unit, range, and where it comes from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attndrift.lazy_imports import lazy_imports
from attndrift.metrics.registry import METRICS, Metric, structure_metrics

if TYPE_CHECKING:
    from attndrift.metrics.activations import activation_change
    from attndrift.metrics.attention import entropy, erf, gini, head_diversity, rollout
    from attndrift.metrics.collapse import effective_rank, mean_pairwise_cosine, modality_gap, procrustes_residual
    from attndrift.metrics.representation import (
        cka_chance_level,
        cross_layer_cka,
        embedding_distance,
        embedding_drift,
        linear_cka,
        linear_cka_both,
        linear_cka_layers,
    )
    from attndrift.metrics.structure_accumulator import StructureAccumulator, StructureSummary
    from attndrift.metrics.weights import LowRankUpdate, squared_norm, weight_drift

__all__ = [
    "METRICS",
    "LowRankUpdate",
    "Metric",
    "StructureAccumulator",
    "StructureSummary",
    "activation_change",
    "cka_chance_level",
    "cross_layer_cka",
    "effective_rank",
    "embedding_distance",
    "embedding_drift",
    "entropy",
    "erf",
    "gini",
    "head_diversity",
    "linear_cka",
    "linear_cka_both",
    "linear_cka_layers",
    "mean_pairwise_cosine",
    "modality_gap",
    "procrustes_residual",
    "rollout",
    "squared_norm",
    "structure_metrics",
    "weight_drift",
]

# Names and facts need no torch.
__getattr__, __dir__ = lazy_imports(
    __name__,
    {
        "attndrift.metrics.activations": ("activation_change",),
        "attndrift.metrics.attention": ("entropy", "erf", "gini", "head_diversity", "rollout"),
        "attndrift.metrics.collapse": ("effective_rank", "mean_pairwise_cosine", "modality_gap", "procrustes_residual"),
        "attndrift.metrics.representation": (
            "cka_chance_level",
            "cross_layer_cka",
            "embedding_distance",
            "embedding_drift",
            "linear_cka",
            "linear_cka_both",
            "linear_cka_layers",
        ),
        "attndrift.metrics.structure_accumulator": ("StructureAccumulator", "StructureSummary"),
        "attndrift.metrics.weights": ("LowRankUpdate", "squared_norm", "weight_drift"),
    },
)
