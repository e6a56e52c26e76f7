"""Files of other programs as tables of cells, before anything is known of their columns.

The cells of a text file stay text, so that the run `1.10` is not the run `1.1`: their column's type decides what they
are (:mod:`attndrift.importing.cells`). Numbers of a JSON file keep the way they were written.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from attndrift.results.tables import TableError, read_parquet

SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl", ".ndjson", ".json")

_SEPARATORS = ",;\t|"
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class WrittenFloat(float):
    """A number of a JSON file that remembers how it was written."""

    text: str

    def __new__(cls, text: str) -> WrittenFloat:
        """``text`` as JSON writes a number."""
        number = super().__new__(cls, text)
        number.text = text
        return number


@dataclass
class ForeignTable:
    """The cells of a file; ``separator`` of a text file, and in words what was done to read it."""

    frame: pd.DataFrame
    separator: str | None = None
    notes: list[str] = field(default_factory=list)


def read_foreign(path: Path) -> ForeignTable:
    """Read a table. Raises :class:`TableError` for a file that is damaged or of no known form."""
    try:
        suffix = path.suffix.lower() if path.suffix.lower() in SUFFIXES else _form(path)
    except OSError as error:
        raise TableError(f"{path}: cannot be read ({error})") from error
    try:
        if suffix == ".parquet":
            table = ForeignTable(read_parquet(path))
        elif suffix in (".csv", ".tsv"):
            table = _read_text(_decoded(path), "\t" if suffix == ".tsv" else None)
        else:
            records = _records(_decoded(path), one=suffix == ".json")
            table = ForeignTable(pd.DataFrame(records, dtype=object))
    except (OSError, ValueError, OverflowError, RecursionError, MemoryError, csv.Error) as error:
        raise TableError(f"{path}: cannot be read as {suffix[1:]} ({error})") from error
    frame = table.frame
    frame.columns = [str(column).strip() for column in frame.columns]
    unnamed = [name for name in frame.columns if not name or re.fullmatch(r"Unnamed: \d+|__index_level_\d+__", name)]
    if unnamed:
        table.notes.append("columns without a name left out")
        table.frame = frame = frame.loc[:, ~frame.columns.isin(unnamed)]
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        raise TableError(f"{path}: the column `{twice[0]}` appears more than once")
    return table


def _form(path: Path) -> str:
    """The suffix that the content of a file of another name should have. Raises :class:`TableError` where it is none."""
    with path.open("rb") as file:
        start = file.read(4096)
    for magic, what in _NO_TABLES.items():
        if start.startswith(magic):
            raise TableError(f"{path}: {what}; use {', '.join(SUFFIXES)}")
    if start.startswith(b"PAR1"):
        return ".parquet"
    if b"\0" in start and not any(start.startswith(mark) for mark, _ in _BYTE_ORDER_MARKS):
        raise TableError(f"{path}: unknown form; use {', '.join(SUFFIXES)}")
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    return ".json" if text.startswith(b"[") else ".jsonl" if text.startswith(b"{") else ".csv"


_NO_TABLES = {
    b"PK\x03\x04": "a ZIP archive or an Excel workbook, which is not read; save its sheet as CSV",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook, which is not read; save its sheet as CSV",
    b"\x1f\x8b": "compressed; unpack it first",
    b"BZh": "compressed; unpack it first",
    b"SQLite format 3": "an SQLite file; export its table as CSV",
}


def _decoded(path: Path) -> str:
    content = path.read_bytes()
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if content.startswith(mark)), None)
    if encoding is None and b"\0" in content[:200]:
        # Spreadsheets write UTF-16 without a mark too: every other byte of Latin text is zero.
        encoding = "utf-16-le" if content[1:2] == b"\0" else "utf-16-be"
    try:
        return content.decode(encoding or "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is no UTF-8 text: {error}; save it again as UTF-8") from error


def _read_text(text: str, separator: str | None) -> ForeignTable:
    table = ForeignTable(pd.DataFrame())
    # Excel's own line, which says how the cells are separated.
    stated = re.match(r'"?sep=(.)"?[;,\t|]*\r?\n', text)
    if stated:
        separator, text = stated[1], text[stated.end() :]
    heading = re.sub(r'"[^"]*"', "", text.lstrip("\r\n").partition("\n")[0])
    table.separator = separator or max(_SEPARATORS, key=heading.count)
    reader = csv.reader(text.splitlines(keepends=True), delimiter=table.separator, strict=True, skipinitialspace=True)
    rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    if not rows:
        raise ValueError("it is empty")
    names, width = rows[0][1], len(rows[0][1])
    for line, row in rows[1:]:
        if any(cell.strip() for cell in row[width:]):
            raise ValueError(
                f"line {line} has {len(row)} cells, and the heading has {width}; is a decimal comma or a "
                "separator inside a cell without quotation marks?"
            )
    cells = [[cell.strip() for cell in row[:width]] + [""] * (width - len(row)) for _, row in rows[1:]]
    short = sum(len(row) < width for _, row in rows[1:])
    if short:
        table.notes.append(f"{short} rows are shorter than the heading; their last cells are null")
    table.frame = pd.DataFrame(cells, columns=names, dtype=object)
    return table


def _without_doubles(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name `{next(n for n in names if names.count(n) > 1)}` stands twice in one object")
    return found


def _records(text: str, *, one: bool) -> list[dict[str, object]]:
    """The records of a JSON list, or of one JSON object a line."""

    def load(part: str) -> object:
        return json.loads(part, parse_float=WrittenFloat, object_pairs_hook=_without_doubles)

    records = load(text) if one else [load(line) for line in text.splitlines() if line.strip()]
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise ValueError("a list of objects, one a row, is expected")
    return [dict(_flat(record)) for record in records]


def _flat(record: dict[str, object], before: str = "") -> Iterator[tuple[str, object]]:
    """The values of an object, those of objects within it under names with dots."""
    for name, value in record.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value
