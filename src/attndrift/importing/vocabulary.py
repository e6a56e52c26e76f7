"""What imported values must agree on: the words of columns, and columns that follow from others."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from attndrift.importing.adaptation import canonical_targets, method_meant
from attndrift.importing.cells import NULLS
from attndrift.importing.letters import spelling_of
from attndrift.losses.registry import LOSSES
from attndrift.methods.registry import HEADS, METHODS
from attndrift.metrics.registry import METRICS, layer_metrics
from attndrift.results.columns import Column
from attndrift.results.measures import MEASURES, retention_metric
from attndrift.results.tables import TABLES, TableError, columns_of

_OPEN = ("method", "loss", "head", "metric", "guard")
"""Columns whose words are open: a package, or somebody else's study, adds to them."""


def words_of(column: Column, table: str) -> tuple[str, ...]:
    """The words that a column may hold: names of what is registered, or as its meaning lists them; empty for any text."""
    if column.name == "method":
        return tuple(METHODS.names())
    if column.name == "head" and column.kind == "string":
        return tuple(HEADS.names())
    if column.name == "metric":
        return tuple(layer_metrics())
    if column.name == "guard":
        return (*map(retention_metric, MEASURES.names()), *METRICS.names())
    if column.name == "loss" and table == "losses":
        return tuple(LOSSES.names())
    words = column.meaning.partition(":")[0].split(" | ")
    return tuple(words) if len(words) > 1 and all(word.isidentifier() for word in words) else ()


def lists_as_text(frame: pd.DataFrame, table: str, where: str) -> pd.DataFrame:
    """``frame`` with the lists of a JSON or Parquet file as the schema writes them: ``["q", "v"]`` as ``q,v``.

    Raises :class:`TableError` for a list in a column that holds one value.
    """
    frame = frame.copy()
    for column in columns_of(table, frame):
        if column.name not in frame.columns or frame[column.name].dtype != object:
            continue
        lists = [isinstance(cell, (list, tuple, np.ndarray)) for cell in frame[column.name]]
        if not any(lists):
            continue
        between = {"loss": "+", "lora_targets": ","}.get(column.name)
        if between is None:
            cell = frame.loc[lists, column.name].iloc[0]
            raise TableError(f"{where}: column `{column.name}` holds the list {list(cell)!r}; it has one value a row")
        frame[column.name] = [
            between.join(str(part) for part in cell) if is_list else cell
            for cell, is_list in zip(frame[column.name], lists, strict=True)
        ]
    return frame


def map_values(frame: pd.DataFrame, table: str, mapping: Mapping[tuple[str, str], str]) -> set[tuple[str, str]]:
    """Replace (column, old value) by new values, in place; returns those that were found."""
    used = set()
    for (key, old), new in mapping.items():
        where, _, rest = key.partition(".")
        column = rest if where in TABLES else key
        if (where in TABLES and where != table) or column not in frame.columns:
            continue
        old_form = unicodedata.normalize("NFC", old)
        same = frame[column].map(
            lambda v, old=old_form: isinstance(v, str) and unicodedata.normalize("NFC", v.strip()) == old
        )
        same = same.astype(bool)
        if same.any():
            frame.loc[same, column] = new
            used.add((key, old))
    return used


def check_words(frame: pd.DataFrame, table: str, where: str, notes: list[str]) -> None:
    """Bring the words of text columns to the schema's spelling, in place.

    Raises :class:`TableError` for a word that is near a known one, one that a closed column does not have, and two
    spellings of one word.
    """
    for column in columns_of(table, frame):
        if column.kind != "string" or column.name not in frame.columns or column.name == "run_id":
            continue
        if column.name == "loss" and table == "runs":
            continue  # names with weights, see attndrift.importing.losses
        known = words_of(column, table)
        spellings = {spelling_of(word): word for word in known}
        replaced: dict[str, str | None] = {}
        found: dict[str, str] = {}
        for value in frame[column.name].dropna().unique():
            if not isinstance(value, str) or value in known:
                continue
            spelling = spelling_of(value)
            targets = canonical_targets(value) if column.name == "lora_targets" else None
            if targets:
                if targets != value:
                    replaced[value] = targets
                continue
            if spelling in spellings:
                replaced[value] = spellings[spelling]
            elif known and value.lower() in NULLS:
                replaced[value] = None
            elif known:
                refuse_unknown(value, column.name, known, where, notes)
            if found.setdefault(spelling, value) != value and spelling not in spellings:
                raise TableError(
                    f"{where}: column `{column.name}` holds `{found[spelling]}` and `{value}`; if they are one, "
                    f'--map "{column.name}:{value}={found[spelling]}"'
                )
        for old, new in replaced.items():
            same = (frame[column.name] == old).fillna(False).astype(bool)
            frame.loc[same, column.name] = new
            notes.append(f"{int(same.sum())} cells `{old}` of `{column.name}` read as {f'`{new}`' if new else 'null'}")


def refuse_unknown(
    value: str, column: str, known: Sequence[str], where: str, notes: list[str], *, within: str | None = None
) -> None:
    """Raise :class:`TableError` for a word that is near one of ``known``, and for any word of a closed column.

    ``within``: the cell that the word is a part of.
    """
    spelling, cell = spelling_of(value), within or value
    near = [word for word in known if spelling.startswith(spelling_of(word)) or spelling_of(word).startswith(spelling)]
    meant = method_meant(value) if column == "method" else None
    if not near and meant in known:
        near = [str(meant)]
    near = near or difflib.get_close_matches(spelling, [spelling_of(word) for word in known], n=1, cutoff=0.6)
    if column in _OPEN and value.startswith("their "):
        near = []
    if not near and column in _OPEN:
        notes.append(f"`{value}` of `{column}` is none of {', '.join(known)}: kept as a {column} of its own")
        return
    near = [word for word in known if near and spelling_of(word) == spelling_of(near[0])]
    if not near:
        raise TableError(
            f"{where}: column `{column}` holds `{cell}`; it has {', '.join(known)}. Say which it is: "
            f'--map "{column}:{cell}=ONE_OF_THESE"'
        )
    own = f', or to keep it apart, --map "{column}:{cell}=their {cell}"' if column in _OPEN else ""
    raise TableError(
        f"{where}: column `{column}` holds `{cell}`; it has {', '.join(known)}. "
        f'If that is `{near[0]}`: --map "{column}:{cell}={cell.replace(value, near[0])}"{own}'
    )
