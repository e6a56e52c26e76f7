"""Trackers: where the rows of a history go while a training runs, such as TensorBoard.

One adapter, :func:`scalars`, makes flat numbers of a row; a :class:`Tracker` takes these and knows nothing else.

    TRACKERS.register(Tracker(name="mine", label="Mine", open=lambda folder, step: MyWriter(folder)))
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from attndrift.registry import Registry
from attndrift.results.columns import metric_columns


class Writer(Protocol):
    """What a tracker writes one run to."""

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write the numbers of ``step`` by name. Raises OSError where that cannot be done."""

    def close(self) -> None:
        """Nothing more will be written."""


@dataclass(frozen=True)
class Tracker:
    """One tracker.

    Attributes:
        name: in settings; ``label`` in print.
        open: (folder of the run, step that training goes on from, 0 for a new one) to a :class:`Writer`.
    """

    name: str
    label: str
    open: Callable[[Path, int], Writer]


TRACKERS: Registry[Tracker] = Registry("tracker", "attndrift.trackers")
"""All trackers: those of this package, those of installed packages, and those of this process."""


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """Flat names and numbers of a row of the history: what is measured under ``drift/``, each block under ``drift_METRIC/``.

    >>> scalars({"step": 3, "epoch": 1.0, "val_accuracy": 0.5, "cka_mean": 0.9, "layers": {"cka": {"layer": [1.0, 0.8]}}})
    {'val_accuracy': 0.5, 'drift/cka_mean': 0.9, 'drift_cka/layer_01': 1.0, 'drift_cka/layer_02': 0.8}
    """
    measured = {column.name for column in metric_columns("history")}
    flat = {
        f"drift/{name}" if name in measured else name: float(value)
        for name, value in row.items()
        if name not in ("step", "epoch") and isinstance(value, (int, float)) and math.isfinite(value)
    }
    for metric, values in row.get("layers", {}).items():
        flat |= {f"drift_{metric}/layer_{layer:02d}": value for layer, value in enumerate(values["layer"], 1)}
    return flat
