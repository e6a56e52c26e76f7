"""Preservation losses: hold a model near its pretrained state while it trains."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attndrift.lazy_imports import lazy_imports
from attndrift.losses.names import canonical_losses, parse_losses, split_weight
from attndrift.losses.registry import LOSSES, Loss

if TYPE_CHECKING:
    from attndrift.losses.attention_cache import AttentionCache
    from attndrift.losses.attention_loss import AttentionLoss
    from attndrift.losses.attention_preservation import AttentionPreservation, attention_preservation_loss
    from attndrift.losses.base import Batch, PreservationLoss, PreservationLossError, StudyContext
    from attndrift.losses.entropy_floor import EntropyFloor, entropy_floor_loss

__getattr__, __dir__ = lazy_imports(
    __name__,
    {
        "attndrift.losses.attention_cache": ("AttentionCache",),
        "attndrift.losses.attention_loss": ("AttentionLoss",),
        "attndrift.losses.attention_preservation": ("AttentionPreservation", "attention_preservation_loss"),
        "attndrift.losses.base": ("Batch", "PreservationLoss", "PreservationLossError", "StudyContext"),
        "attndrift.losses.entropy_floor": ("EntropyFloor", "entropy_floor_loss"),
    },
)

__all__ = [
    "LOSSES",
    "AttentionCache",
    "AttentionLoss",
    "AttentionPreservation",
    "Batch",
    "EntropyFloor",
    "Loss",
    "PreservationLoss",
    "PreservationLossError",
    "StudyContext",
    "attention_preservation_loss",
    "canonical_losses",
    "entropy_floor_loss",
    "parse_losses",
    "split_weight",
]
