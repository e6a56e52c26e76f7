"""Backbones, adaptation methods and checkpoints."""

from attndrift.models.checkpoint import (
    CheckpointError,
    FingerprintError,
    load_adapted,
    load_adapter,
    save_adapted,
)
from attndrift.models.classifier import CLIPClassifier
from attndrift.models.drift import projection_drift, weight_drift
from attndrift.models.load import ModelError, describe, load_clip, load_config, load_processor
from attndrift.models.methods import (
    METHODS,
    AdaptationSettings,
    adapt,
    check_adapter_places,
    count_parameters,
)

__all__ = [
    "METHODS",
    "AdaptationSettings",
    "CLIPClassifier",
    "CheckpointError",
    "FingerprintError",
    "ModelError",
    "adapt",
    "check_adapter_places",
    "count_parameters",
    "describe",
    "load_adapted",
    "load_adapter",
    "load_clip",
    "load_config",
    "load_processor",
    "projection_drift",
    "save_adapted",
    "weight_drift",
]
