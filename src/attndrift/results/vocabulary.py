"""What imported values must agree on: the words of columns, and columns that follow from others."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from attndrift.metrics.registry import structure_metrics
from attndrift.results.cells import NULLS
from attndrift.results.columns import Column
from attndrift.results.tables import TABLES, TableError, columns_of, transfer_sets

_OPEN = ("method", "loss", "head")
"""Columns whose words are open: a package, or somebody else's study, adds to them."""
_KEYS = {
    "losses": ["run_id", "loss"],
    "history": ["run_id", "step"],
    "layers": ["run_id", "step", "layer", "head", "metric"],
    "interpolation": ["run_id", "alpha"],
}


def words_of(column: Column) -> tuple[str, ...]:
    """The words that a column may hold, as its meaning lists them; empty where any text may stand."""
    words = column.meaning.partition(":")[0].split(" | ")
    return tuple(words) if len(words) > 1 and all(word.isidentifier() for word in words) else ()


def _spelling(text: str) -> str:
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
        known = words_of(column)
        spellings = {_spelling(word): word for word in known}
        replaced: dict[str, str | None] = {}
        found: dict[str, str] = {}
        for value in frame[column.name].dropna().unique():
            if not isinstance(value, str) or value in known:
                continue
            spelling = _spelling(value)
            if spelling in spellings:
                replaced[value] = spellings[spelling]
            elif known and value.lower() in NULLS:
                replaced[value] = None
            elif known:
                _refuse_unknown(value, column, where, notes)
            if found.setdefault(spelling, value) != value and spelling not in spellings:
                raise TableError(
                    f"{where}: column `{column.name}` holds `{found[spelling]}` and `{value}`; if they are one, "
                    f'--map "{column.name}:{value}={found[spelling]}"'
                )
        for old, new in replaced.items():
            same = (frame[column.name] == old).fillna(False).astype(bool)
            frame.loc[same, column.name] = new
            notes.append(f"{int(same.sum())} cells `{old}` of `{column.name}` read as {f'`{new}`' if new else 'null'}")


def _refuse_unknown(value: str, column: Column, where: str, notes: list[str]) -> None:
    known = words_of(column)
    spelling = _spelling(value)
    near = [word for word in known if spelling.startswith(_spelling(word)) or _spelling(word).startswith(spelling)]
    near = near or difflib.get_close_matches(spelling, [_spelling(word) for word in known], n=1, cutoff=0.6)
    if not near and column.name in _OPEN:
        notes.append(f"`{value}` of `{column.name}` is none of {', '.join(known)}: kept as a {column.name} of its own")
        return
    near = [word for word in known if near and _spelling(word) == _spelling(near[0])] or [known[0]]
    own = f', or to keep it apart, --map "{column.name}:{value}=their {value}"' if column.name in _OPEN else ""
    raise TableError(
        f"{where}: column `{column.name}` holds `{value}`; it has {', '.join(known)}. "
        f'If that is `{near[0]}`: --map "{column.name}:{value}={near[0]}"{own}'
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
