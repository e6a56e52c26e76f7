"""Rows that are means over seeds already: how many seeds stand behind them, their intervals and differences."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd

from attndrift.analysis.configurations import Prepared
from attndrift.analysis.intervals import given_row, welch_of
from attndrift.analysis.measures import Measure
from attndrift.analysis.numbers import number
from attndrift.analysis.result import Table
from attndrift.analysis.settings import AnalysisSettings
from attndrift.results.columns import Column
from attndrift.results.means import sd_column, seeds_behind

_MOST_PAIRS = 200


def seed_counts(runs: pd.DataFrame, by: str = "configuration") -> pd.Series[int]:
    """How many seeds stand behind each group of ``runs``: distinct ones of single runs, and those of rows that are means."""
    behind = seeds_behind(runs)
    single = behind == 1
    counted = runs["replicate"].where(single).groupby(runs[by], sort=False).nunique()
    return counted + behind.where(~single, 0).groupby(runs[by], sort=False).sum()


def seeds_in(runs: pd.DataFrame) -> int:
    """How many seeds a study has: distinct ones, or those of its best-supported mean."""
    return int(max(runs["replicate"].nunique(), seeds_behind(runs).max())) if len(runs) else 0


def pooled(runs: pd.DataFrame, measures: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Mean and standard deviation over all seeds of each configuration that has a row which is a mean.

    A mean without a standard deviation leaves that of its configuration unknown.
    """
    weight = seeds_behind(runs)
    if not (weight > 1).any():
        return pd.DataFrame(), pd.DataFrame()
    group = runs["configuration"]
    chosen = (weight > 1).groupby(group, sort=False).transform("any")
    runs, weight, group = runs[chosen], weight[chosen], group[chosen]
    means, spreads = {}, {}
    for name in measures:
        value = runs[name].astype("float64")
        own = (
            runs[sd_column(name)].astype("float64")
            if sd_column(name) in runs.columns
            else pd.Series(np.nan, index=runs.index)
        )
        own = own.where(weight > 1, 0.0)
        n = weight.where(value.notna(), 0).groupby(group, sort=False).sum()
        mean = (weight * value).groupby(group, sort=False).sum(min_count=1) / n
        squares = (weight - 1) * own**2 + weight * (value - group.map(mean)) ** 2
        total = squares.groupby(group, sort=False).agg(lambda part: part.sum(skipna=False))
        means[name], spreads[sd_column(name)] = mean, (total / (n - 1)) ** 0.5
    return pd.DataFrame(means), pd.DataFrame(spreads)


def means_tables(prepared: Prepared, settings: AnalysisSettings) -> list[Table]:
    """The tables ``reported_means`` and ``reported_differences``; none where every row is a single run."""
    runs = prepared.adapted
    runs = runs[seeds_behind(runs) > 1]
    measures = [
        m for m in prepared.measures if sd_column(m.name) in runs.columns and runs[sd_column(m.name)].notna().any()
    ]
    if runs.empty or not measures:
        return []
    return [_intervals(runs, measures, settings.level), _differences(runs, measures, settings.level)]


def _intervals(runs: pd.DataFrame, measures: list[Measure], level: float) -> Table:
    rows: list[dict[str, Any]] = []
    for run, n in zip(runs.to_dict("records"), seeds_behind(runs), strict=True):
        for measure in measures:
            mean, sd = run[measure.name], run[sd_column(measure.name)]
            if pd.isna(mean) or pd.isna(sd):
                continue
            row = given_row(mean, sd, int(n), level)
            given = {
                "configuration": run["configuration"],
                "run_id": run["run_id"],
                "measure": measure.name,
                "n_seeds": int(n),
            }
            rows.append(given | {name: row[name] for name in ("mean", "sd", "low", "high", "reason")})
    columns = [Column("configuration", "Configuration"), Column("measure", "Measure"), Column("n_seeds", "Seeds")]
    columns += [Column("mean", "Mean", sd="sd"), Column("low", "Low"), Column("high", "High"), Column("reason", "Note")]
    return Table(
        name="reported_means",
        title="Means over seeds, as they were given",
        columns=columns,
        rows=rows,
        notes=[
            f"Low and high: {100 * level:g}% interval of Student's t over the seeds. None below three seeds, and where they do not differ."
        ],
    )


def _differences(runs: pd.DataFrame, measures: list[Measure], level: float) -> Table:
    """Differences of methods under equal conditions, from means, standard deviations and numbers of seeds (Welch)."""
    rows: list[dict[str, Any]] = []
    counted = runs.assign(seeds_behind=seeds_behind(runs))
    for _, group in counted.groupby("conditions", sort=False):
        for one, other in itertools.combinations(group.to_dict("records"), 2):
            for measure in measures:
                spread = sd_column(measure.name)
                numbers = [one[measure.name], one[spread], other[measure.name], other[spread]]
                if any(pd.isna(one) for one in numbers) or len(rows) >= _MOST_PAIRS:
                    continue
                n, m = one["seeds_behind"], other["seeds_behind"]
                of_one, of_other = (one[measure.name], one[spread], n), (other[measure.name], other[spread], m)
                low, high = (number(end) for end in welch_of(of_one, of_other, level)[:2])
                rows.append(
                    {
                        "first": one["configuration"], "second": other["configuration"], "measure": measure.name,
                        "first_seeds": int(n), "second_seeds": int(m),
                        "difference": of_one[0] - of_other[0], "low": low, "high": high,
                    }
                )  # fmt: skip
    columns = [Column("first", "First"), Column("second", "Second"), Column("measure", "Measure")]
    columns += [Column("first_seeds", "Seeds of the first"), Column("second_seeds", "Seeds of the second")]
    columns += [Column("difference", "First - second", signed=True), Column("low", "Low"), Column("high", "High")]
    return Table(
        name="reported_differences",
        title="Differences of reported means under equal settings",
        columns=columns,
        rows=rows,
        notes=[
            f"Low and high: {100 * level:g}% interval of Welch's t from means, standard deviations and seeds, unpaired."
        ],
    )
