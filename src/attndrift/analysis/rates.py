"""Measures against log10 of the learning rate, within runs that differ in their rate alone."""

from __future__ import annotations

import numpy as np
import pandas as pd

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
        rate, mean_rate = (frame["learning_rate"].to_numpy(dtype=float) for frame in (group, means))
        seeds = pd.factorize(group["replicate"])[0]
        for measure in prepared.measures:
            values, mean_values = (frame[measure.name].to_numpy(dtype=float) for frame in (group, means))
            given, mean_given = np.flatnonzero(~np.isnan(values)), np.flatnonzero(~np.isnan(mean_values))
            if len(given) == 0:
                continue
            rates = mean_rate[mean_given]
            names = ("the learning rate", f"`{measure.name}`")
            n_seeds = len(np.unique(seeds[given][seeds[given] >= 0]))
            result.append(
                RateCorrelation(
                    model=str(first["model_name"]),
                    protocol=str(first["protocol_name"]),
                    dataset=str(first["dataset"]),
                    method=str(first["variant"]),
                    sweep=label,
                    measure=measure.name,
                    unit=measure.unit,
                    rates=np.unique(rates).tolist(),
                    n_configurations=len(mean_given),
                    n_runs=len(given),
                    n_seeds=n_seeds,
                    cells=correlate(
                        "cells",
                        np.log10(rate[given]),
                        values[given],
                        names,
                        settings,
                    ),
                    configurations=correlate(
                        "configurations",
                        np.log10(rates),
                        mean_values[mean_given],
                        names,
                        settings,
                        bootstrap=("rate", label, measure.name),
                    ),
                    label=evidence_label(len(mean_given), n_seeds, settings.min_configurations),
                )
            )
    for level in ("cells", "configurations"):
        for test in ("pearson", "spearman"):
            family(
                [getattr(getattr(r, level), test) for r in result],
                f"learning rate, {level}, {test.title()}: all sweeps and measures",
            )
    return result
