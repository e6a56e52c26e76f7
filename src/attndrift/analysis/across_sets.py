"""Several test sets side by side: corrupted images, how transfer sets agree, and damaged runs beside healthy ones."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from attndrift.analysis.configurations import Prepared, configuration_means
from attndrift.analysis.intervals import spearman
from attndrift.analysis.measures import ACCURACIES, measured_columns, retention
from attndrift.analysis.numbers import number
from attndrift.analysis.result import Table
from attndrift.analysis.settings import AnalysisSettings
from attndrift.analysis.summary import plain_columns, records
from attndrift.results.columns import Column
from attndrift.results.tables import corruptions

_FEWEST = 4
"""Configurations below which no rank correlation is given."""


def across_sets_tables(prepared: Prepared, settings: AnalysisSettings) -> list[Table]:
    """The tables ``corruption``, ``transfer_agreement`` and ``damage``; those that the runs have no columns for are absent."""
    made = (_corruption(prepared), _agreement(prepared, settings), _damage(prepared, settings))
    return [table for table in made if table is not None]


def _corruption(prepared: Prepared) -> Table | None:
    """Accuracy on corrupted images, a row a configuration: the mean over corruptions, and each of them."""
    names = [name for name in corruptions(prepared.runs) if prepared.adapted[_corrupted(name)].notna().any()]
    if not names:
        return None
    runs = prepared.adapted.copy()
    columns = [_corrupted(name) for name in names]
    # A mean over other corruptions is another measure, so that runs which lack one have no mean.
    runs["corruption_mean"] = runs[columns].mean(axis=1, skipna=False)
    runs["corruption_loss"] = runs["test_accuracy"] - runs["corruption_mean"]
    measures = ["test_accuracy", "corruption_mean", "corruption_loss", *columns]
    groups = runs.groupby("configuration", sort=False)
    means, spread = groups[measures].mean(), groups["corruption_mean"].std()
    facts = groups[["model_name", "dataset", "variant", "learning_rate"]].first().assign(
        n_runs=groups.size(), corruption_mean_sd=spread
    )  # fmt: skip
    labels = {
        "test_accuracy": "Test accuracy",
        "corruption_mean": "Corrupted, mean",
        "corruption_loss": "Lost to corruption",
    }
    shown = [
        Column(name, labels.get(name, name.removeprefix("corruption_").removesuffix("_accuracy").replace("_", " ")),
               unit="%", digits=2, scale=100.0, sd="corruption_mean_sd" if name == "corruption_mean" else None)
        for name in measures
    ]  # fmt: skip
    known = plain_columns(
        ("configuration", "Configuration"), ("model_name", "Model"), ("dataset", "Dataset"), ("variant", "Method"),
        ("learning_rate", "Rate"), ("n_runs", "Runs"),
    )  # fmt: skip
    return Table(
        name="corruption",
        title="Accuracy on corrupted test images",
        columns=[*known, *shown],
        rows=records(facts.join(means).reset_index()),
        notes=[f"The mean is over {len(names)} corruptions: {', '.join(names)}. Standard deviations are over runs."],
    )


def _corrupted(name: str) -> str:
    return f"corruption_{name}_accuracy"


def _agreement(prepared: Prepared, settings: AnalysisSettings) -> Table | None:
    """How two transfer sets rank the configurations, and whether they call the same runs damaged."""
    given = [name for name in prepared.transfer if prepared.adapted[retention(name).name].notna().any()]
    if len(given) < 2:
        return None
    # scipy.stats takes most of a second to load, which a study of one transfer set does not pay.
    from scipy.stats import kendalltau

    rows: list[dict[str, Any]] = []
    for first, second in itertools.combinations(given, 2):
        columns = [retention(name).name for name in (first, second)]
        runs = prepared.adapted.dropna(subset=columns)
        if runs.empty:
            continue
        means = configuration_means(runs, columns)
        damaged = runs[columns] < settings.damaged_below_pct
        one, other = (means[column].to_numpy(dtype=float) for column in columns)
        enough = len(means) >= _FEWEST and np.ptp(one) > 0 and np.ptp(other) > 0
        rows.append(
            {
                "first": first,
                "second": second,
                "n_configurations": len(means),
                "n_runs": len(runs),
                "spearman": number(spearman(one, other)[0]) if enough else None,
                "kendall": float(kendalltau(one, other).statistic) if enough else None,
                "first_mean": float(one.mean()),
                "second_mean": float(other.mean()),
                "mean_difference": float((one - other).mean()),
                "both_damaged": int(damaged.all(axis=1).sum()),
                "first_alone": int((damaged[columns[0]] & ~damaged[columns[1]]).sum()),
                "second_alone": int((damaged[columns[1]] & ~damaged[columns[0]]).sum()),
                "neither": int((~damaged).all(axis=1).sum()),
                "reason": None if enough else f"fewer than {_FEWEST} configurations, or no spread",
            }
        )
    points = [
        Column(f"{name}_mean", f"{name.capitalize()}, mean retention", unit="%", digits=1)
        for name in ("first", "second")
    ]
    return Table(
        name="transfer_agreement",
        title="How transfer sets agree",
        columns=[
            *plain_columns(("first", "First set"), ("second", "Second set"), ("n_configurations", "Configurations"), ("n_runs", "Runs")),
            Column("spearman", "Spearman", digits=3), Column("kendall", "Kendall", digits=3), *points,
            Column("mean_difference", "First - second", unit="points", digits=1, signed=True),
            *plain_columns(
                ("both_damaged", "Damaged on both"), ("first_alone", "On the first alone"),
                ("second_alone", "On the second alone"), ("neither", "On neither"), ("reason", "Why not"),
            ),
        ],
        rows=rows,
        notes=[f"Correlations and means are over configurations, counts over runs. Damaged: retention below {settings.damaged_below_pct:g}%."],
    )  # fmt: skip


def _damage(prepared: Prepared, settings: AnalysisSettings) -> Table | None:
    """Means of every measure over the configurations that lost their transfer, and over those that kept it."""
    adapted = prepared.adapted
    measures = [*measured_columns(), *(measure.name for measure in ACCURACIES)]
    measures = [name for name in measures if name in adapted.columns and adapted[name].notna().any()]
    rows: list[dict[str, Any]] = []
    for name in prepared.transfer:
        kept = retention(name).name
        runs = adapted[adapted[kept].notna()]
        means = configuration_means(runs, [kept, *measures])
        hurt = means[kept] < settings.damaged_below_pct
        for measure in (kept, *measures) if hurt.any() and not hurt.all() else ():
            damaged, healthy = means.loc[hurt, measure].dropna(), means.loc[~hurt, measure].dropna()
            row: dict[str, Any] = {"transfer_set": name, "measure": measure}
            for word, values in (("damaged", damaged), ("healthy", healthy)):
                row |= {
                    f"n_{word}": len(values),
                    f"{word}_mean": float(values.mean()) if len(values) else None,
                    f"{word}_sd": float(values.std()) if len(values) > 1 else None,
                }
            both = len(damaged) and len(healthy)
            rows.append(row | {"difference": float(damaged.mean() - healthy.mean()) if both else None})
    if not rows:
        return None
    columns = plain_columns(("transfer_set", "Transfer set"), ("measure", "Measure"))
    for word in ("damaged", "healthy"):
        columns += [Column(f"n_{word}", f"{word.capitalize()}, configurations")]
        columns += [Column(f"{word}_mean", f"{word.capitalize()}, mean", sd=f"{word}_sd")]
    return Table(
        name="damage",
        title="Damaged and healthy configurations",
        columns=[*columns, Column("difference", "Damaged - healthy", signed=True)],
        rows=rows,
        notes=[
            f"Damaged: mean retention below {settings.damaged_below_pct:g}%. Means and standard deviations are over "
            "configurations, in the units of the table runs; they describe, and test nothing."
        ],
    )
