"""Several files of one table as one: other runs, or other columns of the same runs; what contradicts is refused by name."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from attndrift.importing.foreign import ForeignTable
from attndrift.results.tables import TableError

_KEYS = {
    "runs": ("run_id",),
    "history": ("run_id", "step"),
    "layers": ("run_id", "step", "layer", "head", "metric"),
    "interpolation": ("run_id", "alpha"),
    "losses": ("run_id", "loss"),
}
_CLOCKS = {"wall time", "relative time (wall)", "relative time (process)", "_timestamp", "_runtime"}
"""Columns that differ between two exports of one run; those of the first file stay."""


def join_files(
    name: str, first: tuple[str, ForeignTable], second: tuple[str, ForeignTable], rename: Mapping[str, str]
) -> tuple[str, ForeignTable]:
    """Two files (where, table) of the table ``name`` as one; ``rename``: old column -> ours.

    Rows are the same where run, step and so on are. Raises :class:`TableError` where one cell of such rows has two
    values, or where nothing names the run.
    """
    where = f"{first[0]}, {second[0]}"
    one, two = (_named(table.frame, name, rename) for _, table in (first, second))
    keys = [key for key in _KEYS[name] if key in one.columns and key in two.columns]
    if "run_id" not in keys and not (name == "runs" and "run_id" not in {*one.columns, *two.columns}):
        path = next(path for path, frame in ((first[0], one), (second[0], two)) if "run_id" not in frame.columns)
        raise TableError(
            f"two files for the table {name}: {where}; {path} names no run (`run_id`). Give one, or name them"
        )
    separators = {table.separator for _, table in (first, second)}
    joined = ForeignTable(_joined(one, two, keys, where), separators.pop() if len(separators) == 1 else None)
    joined.notes = [*dict.fromkeys([*first[1].notes, *second[1].notes]), f"rows of {second[0]} joined with it"]
    return where, joined


def _named(frame: pd.DataFrame, name: str, rename: Mapping[str, str]) -> pd.DataFrame:
    """``frame`` with its keys under our names, the cells as they are."""
    ours: dict[str, str] = {}
    for column in frame.columns:
        meant = rename.get(column, rename.get(f"{name}.{column}", column))
        key = meant if meant in _KEYS[name] else column.lower()
        if key in _KEYS[name] and key not in frame.columns and key not in ours.values():
            ours[column] = key
    return frame.rename(columns=ours).astype(object)


def _joined(one: pd.DataFrame, two: pd.DataFrame, keys: list[str], where: str) -> pd.DataFrame:
    if not keys:
        return pd.concat([one, two], ignore_index=True)
    left, right = (frame.set_index([frame[key].astype(str).str.strip() for key in keys]) for frame in (one, two))
    if not (left.index.is_unique and right.index.is_unique):
        # Which row is meant is asked later, with the rows' numbers.
        return pd.concat([one, two], ignore_index=True)
    both = left.index.intersection(right.index)
    for column in one.columns.intersection(two.columns).difference(keys):
        mine, theirs = left.loc[both, column], right.loc[both, column]
        differ = (mine.astype(str) != theirs.astype(str)) & ~_empty(mine) & ~_empty(theirs)
        if differ.any() and column.lower() not in _CLOCKS:
            row = differ[differ].index[0]
            place = ", ".join(
                f"{key} {value}" for key, value in zip(keys, row if len(keys) > 1 else [row], strict=True)
            )
            raise TableError(
                f"{where}: they contradict each other in {int(differ.sum())} rows, first {place}: `{column}` is {mine[row]} in one and "
                f"{theirs[row]} in the other; give one of them, or rename the column"
            )
    left, right = (frame.mask(frame.apply(_empty)) for frame in (left, right))
    return left.combine_first(right)[[*one.columns, *two.columns.difference(one.columns, sort=False)]].reset_index(
        drop=True
    )


def _empty(values: pd.Series) -> pd.Series:
    return values.isna() | (values.astype(str).str.strip() == "")
