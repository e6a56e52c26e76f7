"""Values within their range that look as if they were in another unit: they are pointed out, never converted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from attndrift.metrics.registry import structure_metrics
from attndrift.results.tables import Tables, columns_of

_AXES = {"runs": None, "history": "step", "interpolation": "alpha"}


def unit_hints(tables: Tables) -> list[str]:
    """In words: fractions in columns of percent, bits for nats."""
    found: list[str] = []
    for table in _AXES:
        frame: pd.DataFrame = getattr(tables, table)
        for column in (known.name for known in columns_of(table, frame)):
            if column not in frame.columns or not column.endswith(("_retention_pct", "_change_pct")):
                continue
            values = frame[column].dropna()
            if values.empty:
                continue
            if column.endswith("_retention_pct"):
                found += [f"table {table}: {text}" for text in _retention(column, values)]
            elif column.endswith("_change_pct") and not any(_confirmed(tables, one, column) for one in ("runs", table)):
                found += [f"table {table}: {text}" for text in _change(column, values)]
    entropy = tables.runs["entropy_baseline"].dropna()
    if len(entropy) and entropy.median() > 6.5:
        found.append(
            f"table runs: `entropy_baseline` is {entropy.median():.3g}; more than ln(576) = 6.36, the most that "
            "24 x 24 patches allow: is it in bits? It must be in nats"
        )
    return found


def _retention(column: str, values: pd.Series[Any]) -> Iterator[str]:
    small = values[(values > 0) & (values <= 1.5)]
    if len(small) and len(small) < len(values):
        yield (
            f"{len(small)} of {len(values)} values of `{column}` are at most 1.5; it must be in percent in every row "
            "(a retention of 0.86 is 86)"
        )
    elif len(small):
        yield (
            f"`{column}` lies in {values.min():.3g} .. {values.max():.3g}; it must be in percent (a retention of 0.86 is "
            f"86). If it is a fraction: --scale {column}=100"
        )


def _change(column: str, values: pd.Series[Any]) -> Iterator[str]:
    moved = values[values != 0]
    if len(moved) and moved.abs().max() <= 1:
        yield (
            f"`{column}` lies in {values.min():.3g} .. {values.max():.3g}; it must be in percent (half of it gone is -50). "
            f"If it is a fraction: --scale {column}=100"
        )


def _confirmed(tables: Tables, table: str, column: str) -> bool:
    """Whether the values beside the changes of a metric settle their unit: contradictions are refused before.

    Where ``runs`` settles it, it is settled in the tables that are compared with it.
    """
    metric = next((name for name in structure_metrics() if column.startswith(f"{name}_")), None)
    frame: pd.DataFrame = getattr(tables, table)
    axis = _AXES[table]
    if metric is None:
        return False
    if axis is None:
        ends = frame[[f"{metric}_baseline", f"{metric}_final", f"{metric}_change_pct"]]
    else:
        ends = frame.loc[frame[axis] > 0, [metric, f"{metric}_change_pct"]]
        if frame.loc[frame[axis] == 0, metric].isna().all():
            return False
    return bool(ends.notna().all(axis=1).any())
