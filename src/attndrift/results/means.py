"""Rows of the table ``runs`` that are means over seeds: how many seeds, and the standard deviation of each measure."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from attndrift.results.columns import Column

SEEDS = "n_seeds"
_SEEDS = Column(SEEDS, kind="int", low=1.0, meaning="seeds that the row is a mean of; null or 1: a single run")


def sd_column(measure: str) -> str:
    """The column that holds the standard deviation of ``measure`` over the seeds of a row."""
    return f"{measure}_sd"


def columns_of_means(columns: Iterable[Column], names: Iterable[str]) -> list[Column]:
    """``n_seeds``, and the standard deviations of the measures among ``columns``; those that ``names`` has."""
    given = set(names)
    found = [_SEEDS] if SEEDS in given else []
    for column in columns:
        spread = sd_column(column.name)
        measured = column.metric or column.name.startswith("transfer_") or column.name.endswith("_accuracy")
        if spread in given and measured and column.kind == "float":
            meaning = f"standard deviation of `{column.name}` over the seeds of the row"
            found.append(Column(spread, meaning=meaning, low=0.0, high=column.high))
    return found


def seeds_behind(runs: pd.DataFrame) -> pd.Series[int]:
    """How many seeds stand behind each row of ``runs``: ``n_seeds`` where the row is a mean, 1 where it is a run.

    >>> seeds_behind(pd.DataFrame({"run_id": ["mean", "run"], "n_seeds": [5, None]})).tolist()
    [5, 1]
    """
    if SEEDS not in runs.columns:
        return pd.Series(1, index=runs.index)
    return pd.to_numeric(runs[SEEDS]).fillna(1).astype(int)
