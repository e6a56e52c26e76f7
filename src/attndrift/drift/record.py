"""What has been measured of one training, and the row of tables that it ends with."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from attndrift.drift.alerts import AlertEvent
from attndrift.drift.drift import Drift
from attndrift.drift.monitor import DriftMonitor
from attndrift.extras import importing

if TYPE_CHECKING:
    from attndrift.drift.recording import DriftTables, Existing


class TrainingRecord:
    """The measurements of one training, one a step, in order; with a folder also its tables.

    Args:
        monitor: of the model in training.
        events: the alerts that have fired, which grow while this is used.
        folder, run, existing: as for :class:`DriftWatch`.

    Attributes:
        drift: (step, drift) of every measurement.
        tables: the tables, where there is a folder.
        model: the model in training, which holds the monitor's.
        status: ``running``, ``finished``, ``failed`` or ``diverged``.
        selected: drift and epoch of the state that the training ends with, where that is not the last one measured.
    """

    def __init__(
        self,
        monitor: DriftMonitor,
        events: list[AlertEvent],
        folder: str | os.PathLike[str] | None,
        run: Mapping[str, Any] | None,
        existing: Existing,
    ) -> None:
        if run is not None and folder is None:
            raise ValueError("run describes the row of a table: give a folder for the tables")
        self.tables = None if folder is None else _tables(folder, run or {}, existing)
        self.drift: list[tuple[int, Drift]] = []
        self.model: nn.Module = monitor.model
        self.status = "running"
        self.selected: tuple[Drift, float | None] | None = None
        self._monitor, self._events = monitor, events
        self._described: dict[str, Any] = {}

    @property
    def continues(self) -> bool:
        """Whether tables of an interrupted training are gone on with, and nothing was measured yet."""
        return not self.drift and self.tables is not None and bool(self.tables.history)

    @property
    def last_step(self) -> int | None:
        """The step of the last measurement."""
        return self.drift[-1][0] if self.drift else None

    def begin(self, step: int) -> int:
        """Start or resume after ``step``; returns the last step that is kept, -1 for none.

        If the previous training did not finish (out of memory, interrupted, resumed), measurements after ``step`` are
        dropped. After a finished training an empty record starts.

        Raises :class:`~attndrift.results.tables.TableError` where that would write over the tables of the finished one, unasked.
        """
        last = self.last_step
        if self.status == "finished" and last is not None and step < last:
            if self.tables is not None:
                self.tables.check_overwritten(last)
            if self.tables is None or self.tables.existing == "replace":
                step = -1
        self.drift[:] = [measured for measured in self.drift if measured[0] <= step]
        if self.tables is not None:
            self.tables.rewind(step)
        self.status, self.selected = "running", None
        return step

    def add(self, step: int, epoch: float | None, drift: Drift, noted: Mapping[str, float]) -> None:
        """Add a measurement, in place of one of the same step."""
        self.drift[:] = [*(measured for measured in self.drift if measured[0] < step), (step, drift)]
        if self.tables is not None:
            self.tables.add(step, epoch, drift)
            self.tables.note(step, noted)

    def note(self, step: int, **values: float) -> bool:
        """Add columns of the table ``history`` to the row of ``step``; False where that step was not measured."""
        return self.tables is not None and self.tables.note(step, values)

    def describe(self, **columns: Any) -> None:
        """Columns of the table ``runs`` that the loop knows; those given as ``run`` go first."""
        if self.tables is not None:
            self.tables.check_columns(columns)
        self._described |= {name: value for name, value in columns.items() if value is not None}

    def write(self) -> None:
        """Write the tables as they are now. Call it where a checkpoint is saved, so that a resumption finds every row."""
        if self.tables is None or not self.drift or not self._monitor.processes.first:
            return
        final, epoch = self.selected or (self.drift[-1][1], None)
        row = self._described | {"status": self.status}
        row |= final.columns("runs")
        if epoch is not None:
            row["selected_epoch"] = epoch
        self.tables.write(self.model, self._monitor, row, self._events)


def _tables(folder: str | os.PathLike[str], run: Mapping[str, Any], existing: Existing) -> DriftTables:
    # Here, so that watching without tables needs no package of tables.
    with importing("study", "a watch that writes tables (folder=...)"):
        from attndrift.drift.recording import DriftTables
    return DriftTables(folder, run, existing)
