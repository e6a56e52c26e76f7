"""What imported values must agree on: the words of columns, and columns that follow from others."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from attndrift.importing.cells import NULLS
from attndrift.losses.registry import LOSSES
from attndrift.methods.registry import HEADS, METHODS
from attndrift.metrics.registry import METRICS, layer_metrics, structure_metrics
from attndrift.results.columns import Column
from attndrift.results.tables import TABLES, TableError, columns_of, transfer_sets

_OPEN = ("method", "loss", "head", "metric", "guard")
"""Columns whose words are open: a package, or somebody else's study, adds to them."""
_KEYS = {
    "losses": ["run_id", "loss"],
    "history": ["run_id", "step"],
    "layers": ["run_id", "step", "layer", "head", "metric"],
    "interpolation": ["run_id", "alpha"],
}


def words_of(column: Column, table: str) -> tuple[str, ...]:
    """The words that a column may hold: names of what is registered, or as its meaning lists them; empty for any text."""
    if column.name == "method":
        return tuple(METHODS.names())
    if column.name == "head" and column.kind == "string":
        return tuple(HEADS.names())
    if column.name == "metric":
        return tuple(layer_metrics())
    if column.name == "guard":
        return ("retention_pct", *METRICS.names())
    if column.name == "loss" and table == "losses":
        return tuple(LOSSES.names())
    words = column.meaning.partition(":")[0].split(" | ")
    return tuple(words) if len(words) > 1 and all(word.isidentifier() for word in words) else ()


def spelling_of(text: str) -> str:
    """``text`` without what spellings of one word differ in: case, width, spaces, underscores, hyphens, slashes."""
    return re.sub(r"[\s_\-/]+", "", unicodedata.normalize("NFKC", text).casefold())


def map_values(frame: pd.DataFrame, table: str, mapping: Mapping[tuple[str, str], str]) -> set[tuple[str, str]]:
    """Replace (column, old value) by new values, in place; returns those that were found."""
    used = set()
    for (key, old), new in mapping.items():
        where, _, rest = key.partition(".")
        column = rest if where in TABLES else key
        if (where in TABLES and where != table) or column not in frame.columns:
            continue
        same = frame[column].map(lambda v, old=old: isinstance(v, str) and v.strip() == old).astype(bool)
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
            if column.name == "lora_targets":
                spelling = ",".join(sorted(spelling.split(",")))
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
    near = near or difflib.get_close_matches(spelling, [spelling_of(word) for word in known], n=1, cutoff=0.6)
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


def check_keys(frame: pd.DataFrame, table: str, where: str) -> None:
    """Raise :class:`TableError` where two rows are of one run and step (and layer, head and metric)."""
    keys = [name for name in _KEYS.get(table, []) if name in frame.columns]
    if len(keys) < 2:
        return
    twice = frame.duplicated(keys)
    if twice.any():
        row = frame.loc[twice, keys].iloc[0]
        what = ", ".join(f"{name} {value}" for name, value in row.items() if not pd.isna(value))
        raise TableError(f"{where}: {int(twice.sum())} rows are there twice, first {what}; keep one of them")


def _resolution(values: pd.Series[Any]) -> float:
    """Half of the last digit that the values were rounded to."""
    numbers = values.dropna().to_numpy(dtype=float)
    for digits in range(9):
        if np.allclose(numbers, np.round(numbers, digits), rtol=0, atol=1e-10):
            return 0.5 * 10.0**-digits
    return 0.0


def check_derived(runs: pd.DataFrame, where: str) -> None:
    """Raise :class:`TableError` where a column contradicts those that it follows from, beyond their rounding."""
    for name in transfer_sets(runs):
        start = f"transfer_{name}_zero_shot"
        _compare(runs, where, f"{start}_retention_pct", f"{start}_accuracy", f"{start}_pretrained", of_change=False)
    for metric in structure_metrics():
        _compare(runs, where, f"{metric}_change_pct", f"{metric}_final", f"{metric}_baseline", of_change=True)
    for small, large in (("trainable_parameters", "total_parameters"), ("selected_epoch", "epochs")):
        if small in runs.columns and large in runs.columns:
            wrong = (pd.to_numeric(runs[small]) > pd.to_numeric(runs[large])).fillna(False).astype(bool)
            if wrong.any():
                row = runs.loc[wrong].iloc[0]
                raise TableError(
                    f"{where}: run `{row['run_id']}` has `{small}` {row[small]} above `{large}` {row[large]}"
                )


def check_series(frame: pd.DataFrame, axis: str, where: str) -> None:
    """As :func:`check_derived`, for tables with a row a step or alpha: changes are relative to the row at 0 of the run."""
    if axis not in frame.columns:
        return
    start = frame[pd.to_numeric(frame[axis], errors="coerce") == 0].drop_duplicates("run_id").set_index("run_id")
    pairs = [(f"{metric}_change_pct", metric, True) for metric in structure_metrics()]
    pairs.append(("monitor_zero_shot_retention_pct", "monitor_zero_shot_accuracy", False))
    for derived, value, of_change in pairs:
        if {derived, value} <= set(frame.columns):
            before = f"{value} at {axis} 0"
            base = frame["run_id"].map(start[value].astype("float64"))
            _compare(frame.assign(**{before: base}), where, derived, value, before, of_change=of_change)


def _compare(runs: pd.DataFrame, where: str, derived: str, final: str, base: str, *, of_change: bool) -> None:
    if not {derived, final, base} <= set(runs.columns):
        return
    given, after, before = (runs[name].astype("float64") for name in (derived, final, base))
    safe = before.where(before > 0)
    expected = 100 * (after - before if of_change else after) / safe
    # What rounding of all three can change at most, and a little for another order of averaging.
    slack = 100 * (_resolution(after) / safe + _resolution(before) * after.abs() / safe**2) + _resolution(given)
    wrong = ((given - expected).abs() > 1.05 * slack + 0.5 + 0.02 * expected.abs()).fillna(False)
    if not wrong.any():
        return
    first = wrong.to_numpy().argmax()
    ratio = float((given[wrong] / expected[wrong]).median())
    unit = f"; it is a hundredth of it, so that --scale {derived}=100 may be meant" if abs(ratio - 0.01) < 0.002 else ""
    formula = f"100 x (`{final}` / `{base}`{' - 1' if of_change else ''})"
    raise TableError(
        f"{where}: in {int(wrong.sum())} of {len(runs)} rows `{derived}` contradicts {formula}: in row {first} it is "
        f"{given.iloc[first]:g}, and those give {expected.iloc[first]:.4g}{unit}. Correct it, or set one of them aside "
        f"(--rename {derived}=their_{derived})"
    )
