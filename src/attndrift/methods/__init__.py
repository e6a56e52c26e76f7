"""Adaptation methods: what is trained, the head, and checkpoints of adapted models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attndrift.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from attndrift.methods.adaptation import adapt, count_parameters
    from attndrift.methods.adapters import check_adapter_places, check_adapters_loaded, load_adapter
    from attndrift.methods.checkpoint import fingerprint_embeddings, load_adapted, save_adapted
    from attndrift.methods.classifier import ImageClassifier
    from attndrift.methods.parameter_drift import projection_drift, squared_norms, state_for_drift, weight_drift
    from attndrift.methods.registry import HEADS, METHODS, Head, Method, head, method
    from attndrift.methods.settings import AdaptationSettings

__all__ = [
    "HEADS",
    "METHODS",
    "AdaptationSettings",
    "Head",
    "ImageClassifier",
    "Method",
    "adapt",
    "check_adapter_places",
    "check_adapters_loaded",
    "count_parameters",
    "fingerprint_embeddings",
    "head",
    "load_adapted",
    "load_adapter",
    "method",
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
        "attndrift.methods.classifier": ("ImageClassifier",),
        "attndrift.methods.registry": ("HEADS", "METHODS", "Head", "Method", "head", "method"),
        "attndrift.methods.adaptation": ("adapt", "count_parameters"),
        "attndrift.methods.settings": ("AdaptationSettings",),
        "attndrift.methods.parameter_drift": (
            "projection_drift",
            "squared_norms",
            "state_for_drift",
            "weight_drift",
        ),
    },
)
