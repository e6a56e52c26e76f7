"""Drift: what has changed in a model since a reference state, on a fixed probe set.

``DriftMonitor`` measures, ``DriftWatch`` puts it into any training loop; :mod:`attndrift.callbacks` has the callbacks of
``transformers.Trainer`` and Lightning. A measurement leaves random states, training mode, gradients and parameters as they were.
"""

from __future__ import annotations

from attndrift.drift.activation_change import ActivationChange
from attndrift.drift.alerts import Alert, AlertEvent, read_alerts
from attndrift.drift.drift import Drift, Snapshot, compare_snapshots, relative_change_pct, watchable
from attndrift.drift.knn_retention import KNNRetention
from attndrift.drift.monitor import DriftMonitor, measure_drift
from attndrift.drift.probe import Batches
from attndrift.drift.record import TrainingRecord
from attndrift.drift.snapshot import take_snapshot
from attndrift.drift.text_drift import FixedTexts, TextDrift
from attndrift.drift.watch import DriftWatch
from attndrift.drift.weight_drift import WeightDrift

__all__ = [
    "ActivationChange",
    "Alert",
    "AlertEvent",
    "Batches",
    "Drift",
    "DriftMonitor",
    "DriftWatch",
    "FixedTexts",
    "KNNRetention",
    "Snapshot",
    "TextDrift",
    "TrainingRecord",
    "WeightDrift",
    "compare_snapshots",
    "measure_drift",
    "read_alerts",
    "relative_change_pct",
    "take_snapshot",
    "watchable",
]
