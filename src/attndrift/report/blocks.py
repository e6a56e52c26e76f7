"""What a report is made of: sections of blocks, which the Markdown and the HTML template both print."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from attndrift.analysis.digest import OverviewRow
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
    """Sentences of the analysis, each linked to its table. ``strength``: whether that is printed."""

    items: Sequence[Finding]
    kind: str = "findings"


@dataclass(frozen=True)
class FigureBlock:
    """A figure; ``path`` is relative to the report, ``data`` a data URI. ``caption`` is printed where ``long``."""

    name: str
    title: str
    caption: str
    path: str
    data: str
    section: str = "figures"
    alt: str = ""
    long: bool = True
    kind: str = "figure"


@dataclass(frozen=True)
class Overview:
    """The first screen: a verdict, caveats, the front, and the table of methods; ``tints`` has 0..5 for each cell."""

    verdict: str
    caveats: Sequence[str]
    headings: Sequence[str]
    rows: Sequence[OverviewRow]
    tints: Sequence[Sequence[int]]
    note: str
    figure: FigureBlock | None
    kind: str = "overview"


@dataclass(frozen=True)
class View:
    """Something to operate, in the HTML alone: ``heatmap`` or ``maps``."""

    name: str
    kind: str = "view"


@dataclass(frozen=True)
class Cell:
    """A printed value, and what it is sorted by: a number, else its text."""

    text: str
    number: float | None


@dataclass(frozen=True)
class Heading:
    """``shown``: whether the column is shown before a reader picks columns."""

    text: str
    numeric: bool
    shown: bool = True


@dataclass
class TableBlock:
    """A table ready to print; ``kind`` is ``runs`` for the one that is sorted and filtered. ``csv``: where all of it is."""

    name: str
    title: str
    headings: list[Heading]
    rows: list[list[Cell]]
    notes: list[str]
    n_rows: int
    csv: str
    kind: str = "table"


Block = Text | Bullets | Findings | FigureBlock | Overview | View | TableBlock


@dataclass
class Section:
    """A heading with its blocks; ``key`` is the anchor, ``appendix`` says that it is folded at the end."""

    key: str
    title: str
    blocks: list[Block] = field(default_factory=list)
    appendix: bool = False


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
    limit: int | None = None,
    cited: Collection[int] = (),
    shown: Collection[str] = (),
    written: bool = True,
) -> TableBlock:
    """``table`` as printed: empty columns dropped, columns that never vary said once below.

    Of more than ``limit`` rows the first and the ``cited`` ones are printed, and a note says so. ``shown``: the columns
    that are shown at first; all where none are named. ``written``: whether the table lies as CSV beside the report.
    """
    notes = list(table.notes)
    columns = [column for column in table.columns if any(row.get(column.name) is not None for row in table.rows)]
    constant: list[str] = []
    if len(table.rows) > 1:
        for column in list(columns):
            values = {str(row.get(column.name)) for row in table.rows}
            if column.name in _IDENTITY and len(values) == 1:
                columns.remove(column)
                if values != {""}:
                    constant.append(f"{column.label}: {values.pop()}")
    if constant:
        notes.append("All rows: " + "; ".join(constant) + ".")
    rows = [row for place, row in enumerate(table.rows) if limit is None or place < limit or place in cited]
    csv = f"tables/{table.name}.csv" if written else ""
    if len(rows) < len(table.rows):
        notes.append(f"{len(rows)} of {len(table.rows)} rows" + (f"; all of them are in `{csv}`." if csv else "."))
    return TableBlock(
        name=table.name,
        title=table.title,
        headings=[Heading(heading(c), _numeric(table.rows, c.name), not shown or c.name in shown) for c in columns],
        rows=[[Cell(cell(c, row), _number(row.get(c.name))) for c in columns] for row in rows],
        notes=notes,
        n_rows=len(table.rows),
        csv=csv,
    )


def counted(count: int, noun: str) -> str:
    """``1 run``, ``2 runs``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _numeric(rows: Sequence[dict[str, Any]], name: str) -> bool:
    first = next((row[name] for row in rows if row.get(name) is not None), None)
    return _number(first) is not None
