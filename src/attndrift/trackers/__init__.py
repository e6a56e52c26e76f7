"""Trackers: where the rows of a history go while a training runs, such as TensorBoard.

One adapter, :func:`scalars`, makes flat numbers of a row; a :class:`Tracker` takes these and knows nothing else.

    TRACKERS.register(Tracker(name="mine", label="Mine", open=lambda run: MyWriter(run.folder)))
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attndrift.registry import Registry
from attndrift.results.columns import metric_columns


@dataclass(frozen=True)
class TrackedRun:
    """The run that a tracker is opened for.

    Attributes:
        folder: of the run.
        step: that training goes on from; 0 for a new training.
        run_id: its name, and that of its ``study``.
        settings: of the run, plain values by name.
    """

    folder: Path
    step: int
    run_id: str
    study: str
    settings: Mapping[str, Any] = field(default_factory=dict)


class Writer(ABC):
    """What a tracker writes one run to."""

    @abstractmethod
    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write the numbers of ``step`` by name. Raises OSError where that cannot be done."""

    def alert(self, step: int, title: str, text: str) -> None:  # noqa: B027 -- not every tracker has alerts
        """Pass on that something happened at ``step``: a guard has acted, or the run has diverged. By default nothing."""

    @abstractmethod
    def close(self) -> None:
        """Nothing more will be written."""


@dataclass(frozen=True)
class Tracker:
    """One tracker.

    Attributes:
        name: in settings and in ``--report-to``; ``label`` in print.
        open: a :class:`TrackedRun` to a :class:`Writer`.
        package: what must be installed, besides the extra ``study``; empty for nothing.
        show: the command that shows the runs, with ``{runs}`` for the folder of all runs, ``{study}`` for the study's name.
    """

    name: str
    label: str
    open: Callable[[TrackedRun], Writer]
    package: str = ""
    show: str = ""


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
