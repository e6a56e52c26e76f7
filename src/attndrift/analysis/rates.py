"""Measures against log10 of the learning rate, within runs that differ in their rate alone."""

from __future__ import annotations

import numpy as np

from attndrift.analysis.configurations import Prepared, configuration_means, evidence_label
from attndrift.analysis.grand import SWEEPS, sweep_groups
from attndrift.analysis.result import RateCorrelation, family
from attndrift.analysis.settings import AnalysisSettings
from attndrift.analysis.statistics import correlate


def rate_correlations(prepared: Prepared, settings: AnalysisSettings, notes: list[str]) -> list[RateCorrelation]:
    """Pearson and Spearman of every measure, on cells and on configuration means."""
    runs = prepared.adapted
    usable = runs[runs["learning_rate"] > 0]
    groups, existing = sweep_groups(usable, SWEEPS[0], settings.max_rate_groups)
    groups = [g for g in groups if g[0]["key_learning_rate"].nunique() >= 3]
    if not groups:
        notes.append("No method was run at three or more learning rates with all else equal: no rate correlation.")
    if existing > settings.max_rate_groups:
        notes.append(
            f"{settings.max_rate_groups} of {existing} rate sweeps are tested, those with most rates and runs."
        )
    result: list[RateCorrelation] = []
    for group, label in groups:
        first = group.iloc[0]
        columns = [m.name for m in prepared.measures]
        # Without the other columns, which every selection below would copy.
        group = group[["configuration", "replicate", "learning_rate", *columns]]
        means = configuration_means(group, [*columns, "learning_rate"])
        for measure in prepared.measures:
            cells = group[group[measure.name].notna()]
            by_configuration = means[means[measure.name].notna()]
            if len(cells) == 0:
                continue
            names = ("the learning rate", f"`{measure.name}`")
            n_seeds = int(cells["replicate"].nunique())
            result.append(
                RateCorrelation(
                    model=str(first["model_name"]),
                    protocol=str(first["protocol_name"]),
                    dataset=str(first["dataset"]),
                    method=str(first["variant"]),
                    sweep=label,
                    measure=measure.name,
                    unit=measure.unit,
                    rates=sorted(float(v) for v in by_configuration["learning_rate"].unique()),
                    n_configurations=len(by_configuration),
                    n_runs=len(cells),
                    n_seeds=n_seeds,
                    cells=correlate(
                        "cells",
                        np.log10(cells["learning_rate"].to_numpy(dtype=float)),
                        cells[measure.name].to_numpy(dtype=float),
                        names,
                        settings,
                    ),
                    configurations=correlate(
                        "configurations",
                        np.log10(by_configuration["learning_rate"].to_numpy(dtype=float)),
                        by_configuration[measure.name].to_numpy(dtype=float),
                        names,
                        settings,
                        bootstrap=("rate", label, measure.name),
                    ),
                    label=evidence_label(len(by_configuration), n_seeds, settings.min_configurations),
                )
            )
    for level in ("cells", "configurations"):
        for test in ("pearson", "spearman"):
            family(
                [getattr(getattr(r, level), test) for r in result],
                f"learning rate, {level}, {test.title()}: all sweeps and measures",
            )
    return result
