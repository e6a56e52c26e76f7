"""attndrift: see what fine-tuning does to a vision-language model while it happens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attndrift.lazy_imports import lazy_imports
from attndrift.version import __version__

if TYPE_CHECKING:
    from attndrift.attention.errors import ObservationError
    from attndrift.attention.observer import observe
    from attndrift.callbacks.trainer import DriftCallback
    from attndrift.drift.monitor import DriftMonitor
    from attndrift.guard.budget import Budget
    from attndrift.guard.guard import Guard
    from attndrift.losses.attention_preservation import AttentionPreservation
    from attndrift.losses.entropy_floor import EntropyFloor
    from attndrift.retention.zero_shot import evaluate_zero_shot

__all__ = [
    "AttentionPreservation",
    "Budget",
    "DriftCallback",
    "DriftMonitor",
    "EntropyFloor",
    "Guard",
    "ObservationError",
    "__version__",
    "evaluate_zero_shot",
    "observe",
]

__getattr__, __dir__ = lazy_imports(
    __name__,
    {
        "attndrift.attention.errors": ("ObservationError",),
        "attndrift.attention.observer": ("observe",),
        "attndrift.callbacks.trainer": ("DriftCallback",),
        "attndrift.drift.monitor": ("DriftMonitor",),
        "attndrift.guard.budget": ("Budget",),
        "attndrift.guard.guard": ("Guard",),
        "attndrift.losses.attention_preservation": ("AttentionPreservation",),
        "attndrift.losses.entropy_floor": ("EntropyFloor",),
        "attndrift.retention.zero_shot": ("evaluate_zero_shot",),
    },
)
