"""Backbones, adaptation methods and checkpoints."""

from attndrift.models.adapters import check_adapter_places, check_adapters_loaded, load_adapter
from attndrift.models.checkpoint import fingerprint_embeddings, load_adapted, save_adapted
from attndrift.models.class_token import class_token_alone
from attndrift.models.classifier import CLIPClassifier
from attndrift.models.drift import projection_drift, squared_norms, state_for_drift, weight_drift
from attndrift.models.errors import CheckpointError, FingerprintError, ModelError
from attndrift.models.load import describe, load_clip, load_config, load_processor
from attndrift.models.methods import METHODS, AdaptationSettings, adapt, count_parameters

__all__ = [
    "METHODS",
    "AdaptationSettings",
    "CLIPClassifier",
    "CheckpointError",
    "FingerprintError",
    "ModelError",
    "adapt",
    "check_adapter_places",
    "check_adapters_loaded",
    "class_token_alone",
    "count_parameters",
    "describe",
    "fingerprint_embeddings",
    "load_adapted",
    "load_adapter",
    "load_clip",
    "load_config",
    "load_processor",
    "projection_drift",
    "save_adapted",
    "squared_norms",
    "state_for_drift",
    "weight_drift",
]
