"""Imported rows that are means over seeds: cells such as ``91.2 ± 0.3``, and what a mean must agree with."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from attndrift.methods.registry import PRETRAINED
from attndrift.results.means import SEEDS, sd_column, seeds_behind
from attndrift.results.tables import TableError, columns_of

_SPREAD = re.compile(r"\$?\s*(?P<mean>[^±$\\]*\d\s*%?)\s*(?:±|\\pm\b|\+\s*/\s*[-−]|\+[-−])\s*(?P<sd>[^±$\\]*\d\s*%?)\s*\$?")  # fmt: skip

_LONGEST = 80


def split_spreads(frame: pd.DataFrame, table: str, where: str, notes: list[str]) -> pd.DataFrame:
    """``frame`` with cells of mean and spread, such as ``91.2 ± 0.3``, as two columns.

    Raises :class:`TableError` where a spread has no column, or is there already.
    """
    for column in columns_of(table, frame):
        name, spread = column.name, sd_column(column.name)
        if column.kind == "string" or name not in frame.columns or pd.api.types.is_numeric_dtype(frame[name].dtype):
            continue
        matches = [
            _SPREAD.fullmatch(cell.strip()) if isinstance(cell, str) and len(cell) < _LONGEST else None
            for cell in frame[name]
        ]
        if not any(matches):
            continue
        both = np.array([match is not None for match in matches])
        first = frame.loc[both, name].iloc[0]
        if spread in frame.columns:
            raise TableError(
                f"{where}: column `{name}` holds `{first}`, and there is a column `{spread}` too; give one"
            )
        frame = frame.assign(**{spread: None})
        if spread not in {one.name for one in columns_of(table, frame)}:
            raise TableError(f"{where}: column `{name}` holds `{first}`; only measures of the table runs have a spread")
        frame[name] = frame[name].astype(object)
        for row, match in zip(frame.index, matches, strict=True):
            if match is None:
                continue
            mean, sd = (match[part].strip() for part in ("mean", "sd"))
            sign = "%" if "%" in mean + sd else ""
            frame.at[row, name], frame.at[row, spread] = (part.removesuffix("%").rstrip() + sign for part in (mean, sd))
        notes.append(
            f"{int(both.sum())} cells of `{name}` such as `{first}` read as a mean and its standard deviation over seeds, "
            f"`{spread}`"
        )
    return frame


def check_means(runs: pd.DataFrame, where: str, hints: list[str]) -> None:
    """Raise :class:`TableError` where number of seeds, standard deviations and means contradict each other."""
    behind = seeds_behind(runs)
    for column in columns_of("runs", runs):
        spread = sd_column(column.name)
        if spread not in runs.columns or column.name not in runs.columns:
            continue
        sd, mean = pd.to_numeric(runs[spread]), pd.to_numeric(runs[column.name])
        if SEEDS not in runs.columns or (runs[SEEDS].isna() & sd.notna()).any():
            raise TableError(
                f"{where}: `{spread}` is a standard deviation over seeds, and `{SEEDS}` does not say of how many; "
                f"for one number in all rows: --set {SEEDS}=5"
            )
        _refuse_row(runs, (behind == 1) & (sd > 0), where, f"has {SEEDS} 1, and a standard deviation in `{spread}`")
        _refuse_row(
            runs, sd.notna() & mean.isna(), where, f"has a standard deviation in `{spread}`, and no `{column.name}`"
        )
        if column.high == 1.0 and column.low == 0.0:
            # No values of 0..1 with this mean lie further apart.
            most = (mean * (1 - mean)).clip(lower=0) * behind / (behind - 1).clip(lower=1)
            unit = f"is more than values of 0..1 can have around `{column.name}`; in percent? --scale {spread}=0.01"
            _refuse_row(runs, sd > most**0.5 + 0.005, where, f"has a standard deviation in `{spread}` that {unit}")
    if "seed" in runs.columns:
        _refuse_row(
            runs, (behind > 1) & runs["seed"].notna(), where,
            f"is a mean over several seeds (`{SEEDS}`) and names one in `seed`; one of the two is wrong, and "
            "--rename seed=their_seed sets the other aside",
        )  # fmt: skip
    single = (behind == 1) & (runs["method"] != PRETRAINED).fillna(True)
    if (behind > 1).any() and single.any():
        hints.append(
            f"{int((behind > 1).sum())} rows of `runs` are means over seeds and {int(single.sum())} are single runs; "
            "a mean beside the runs that it is made of counts them twice"
        )


def _refuse_row(runs: pd.DataFrame, wrong: pd.Series[bool], where: str, what: str) -> None:
    wrong = wrong.fillna(False).astype(bool)
    if wrong.any():
        raise TableError(f"{where}: run `{runs.loc[wrong, 'run_id'].iloc[0]}` {what}")
