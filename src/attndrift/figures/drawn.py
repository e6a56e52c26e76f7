"""Which figures lie drawn already, of equal inputs and untouched since: those need not be drawn again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from attndrift.analysis.result import PendingAnalysis
from attndrift.data.cache import code_key
from attndrift.figures.registry import FIGURES
from attndrift.files import read_json, sha256, write_json
from attndrift.results.tables import TABLES, Tables

if TYPE_CHECKING:
    from attndrift.analysis.image_intervals import Outcomes
    from attndrift.analysis.result import Analysis

DRAWN = ".drawn.json"
"""In a folder of figures: from what each was drawn, and the hashes of its files."""


@dataclass
class FigureResult:
    """One figure: its files (PNG, SVG or PDF, and CSV) and caption, or why it was left out."""

    name: str
    title: str
    files: list[Path] = field(default_factory=list)
    caption: str | None = None
    left_out: str | None = None

    def path(self, suffix: str) -> Path | None:
        """The file that ends in ``suffix`` (``.png``, ``.svg``, ``.csv``); None where the figure was left out."""
        return next((path for path in self.files if path.suffix == suffix), None)


def inputs_key(
    tables: Tables,
    maps: Path | Mapping[str, Any] | None,
    analysis: Analysis | PendingAnalysis | None,
    outcomes: Outcomes | None,
    form: str,
) -> str | None:
    """Changes with all that figures are drawn from, and with the code; None where that cannot be told."""
    total = hashlib.sha256(f"{code_key('matplotlib', 'numpy', 'pandas', 'pillow', 'scipy')} {form}".encode())
    try:
        for name in TABLES:
            total.update(_content(getattr(tables, name)))
        for run, path in sorted((maps or {}).items()) if isinstance(maps, Mapping) or maps is None else ():
            found = Path(path).stat()
            total.update(f"{run} {path} {found.st_size} {found.st_mtime_ns}\n".encode())
    except (pa.ArrowException, OSError, TypeError):
        return None
    if isinstance(maps, Path):
        return None
    if analysis is not None:
        # One that is pending will follow from the tables, the outcomes and its settings.
        text = analysis.settings.model_dump_json() if isinstance(analysis, PendingAnalysis) else analysis.to_json()
        total.update(text.encode())
    for key, outcome in sorted((outcomes or {}).items()):
        total.update(f"{key} {len(outcome.adapted)}".encode())
        total.update(outcome.adapted.tobytes() + outcome.pretrained.tobytes())
    return total.hexdigest()


def _content(frame: Any) -> pa.Buffer:
    table = pa.Table.from_pandas(frame, preserve_index=False)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def held_figures(folder: Path, key: str | None, names: Iterable[str]) -> dict[str, FigureResult]:
    """Of ``names``, the figures in ``folder`` that were drawn from the inputs of ``key``, with files as they were left."""
    held: dict[str, FigureResult] = {}
    if key is None:
        return held
    entries = _entries(folder)
    # Another package may have changed without another version.
    for name in (name for name in names if FIGURES.origin(name) == "attndrift"):
        with suppress(OSError, KeyError, TypeError, AttributeError):
            entry = entries[name]
            if entry["key"] == key and all(sha256(folder / file) == told for file, told in entry["files"].items()):
                files = [folder / file for file in entry["files"]]
                held[name] = FigureResult(name, FIGURES[name].title, files, entry["caption"], entry["left_out"])
    return held


def note_figures(folder: Path, key: str | None, results: Iterable[FigureResult]) -> None:
    """Write down from what these figures were drawn."""
    if key is None:
        return
    told = {
        one.name: {
            "key": key,
            "files": {path.name: sha256(path) for path in one.files},
            "caption": one.caption,
            "left_out": one.left_out,
        }
        for one in results
    }
    write_json(folder / DRAWN, {**_entries(folder), **told}, sync=False)


def _entries(folder: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        content = read_json(folder / DRAWN)
        return content if isinstance(content, dict) else {}
    return {}
