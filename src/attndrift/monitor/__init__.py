"""The structural monitor: what has changed in a model since a reference state, on a fixed probe set.

``DriftMonitor`` measures. None of it touches the random state, the training mode, the gradients or the
parameters of the model.
"""

from attndrift.monitor.drift import (
    WATCHABLE,
    DivergedError,
    Drift,
    Snapshot,
    compare_snapshots,
    relative_change_pct,
)
from attndrift.monitor.measuring import Batches, DriftMonitor, WeightDrift
from attndrift.monitor.processes import OtherProcessError
from attndrift.monitor.snapshot import take_snapshot
from attndrift.monitor.trainer import DriftCallback
from attndrift.monitor.undisturbed import evaluation_mode
from attndrift.observing.embedding import image_embeddings

__all__ = [
    "WATCHABLE",
    "Batches",
    "DivergedError",
    "Drift",
    "DriftCallback",
    "DriftMonitor",
    "OtherProcessError",
    "Snapshot",
    "WeightDrift",
    "compare_snapshots",
    "evaluation_mode",
    "image_embeddings",
    "relative_change_pct",
    "take_snapshot",
]
