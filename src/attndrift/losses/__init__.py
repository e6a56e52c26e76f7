"""Preservation losses: hold a model near its pretrained state while it trains."""

from __future__ import annotations

from attndrift.losses.attention import (
    AttentionCache,
    AttentionPreservation,
    EntropyFloor,
    attention_preservation_loss,
    entropy_floor_loss,
)

__all__ = [
    "AttentionCache",
    "AttentionPreservation",
    "EntropyFloor",
    "attention_preservation_loss",
    "entropy_floor_loss",
]
