"""Backbones: finding and loading them, their embeddings, their parameters and modules."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attndrift.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from attndrift.models.errors import CheckpointError, FingerprintError, HubError, ModelError
    from attndrift.models.hub import ModelLocation, resolve_model
    from attndrift.models.load import describe, load_config, load_model, load_processor
    from attndrift.models.prune import prune_last_block_to_cls

__all__ = [
    "CheckpointError",
    "FingerprintError",
    "HubError",
    "ModelError",
    "ModelLocation",
    "describe",
    "load_config",
    "load_model",
    "load_processor",
    "prune_last_block_to_cls",
    "resolve_model",
]

__getattr__, __dir__ = lazy_imports(
    __name__,
    {
        "attndrift.models.errors": (
            "CheckpointError",
            "FingerprintError",
            "HubError",
            "ModelError",
        ),
        "attndrift.models.hub": (
            "ModelLocation",
            "resolve_model",
        ),
        "attndrift.models.load": (
            "describe",
            "load_config",
            "load_model",
            "load_processor",
        ),
        "attndrift.models.prune": ("prune_last_block_to_cls",),
    },
)
