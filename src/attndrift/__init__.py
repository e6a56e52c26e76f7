"""attndrift: see what fine-tuning does to a vision-language model while it happens."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attndrift.guarding import Budget, Guard
    from attndrift.monitor import DriftCallback, DriftMonitor
    from attndrift.observing import ObservationError, observe
    from attndrift.regularizers import AttentionPreservation, EntropyFloor
    from attndrift.transfer import evaluate_zero_shot

__version__ = "0.1.0"

_HOMES = {
    "AttentionPreservation": "attndrift.regularizers",
    "Budget": "attndrift.guarding",
    "DriftCallback": "attndrift.monitor",
    "DriftMonitor": "attndrift.monitor",
    "EntropyFloor": "attndrift.regularizers",
    "Guard": "attndrift.guarding",
    "ObservationError": "attndrift.observing",
    "evaluate_zero_shot": "attndrift.transfer",
    "observe": "attndrift.observing",
}

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


def __getattr__(name: str) -> Any:
    # Asking for the version, or for help, must not cost an import of torch.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
