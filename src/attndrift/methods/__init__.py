"""Adaptation methods: what is trained, the head, and checkpoints of adapted models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attndrift.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from attndrift.methods.adapters import check_adapter_places, check_adapters_loaded, load_adapter
    from attndrift.methods.checkpoint import fingerprint_embeddings, load_adapted, save_adapted
    from attndrift.methods.classifier import CLIPClassifier
    from attndrift.methods.parameter_drift import projection_drift, squared_norms, state_for_drift, weight_drift
    from attndrift.methods.registry import METHODS, AdaptationSettings, adapt, count_parameters

__all__ = [
    "METHODS",
    "AdaptationSettings",
    "CLIPClassifier",
    "adapt",
    "check_adapter_places",
    "check_adapters_loaded",
    "count_parameters",
    "fingerprint_embeddings",
    "load_adapted",
    "load_adapter",
    "projection_drift",
    "save_adapted",
    "squared_norms",
    "state_for_drift",
    "weight_drift",
]

__getattr__, __dir__ = lazy_imports(
    __name__,
    {
        "attndrift.methods.adapters": (
            "check_adapter_places",
            "check_adapters_loaded",
            "load_adapter",
        ),
        "attndrift.methods.checkpoint": (
            "fingerprint_embeddings",
            "load_adapted",
            "save_adapted",
        ),
        "attndrift.methods.classifier": ("CLIPClassifier",),
        "attndrift.methods.registry": (
            "AdaptationSettings",
            "METHODS",
            "adapt",
            "count_parameters",
        ),
        "attndrift.methods.parameter_drift": (
            "projection_drift",
            "squared_norms",
            "state_for_drift",
            "weight_drift",
        ),
    },
)
