"""The last block's change beside every layer mean: a mean hides opposite changes in single layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from attndrift.analysis.numbers import number
from attndrift.analysis.result import Analysis, Table
from attndrift.metrics.registry import METRICS, structure_metrics
from attndrift.results.columns import Column
from attndrift.results.tables import Tables

# The table `runs` carries the last block's entropy itself; the others are read from the layers.
_METRICS = tuple(metric for metric in structure_metrics() if metric != "entropy")
_EPOCH_SLACK = 1e-6

LastBlocks = Mapping[str, Mapping[str, float | None]]
"""From a name (run or configuration) and a column name to a value."""


def by_configuration(analysis: Analysis) -> dict[str, dict[str, float | None]]:
    """Mean and sample sd over seeds of the last block's change, by configuration, from ``change_per_layer``."""
    table = analysis.tables.get("change_per_layer")
    result: dict[str, dict[str, float | None]] = {}
    if table is None:
        return result
    layers = [column.name for column in table.columns if column.name.startswith("layer_")]
    for row in table.rows:
        # Models of different depth share the table: the last block is the last one that has a value.
        last = next((name for name in reversed(layers) if row.get(name) is not None), None)
        if last is None:
            continue
        values = result.setdefault(str(row["configuration"]), {})
        name = f"{row['metric']}_last_block_pct"
        values[name], values[f"{name}_sd"] = number(row[last]), number(row.get(f"{last}_sd"))
    return result


def by_run(tables: Tables) -> dict[str, dict[str, float | None]]:
    """The last block's change of every run, percent, from step 0 to the measured checkpoint.

    Selection ``test`` measures after the last epoch, any other one at the selected checkpoint. A run
    without rows at step 0 or after it has no entry.
    """
    frame = tables.layers
    frame = frame[frame["head"].isna() & frame["metric"].isin(_METRICS) & frame["value"].notna()]
    if frame.empty:
        return {}
    frame = frame[frame["layer"] == frame.groupby("run_id")["layer"].transform("max")]
    limit = frame["run_id"].map(_measured_steps(tables)).fillna(np.inf).astype(float)
    step = frame["step"].astype(float)
    first = frame[step == 0].set_index(["run_id", "metric"])["value"]
    later = frame[(step > 0) & (step <= limit)].sort_values("step", kind="stable")
    final = later.groupby(["run_id", "metric"])["value"].last()
    result: dict[str, dict[str, float | None]] = {}
    for key, value in final.items():
        run_id, metric = key if isinstance(key, tuple) else (key, "")
        start = first.get(key)
        change = None if start is None else number(100.0 * (value - start) / start if start else None)
        result.setdefault(str(run_id), {})[f"{metric}_last_block_pct"] = change
    return result


def _measured_steps(tables: Tables) -> dict[str, float]:
    runs = tables.runs[tables.runs["selection"].astype(object) != "test"]
    selected = pd.Series(runs["selected_epoch"].to_numpy(dtype=float), index=runs["run_id"].astype(object)).dropna()
    history = tables.history[["run_id", "step", "epoch"]].dropna()
    target = history["run_id"].astype(object).map(selected)
    reached = history[history["epoch"] <= target + _EPOCH_SLACK]
    return {str(name): float(step) for name, step in reached.groupby("run_id")["step"].max().items()}


def with_last_blocks(table: Table, values: LastBlocks, key: str) -> Table:
    """``table`` with the last block's change after each column of a mean change, where ``values`` knows it."""
    present = {column.name for column in table.columns}
    if key not in present:
        return table
    wanted = [metric for metric in _METRICS if f"{metric}_change_pct" in present]
    columns: list[Column] = []
    for column in table.columns:
        columns.append(column)
        for metric in wanted:
            if column.name == f"{metric}_change_pct":
                name = f"{metric}_last_block_pct"
                label = f"{METRICS[metric].label} change, last block"
                sd = f"{name}_sd" if column.sd else None
                columns.append(Column(name=name, label=label, unit="%", digits=2, signed=True, sd=sd))
    rows = [{**values.get(str(row.get(key)), {}), **row} for row in table.rows]
    return table.model_copy(update={"columns": columns, "rows": rows})


def baseline_with_last_block(baseline: Table, layers: Table) -> Table:
    """The baseline table with the last block's value beside the mean over layers."""
    last: dict[tuple[object, object], dict[str, object]] = {}
    for row in layers.rows:
        key = (row.get("model_name"), row.get("dataset"))
        if key not in last or row["layer"] > last[key]["layer"]:
            last[key] = row
    columns: list[Column] = []
    for column in baseline.columns:
        columns.append(column)
        if column.name == "mean":
            columns.append(replace(column, name="last_block", label="Last block", sd=None))
    rows = [
        {**row, "last_block": last.get((row.get("model_name"), row.get("dataset")), {}).get(str(row["metric"]))}
        for row in baseline.rows
    ]
    return baseline.model_copy(update={"columns": columns, "rows": rows})
