"""The structural monitor: what has changed in a model since a reference state, on a fixed probe set.

``DriftMonitor`` measures; ``DriftWatch`` puts it into any training loop, ``DriftCallback`` into a
``transformers.Trainer`` and ``LightningDriftCallback`` into Lightning's. No measurement touches the random
state, the training mode, the gradients or the parameters of the model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attndrift.monitor.alerts import Alert, AlertEvent
from attndrift.monitor.drift import (
    WATCHABLE,
    DivergedError,
    Drift,
    Snapshot,
    compare_snapshots,
    relative_change_pct,
)
from attndrift.monitor.measuring import DriftMonitor, measure_drift
from attndrift.monitor.probe import Batches
from attndrift.monitor.processes import OtherProcessError
from attndrift.monitor.snapshot import WeightDrift, take_snapshot
from attndrift.monitor.trainer import DriftCallback
from attndrift.monitor.undisturbed import evaluation_mode
from attndrift.monitor.watching import DriftWatch
from attndrift.observing.embedding import image_embeddings

if TYPE_CHECKING:
    from attndrift.monitor.lightning import LightningDriftCallback

__all__ = [
    "WATCHABLE",
    "Alert",
    "AlertEvent",
    "Batches",
    "DivergedError",
    "Drift",
    "DriftCallback",
    "DriftMonitor",
    "DriftWatch",
    "LightningDriftCallback",
    "OtherProcessError",
    "Snapshot",
    "WeightDrift",
    "compare_snapshots",
    "evaluation_mode",
    "image_embeddings",
    "measure_drift",
    "relative_change_pct",
    "take_snapshot",
]


def __getattr__(name: str) -> Any:
    # An optional extra: without it, everything else here works.
    if name == "LightningDriftCallback":
        from attndrift.monitor.lightning import LightningDriftCallback

        return LightningDriftCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
