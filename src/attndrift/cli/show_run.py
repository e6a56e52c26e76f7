"""One run, described."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from attndrift.files import refuse_links
from attndrift.results.columns import metric_columns
from attndrift.study.record import RECORD, SETTINGS, read_record, read_settings
from attndrift.study.settings import own_fields


def _shown() -> list[str]:
    """The columns of a run that are printed: its settings, and what was measured."""
    settings = ["model", "model_revision", "dataset", "method", *own_fields(), "loss", "learning_rate", "seed"]
    measured = [one.name for one in metric_columns("runs") if one.statistic not in ("baseline", "final")]
    return [
        "status", *settings, "parent_run", "outcome", "selected_epoch", "best_val_accuracy", "test_accuracy",
        "trainable_parameters", *measured, "loss_active_fraction", "guard", "guard_at_least", "guard_at_most",
        "guard_outcome",
    ]  # fmt: skip


def describe_run(folder: Path) -> dict[str, Any]:
    """The record of the run in ``folder``; of one that has none yet, its settings and state.

    Raises ``ValueError`` for a folder that is not a run's, or one of another version.
    """
    refuse_links(folder, (RECORD, SETTINGS, "resume"))
    record = read_record(folder)
    if record is not None:
        return record
    if (folder / SETTINGS).is_file():
        states = sorted(p.name for p in (folder / "resume").glob("step-*"))
        return {**read_settings(folder), "status": "unfinished", "resumable_states": states}
    raise ValueError(f"{folder}: not the folder of a run (no {SETTINGS}, no {RECORD}); they are in STUDY/runs/")


def print_run(described: dict[str, Any], console: Console | None = None) -> None:
    """Print a run's outcome and, where it has one, its transfer."""
    console = console or Console()
    row = described.get("row", {})
    table = Table(title=str(described.get("run_id", "run")), show_header=False, title_justify="left")
    if not row:
        table.add_row("status", str(described.get("status")))
        table.add_row("resumable states", ", ".join(described.get("resumable_states", [])) or "none yet")
    for name in _shown():
        if row.get(name) is not None:
            value = row[name]
            table.add_row(name, f"{value:.6g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int)
                          and not isinstance(value, bool) and name != "seed" else str(value))  # fmt: skip
    for name, value in row.items():
        if name.startswith("transfer_") and value is not None:
            table.add_row(name, f"{value:.6g}" if isinstance(value, float) else str(value))
    if described.get("problem"):
        table.add_row("problem", str(described["problem"]))
    for reason in described.get("nulls", {}).items():
        table.add_row("null: " + reason[0], reason[1])
    console.print(table)
