"""What the last collecting of a study found, beside its tables: the next one reads only the runs that changed since."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from attndrift.data.cache import code_key
from attndrift.files import replacing
from attndrift.results.tables import TABLES

COLLECTED = ".collected"
LONG = ("history", "layers")
"""Tables of which an unchanged run's rows are taken from the table as it lies there."""
SHORT = ("runs", "losses", "interpolation")
"""Tables whose rows are noted whole."""
_RECENT_NS = 2_000_000_000
_FILES = ("record.json", "history.jsonl", "interpolation.json", "soups.json")


@dataclass
class CollectedRun:
    """One run with a record.

    Attributes:
        signature: of its files; empty where it must be read again, whatever they are.
        rows: its rows in the tables that are short, by table.
        counts: the numbers of its rows in :data:`LONG`.
    """

    name: str
    signature: str
    rows: dict[str, list[dict[str, Any]]]
    counts: tuple[int, ...]


def signature_of(folder: Path) -> str:
    """Changes with the files in a run's ``folder`` that tables are made of. Empty where one changed a moment ago.

    A file system counts time in steps: a file that changes twice within one has the same time before and after.
    """
    parts: list[str] = []
    latest = 0
    for name in _FILES:
        try:
            found = os.stat(folder / name)
        except FileNotFoundError:
            parts.append("-")
            continue
        latest = max(latest, found.st_mtime_ns)
        parts.append(f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}")
    return "" if latest > time.time_ns() - _RECENT_NS else " / ".join(parts)


@dataclass
class Collected:
    """The runs whose rows are in the tables of a study, in their order."""

    runs: list[CollectedRun] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> Collected:
        """What was noted in ``folder``; nothing where its tables, or this package, are others since."""
        try:
            table = pq.read_table(folder / COLLECTED)
            told = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
            if told["code"] != code_key("pyarrow", "pandas") or told["tables"] != _tables_signature(folder):
                return cls()
            return cls(
                [
                    CollectedRun(row["name"], row["signature"], _short(json.loads(row["rows"])), tuple(row["counts"]))
                    for row in table.to_pylist()
                ]
            )
        except (OSError, pa.ArrowException, ValueError, KeyError, TypeError):
            return cls()

    def write(self, folder: Path) -> None:
        """Note them in ``folder``, whose tables hold them; nothing where every run is to be read again anyway."""
        if not any(run.signature for run in self.runs):
            (folder / COLLECTED).unlink(missing_ok=True)
            return
        table = pa.table(
            {
                "name": pa.array([run.name for run in self.runs], pa.string()),
                "signature": pa.array([run.signature for run in self.runs], pa.string()),
                "rows": pa.array([json.dumps(run.rows) for run in self.runs], pa.string()),
                "counts": pa.array([list(run.counts) for run in self.runs], pa.list_(pa.int64())),
            },
            metadata={"code": code_key("pyarrow", "pandas"), "tables": _tables_signature(folder)},
        )
        with replacing(folder / COLLECTED, sync=False) as temporary:
            pq.write_table(table, temporary, compression="zstd")


def _short(rows: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    return {name: list(rows[name]) for name in SHORT}


def _tables_signature(folder: Path) -> str:
    parts = []
    for name in TABLES:
        path = folder / f"{name}.parquet"
        found = path.stat() if path.is_file() else None
        parts.append(f"{found.st_size} {found.st_mtime_ns} {found.st_ino}" if found else "-")
    return " / ".join(parts)


def table_rows(folder: Path) -> dict[str, int]:
    """The number of rows of each table in ``folder``."""
    paths = {name: folder / f"{name}.parquet" for name in TABLES}
    return {name: pq.read_metadata(path).num_rows for name, path in paths.items() if path.is_file()}


def merged(
    table: str, folder: Path, before: Sequence[CollectedRun], now: Sequence[tuple[CollectedRun, bool]], new: pa.Table
) -> pa.Table:
    """The rows of the runs ``now`` in one of :data:`LONG`, in their order.

    Of each run, whether its rows are those in the table in ``folder``, which holds the runs ``before``; ``new`` holds
    the rows of the others. Raises ``ValueError`` where the two have other columns, or other numbers of rows than noted.
    """
    place = LONG.index(table)
    old = pq.read_table(folder / f"{table}.parquet")
    if not old.schema.equals(new.schema):
        raise ValueError(f"the table {table} has other columns now")
    starts: dict[str, int] = {}
    end = 0
    for run in before:
        starts[run.name], end = end, end + run.counts[place]
    pieces: list[tuple[pa.Table, int, int]] = []
    used = 0
    for run, kept in now:
        source, start = (old, starts[run.name]) if kept else (new, used)
        stop = start + run.counts[place]
        used += 0 if kept else run.counts[place]
        if pieces and pieces[-1][0] is source and pieces[-1][2] == start:
            start = pieces.pop()[1]
        pieces.append((source, start, stop))
    if (end, used) != (old.num_rows, new.num_rows):
        raise ValueError(f"the table {table} has other numbers of rows than noted")
    parts = [source.slice(start, stop - start) for source, start, stop in pieces]
    # In one piece, as a table that is made anew: equal tables are equal bytes.
    return pa.concat_tables(parts).combine_chunks() if parts else new
