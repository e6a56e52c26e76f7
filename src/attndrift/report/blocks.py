"""What a report is made of: sections of blocks, which the Markdown and the HTML template both print."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from attndrift.analysis.formats import cell, heading
from attndrift.analysis.result import Finding, Table


class Figure(Protocol):
    """A drawn (or left out) figure, as ``attndrift.figures`` returns it."""

    @property
    def name(self) -> str: ...

    @property
    def files(self) -> Sequence[Path]: ...

    @property
    def caption(self) -> str | None: ...

    @property
    def left_out(self) -> str | None: ...


@dataclass(frozen=True)
class Text:
    """A paragraph; names between backticks are printed as code. ``warning`` sets it apart."""

    text: str
    warning: bool = False
    kind: str = "text"


@dataclass(frozen=True)
class Bullets:
    items: Sequence[str]
    kind: str = "bullets"


@dataclass(frozen=True)
class Findings:
    """Sentences of the analysis, those with evidence first."""

    items: Sequence[Finding]
    kind: str = "findings"


@dataclass(frozen=True)
class FigureBlock:
    """A figure; ``path`` is relative to the report, ``data`` a data URI."""

    name: str
    title: str
    caption: str
    path: str
    data: str
    section: str = "figures"
    alt: str = ""
    kind: str = "figure"


@dataclass(frozen=True)
class View:
    """Something to operate, in the HTML alone: ``runs``, ``heatmap`` or ``maps``."""

    name: str
    kind: str = "view"


@dataclass(frozen=True)
class Cell:
    """A printed value, and what it is sorted by: a number, else its text."""

    text: str
    number: float | None


@dataclass(frozen=True)
class Heading:
    text: str
    numeric: bool


@dataclass
class TableBlock:
    """A table ready to print. ``folded``: the HTML shows it on request. ``sortable``: columns sort on click."""

    name: str
    title: str
    headings: list[Heading]
    rows: list[list[Cell]]
    notes: list[str]
    folded: bool = False
    sortable: bool = False
    kind: str = "table"


Block = Text | Bullets | Findings | FigureBlock | View | TableBlock


@dataclass
class Section:
    """A heading with its blocks and subsections; ``key`` is the anchor."""

    key: str
    title: str
    blocks: list[Block] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)


# Columns that say which group a row belongs to: where all rows agree, one note says it for all.
_IDENTITY = (
    "model_name",
    "selection_name",
    "model",
    "selection",
    "dataset",
    "transfer_set",
    "scope",
    "status",
    "note",
    "Note",
    "Evidence",
)


def table_block(
    table: Table,
    *,
    caution: str | None = None,
    limit: int | None = None,
    folded: bool = False,
    sortable: bool = False,
) -> TableBlock:
    """``table`` as printed: empty columns dropped, columns that never vary said once below.

    ``caution`` (that a study has one seed) becomes the first note. Of more than ``limit`` rows the
    first are printed, and a note says so.
    """
    notes = [caution] if caution else []
    notes += [note for note in table.notes if note not in notes]
    columns = [column for column in table.columns if any(row.get(column.name) is not None for row in table.rows)]
    dropped = [heading(column) for column in table.columns if column not in columns] if table.rows else []
    constant: list[str] = []
    if len(table.rows) > 1:
        for column in list(columns):
            values = {str(row.get(column.name)) for row in table.rows}
            if column.name in _IDENTITY and len(values) == 1:
                columns.remove(column)
                if values == {""}:
                    continue
                constant.append(f"{column.label}: {values.pop()}")
    if constant:
        notes.append("All rows: " + "; ".join(constant) + ".")
    if dropped:
        notes.append("No value in any row, so not printed: " + ", ".join(dropped) + ".")
    rows = table.rows if limit is None else table.rows[:limit]
    if len(rows) < len(table.rows):
        notes.append(f"The first {len(rows)} of {len(table.rows)} rows; the whole is `tables/{table.name}.csv`.")
    if not table.rows:
        notes = notes or ["No rows."]
    return TableBlock(
        name=table.name,
        title=table.title,
        headings=[Heading(heading(c), _numeric(table.rows, c.name)) for c in columns],
        rows=[[Cell(cell(c, row), _number(row.get(c.name))) for c in columns] for row in rows],
        notes=notes,
        folded=folded,
        sortable=sortable,
    )


def counted(count: int, noun: str) -> str:
    """``1 run``, ``2 runs``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _numeric(rows: Sequence[dict[str, Any]], name: str) -> bool:
    first = next((row[name] for row in rows if row.get(name) is not None), None)
    return _number(first) is not None
