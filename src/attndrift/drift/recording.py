"""The tables of a watched training, in a folder that ``attndrift analyze`` reads."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from attndrift.attention.families import find_vision_tower
from attndrift.drift.alerts import AlertEvent
from attndrift.drift.drift import Drift
from attndrift.drift.monitor import DriftMonitor
from attndrift.files import replacing
from attndrift.formats import table_metadata
from attndrift.methods.registry import METHODS
from attndrift.models.parameters import has_adapters
from attndrift.registry import unknown_name
from attndrift.results.tables import TableError, Tables, read_tables, schema, write_tables

Existing = Literal["refuse", "replace", "continue"]
ALERTS = "alerts.parquet"
_FILES = ("runs.parquet", "history.parquet", "layers.parquet", ALERTS)
_ALERT_SCHEMA = pa.schema(
    {
        "run_id": pa.string(), "step": pa.int64(), "epoch": pa.float64(), "metric": pa.string(), "value": pa.float64(),
        "direction": pa.string(), "threshold": pa.float64(), "action": pa.string(),
    }
)  # fmt: skip


def _check_names(argument: str, table: str, names: Iterable[str]) -> None:
    allowed = [column.name for column in schema(table)]
    for name in names:
        if name not in allowed:
            text = unknown_name(f"column of the table {table}", name, allowed, "docs/tables.md lists them")
            raise TableError(f"{argument}: {text}")


class DriftTables:
    """Writes ``runs``, ``history``, ``layers`` and ``alerts`` of one run; each file whole or not at all.

    Args:
        folder: of the tables; may exist.
        run: columns of the table ``runs``, by name; ``run_id`` is by default the folder's name.
        existing: what to do where the folder holds tables: ``refuse``, ``replace`` them, or ``continue`` those of the
            same run (after a resumption): rows up to the step that training goes on from are kept.

    Raises:
        TableError: tables that exist already, or an unknown column.
        FormatError: tables of another version are to be continued.
    """

    def __init__(self, folder: str | os.PathLike[str], run: Mapping[str, Any], existing: Existing) -> None:
        self.folder = Path(folder)
        self.check_columns(run)
        self.run: dict[str, Any] = {"run_id": self.folder.resolve().name, **run}
        self.history: list[dict[str, Any]] = []
        self._layers: list[pd.DataFrame] = []
        self._earlier_events: list[dict[str, Any]] = []
        self._unwritten = 0
        self.existing = existing
        found = [name for name in _FILES if (self.folder / name).exists()]
        if existing not in ("refuse", "replace", "continue"):
            raise ValueError(f"existing is {existing!r}; it must be refuse, replace or continue")
        if found and existing == "refuse":
            raise TableError(
                f"{self.folder}: holds {', '.join(found)} already. Give another folder, existing='replace' to write over "
                "them, or existing='continue' after a resumption"
            )
        if found and existing == "continue":
            self._read_earlier()

    @staticmethod
    def check_columns(run: Mapping[str, Any]) -> None:
        """Raise :class:`TableError` for a name that is no column of the table ``runs``."""
        _check_names("run", "runs", run)

    def check_overwritten(self, steps: int) -> None:
        """Raise :class:`TableError` where a new training would write over a finished one of ``steps``, unasked."""
        if self.existing == "refuse":
            raise TableError(
                f"{self.folder}: holds a finished training of {steps} steps that was measured by the same callback. "
                "Make a new one with another folder, or give existing='replace' to write over it"
            )

    def _read_earlier(self) -> None:
        earlier = read_tables(self.folder, names=("runs", "history", "layers"))
        names = earlier.runs["run_id"].tolist()
        if names != [self.run["run_id"]]:
            raise TableError(f"{self.folder}: its tables are of {', '.join(names)}, not of {self.run['run_id']} alone")
        rows = earlier.history.astype(object).where(earlier.history.notna(), None).to_dict("records")
        self.history = [{str(name): value for name, value in row.items()} for row in rows]
        self._layers = [earlier.layers]
        if (self.folder / ALERTS).is_file():
            self._earlier_events = pq.read_table(self.folder / ALERTS).to_pylist()

    def rewind(self, step: int) -> None:
        """Drop what was measured after ``step``: the training goes on from there."""
        if not self.history or self.history[-1]["step"] <= step:
            return
        self.history = [row for row in self.history if row["step"] <= step]
        self._layers = [layers[layers["step"] <= step] for layers in self._layers]
        self._earlier_events = [event for event in self._earlier_events if event["step"] <= step]

    def add(self, step: int, epoch: float | None, drift: Drift) -> None:
        """Add one measurement. It takes the place of an earlier one of the same step, whose noted columns stay."""
        earlier = next((row for row in self.history if row["step"] == step), {})
        self.rewind(step - 1)
        row = {"run_id": self.run["run_id"], "step": step, "epoch": epoch, **drift.columns("history")}
        self.history.append({**earlier, **row})
        self._layers.append(_layer_rows(self.run["run_id"], step, drift))
        self._unwritten += 1

    def note(self, step: int, values: Mapping[str, float]) -> bool:
        """Add columns to the history row of ``step``; False where that step was not measured."""
        _check_names("note", "history", values)
        for row in reversed(self.history):
            if row["step"] == step:
                row.update(values)
                return True
        return False

    @property
    def due(self) -> bool:
        """Whether to write now: at once while the tables are small, later every twentieth of their length."""
        return self._unwritten * 20 >= len(self.history)

    def write(self, model: nn.Module, monitor: DriftMonitor, row: Mapping[str, Any], events: list[AlertEvent]) -> None:
        """Write all tables, with what ``model`` tells of its training, and ``row`` as what is measured of the run."""
        row = {**describe_training(model, monitor), **row}
        accuracies = [entry["val_accuracy"] for entry in self.history if entry.get("val_accuracy") is not None]
        best = {"best_val_accuracy": max(accuracies)} if accuracies else {}
        layers = pd.concat(self._layers, ignore_index=True)
        self._layers = [layers]
        columns = list(dict.fromkeys(name for entry in self.history for name in entry))
        tables = Tables(
            runs=pd.DataFrame([{**row, **best, **self.run}]),
            history=pd.DataFrame(self.history, columns=columns),
            layers=layers,
        )
        write_tables(tables, self.folder)
        rows = self._earlier_events + [{"run_id": self.run["run_id"], **asdict(event)} for event in events]
        write_parquet(pa.Table.from_pylist(rows, schema=_ALERT_SCHEMA), self.folder / ALERTS)
        self._unwritten = 0


def write_parquet(table: pa.Table, path: Path) -> None:
    with replacing(path) as temporary:
        pq.write_table(table.replace_schema_metadata(table_metadata()), temporary)


def _layer_rows(run_id: str, step: int, drift: Drift) -> pd.DataFrame:
    rows: list[tuple[int, int | None, str, float]] = []
    for metric, values in drift.layers().items():
        rows += [(layer, None, metric, value) for layer, value in enumerate(values["layer"], 1)]
        for layer, heads in enumerate(values.get("head", ()), 1):
            rows += [(layer, head, metric, value) for head, value in enumerate(heads, 1)]
    frame = pd.DataFrame(rows, columns=["layer", "head", "metric", "value"]).astype({"head": "Int64"})
    return frame.assign(run_id=run_id, step=step)


def describe_training(model: nn.Module, monitor: DriftMonitor) -> dict[str, Any]:
    """Columns of the table ``runs`` that the model itself tells: what is trained, by which method, how much."""
    config = getattr(model, "config", None) or getattr(monitor.model, "config", None)
    name = getattr(config, "_name_or_path", "") or getattr(config, "name_or_path", "")
    parameters = list(model.parameters())
    row: dict[str, Any] = {
        "model": str(name) or type(model).__name__,
        "dataset": "unnamed",
        # The generator that initialisation and order come from, unless the loop says better.
        "seed": torch.initial_seed() % 2**63,
        "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        "total_parameters": sum(p.numel() for p in parameters),
        "n_probe": monitor.reference.structure.images,
    }
    return row | _method(monitor.model)


def _method(model: nn.Module) -> dict[str, Any]:
    family, tower, _ = find_vision_tower(model)
    blocks = [[p.requires_grad for p in tower.get_submodule(b.path).parameters()] for b in family.blocks(tower)]
    adapted = has_adapters(tower)
    for method in METHODS:
        found = method.recognise(tower, blocks) if bool(method.adapter_parameters) == adapted else None
        if found is not None:
            return {"method": method.name, **found}
    return {"method": "peft" if adapted else "partial"}
