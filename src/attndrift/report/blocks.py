"""What a report is made of, before it becomes Markdown or HTML: tables, figures, sections."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attndrift.analysis.formats import cell, heading
from attndrift.analysis.result import Column, Finding, Table

STRENGTHS = {"supported": 0, "no evidence": 1, "descriptive": 2, "too few": 3}
ONE_SEED = "One seed: descriptive only. No spread between seeds is known, so small differences mean nothing."


@dataclass(frozen=True)
class Cell:
    """Printed text, and the value by which a column is sorted (None: sorted last)."""

    text: str
    sort: float | str | None = None


@dataclass
class TableBlock:
    """A table ready to print."""

    title: str
    headings: list[str]
    numeric: list[bool]
    rows: list[list[Cell]]
    notes: list[str] = field(default_factory=list)
    folded: bool = False
    sortable: bool = False
    name: str = ""


@dataclass
class FigureBlock:
    """A figure with its number and caption."""

    number: int
    name: str
    title: str
    caption: str
    png: Path


@dataclass
class Section:
    """One part of the report."""

    id: str
    title: str
    paragraphs: list[str] = field(default_factory=list)
    bullets: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    more_findings: list[Finding] = field(default_factory=list)
    tables: list[TableBlock] = field(default_factory=list)
    figures: list[FigureBlock] = field(default_factory=list)
    explore: str | None = None


@dataclass
class Report:
    """The whole report."""

    title: str
    subtitle: str
    warnings: list[str]
    key_findings: list[Finding]
    sections: list[Section]
    explore: dict[str, Any]


def table_block(
    table: Table,
    *,
    single_seed: bool,
    columns: Sequence[str] | None = None,
    drop: Iterable[str] = (),
    limit: int = 200,
    folded: bool = False,
    sortable: bool = False,
    title: str | None = None,
) -> TableBlock | None:
    """``table`` for print; None where it has no rows.

    Columns without any value are left out. ``columns`` picks and orders, ``drop`` leaves out. The
    embedding drift stands beside every transfer accuracy, the last block beside the mean.
    """
    if not table.rows:
        return None
    dropped = set(drop)
    shown = [c for c in table.columns if c.name not in dropped and any(_there(row.get(c.name)) for row in table.rows)]
    if columns is not None:
        by_name = {c.name: c for c in shown}
        shown = [by_name[name] for name in columns if name in by_name]
    shown = _neighbours(shown)
    rows = [[Cell(cell(column, row), _sort_value(row.get(column.name))) for column in shown] for row in table.rows]
    notes = list(table.notes)
    if len(rows) > limit:
        notes.append(f"The first {limit} of {len(rows)} rows; all are in `tables/{table.name}.csv`.")
        rows = rows[:limit]
    if single_seed:
        notes = [ONE_SEED, *[note for note in notes if not note.startswith("One seed in every row")]]
    numeric = [_is_number(column, table.rows) for column in shown]
    headings = [heading(column) for column in shown]
    return TableBlock(title or table.title, headings, numeric, rows, notes, folded, sortable, table.name)


def _there(value: Any) -> bool:
    return value is not None and value != ""


def _neighbours(columns: list[Column]) -> list[Column]:
    """Move the drift of the embeddings to the transfer accuracies and the last block to the mean."""
    result = list(columns)
    names = [c.name for c in result]
    accuracies = [n for n in names if n.startswith("transfer_") and n.endswith("_accuracy")]
    if accuracies and "embedding_drift" in names:
        drift = result.pop(names.index("embedding_drift"))
        names = [c.name for c in result]
        result.insert(names.index(accuracies[0]), drift)
    names = [c.name for c in result]
    mean, last = "entropy_change_pct", "entropy_last_layer_change_pct"
    if mean in names and last in names and names.index(last) != names.index(mean) + 1:
        column = result.pop(names.index(last))
        names = [c.name for c in result]
        result.insert(names.index(mean) + 1, column)
    return result


def _sort_value(value: Any) -> float | str | None:
    if value is None:
        return None
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, (int, float)):
        return float(value) if math.isfinite(value) else None
    return str(value)


def _is_number(column: Column, rows: list[dict[str, Any]]) -> bool:
    for row in rows:
        value = row.get(column.name)
        if value is not None:
            return isinstance(value, (int, float)) and not isinstance(value, bool)
    return False


def by_strength(findings: Iterable[Finding]) -> list[Finding]:
    """The best supported first, in their own order where equal."""
    return sorted(findings, key=lambda finding: STRENGTHS.get(finding.strength, 9))
