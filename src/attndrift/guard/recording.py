"""The table ``guard`` of a guarded training, in a folder that ``attndrift analyze`` reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from attndrift.drift.recording import write_parquet
from attndrift.guard.events import GuardEvent

GUARD = "guard.parquet"
_SCHEMA = pa.schema(
    {
        "run_id": pa.string(), "step": pa.int64(), "epoch": pa.float64(), "action": pa.string(), "metric": pa.string(),
        "limit": pa.float64(), "value_before": pa.float64(), "bound_before": pa.float64(), "value": pa.float64(),
        "bound": pa.float64(), "standard_error": pa.float64(), "alpha": pa.float64(), "lr_scale": pa.float64(),
        "loss_weight": pa.float64(), "accuracy_before": pa.float64(), "accuracy": pa.float64(),
        "measurements": pa.int64(),
    }
)  # fmt: skip


def write_events(events: Sequence[GuardEvent], run_id: str, folder: Path) -> None:
    """Write the table ``guard`` into ``folder``, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [row for event in events for row in event.rows(run_id)]
    write_parquet(pa.Table.from_pylist(rows, schema=_SCHEMA), folder / GUARD)
