"""One run, or the runs of a study, described."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from attndrift.files import refuse_links
from attndrift.metrics.registry import METRICS
from attndrift.results.columns import Column, metric_columns
from attndrift.sanitize import sanitize
from attndrift.study.collect import RUNS_FOLDER, planned_runs
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


def describe_study(folder: Path) -> list[dict[str, Any]]:
    """The runs of the study in ``folder``: name, status, and of each that has a record what it came to.

    ``retention_pct`` holds the retention of each transfer set and measure, in percent. Raises ``ValueError`` for a folder that is not a study's.
    """
    refuse_links(folder)
    found = []
    for name in planned_runs(folder):
        path = folder / RUNS_FOLDER / name
        described: dict[str, Any] = {"run_id": name}
        try:
            record = read_record(path)
        except ValueError as error:
            found.append({**described, "status": "damaged", "problem": str(error)})
            continue
        row = {} if record is None else record["row"]
        begun = "unfinished" if (path / SETTINGS).is_file() else "waiting"
        described["status"] = begun if record is None else record["status"]
        described["test_accuracy"] = row.get("test_accuracy")
        described["retention_pct"] = {
            column.removeprefix("transfer_").removesuffix("_retention_pct"): value
            for column, value in row.items()
            if column.startswith("transfer_") and column.endswith("_retention_pct") and value is not None
        }
        described |= {column.name: row.get(column.name) for column in _headline_columns()}
        described["problem"] = "" if record is None else record.get("problem") or ""
        found.append(described)
    return found


def _headline_columns() -> list[Column]:
    return [
        one for one in metric_columns("runs")
        if METRICS[one.metric].headline and one.statistic in ("change_pct", "mean", "value")
    ]  # fmt: skip


def print_study(runs: list[dict[str, Any]], console: Console | None = None) -> None:
    """Print the runs of a study with units: one a row, or one a block where the terminal is too narrow for that."""
    console = console or Console()
    rows = [_shown_values(run) for run in runs]
    headings = sorted(dict.fromkeys(name for row in rows for name in row), key=lambda name: name != "test")
    width = 14 + max((len(run["run_id"]) for run in runs), default=0) + sum(max(len(name), 7) + 2 for name in headings)
    if width <= console.width:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for name in ("run", "status", *headings):
            table.add_column(name, no_wrap=True, justify="left" if name in ("run", "status") else "right")
        for run, row in zip(runs, rows, strict=True):
            table.add_row(run["run_id"], run["status"], *(row.get(name, "") for name in headings))
        console.print(table)
    else:
        for run, row in zip(runs, rows, strict=True):
            # A name and its value stay on one line: no space inside is a place to break.
            values = [run["status"], *(f"{name} {value}".replace(" ", "\u00a0") for name, value in row.items())]
            lines = textwrap.wrap("  ".join(values), console.width, initial_indent="    ", subsequent_indent="    ")
            text = "\n".join([run["run_id"], *lines]).replace("\u00a0", " ")
            console.print(text, highlight=False, markup=False, soft_wrap=True)
    for run in [run for run in runs if run.get("problem")][:3]:
        console.print(sanitize(f"{run['run_id']}: {run['problem']}"), style="red", highlight=False, markup=False)


def _shown_values(run: dict[str, Any]) -> dict[str, str]:
    """What is printed of a run beside its status, by heading."""
    values = {"test": _cell(run.get("test_accuracy"), "{:.1%}")}
    for name, value in run.get("retention_pct", {}).items():
        values[f"{name.removesuffix('_zero_shot').replace('_', ' ')} retention"] = _cell(value, "{:.1f}%")
    for column in _headline_columns():
        form = "{:+.1f}%" if column.unit == "%" else "{:.3f}"
        values[column.short_label.removesuffix(", mean") or column.label] = _cell(run.get(column.name), form)
    return {name: value for name, value in values.items() if value}


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
