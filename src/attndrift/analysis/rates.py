"""Measures against log10 of the learning rate, within runs that differ in their rate alone."""

from __future__ import annotations

import numpy as np
import pandas as pd

from attndrift.analysis.bootstrap import (
    percentile_interval,
    rank_correlation_draws,
    resample_counts,
    resampled_ranks,
)
from attndrift.analysis.configurations import Prepared, configuration_means, evidence_label
from attndrift.analysis.hypothesis_tests import correct_family, correlate
from attndrift.analysis.numbers import Floats
from attndrift.analysis.result import Correlation, Interval, RateCorrelation
from attndrift.analysis.settings import AnalysisSettings
from attndrift.analysis.summary import sweep_groups, sweeps


def rate_correlations(prepared: Prepared, settings: AnalysisSettings, notes: list[str]) -> list[RateCorrelation]:
    """Pearson and Spearman of every measure, on cells and on configuration means."""
    runs = prepared.adapted
    usable = runs[runs["learning_rate"] > 0]
    groups, existing = sweep_groups(usable, sweeps()[0], settings.max_rate_groups)
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
        # Measures of equally many configurations share their resamples.
        drawn: dict[int, Floats] = {}
        for measure in prepared.measures:
            values, mean_values = (frame[measure.name].to_numpy(dtype=float) for frame in (group, means))
            given, mean_given = np.flatnonzero(~np.isnan(values)), np.flatnonzero(~np.isnan(mean_values))
            if len(given) == 0:
                continue
            rates = mean_rate[mean_given]
            if len(rates) not in drawn:
                drawn[len(rates)] = resample_counts(settings, len(rates), "rate", label)
            names = ("the learning rate", f"`{measure.name}`")
            n_seeds = len(np.unique(seeds[given][seeds[given] >= 0]))
            result.append(
                RateCorrelation(
                    model=str(first["model_name"]),
                    selection=str(first["selection_name"]),
                    dataset=str(first["dataset"]),
                    method=str(first["variant"]),
                    sweep=label,
                    measure=measure.name,
                    unit=measure.unit,
                    rates=np.unique(rates).tolist(),
                    n_configurations=len(mean_given),
                    n_runs=len(given),
                    n_seeds=n_seeds,
                    cells=correlate("cells", np.log10(rate[given]), values[given], names, settings),
                    configurations=_over_configurations(
                        np.log10(rates), mean_values[mean_given], names, settings, drawn[len(rates)]
                    ),
                    label=evidence_label(len(mean_given), n_seeds, settings.min_configurations),
                )
            )
    for level in ("cells", "configurations"):
        for test in ("pearson", "spearman"):
            correct_family(
                [getattr(getattr(r, level), test) for r in result],
                f"learning rate, {level}, {test.title()}: all sweeps and measures",
            )
    return result


def _over_configurations(
    x: Floats, y: Floats, names: tuple[str, str], settings: AnalysisSettings, counts: Floats
) -> Correlation:
    """The correlations of configuration means, and the interval of Spearman's over resampled configurations."""
    result = correlate("configurations", x, y, names, settings)
    if result.spearman.statistic is None:
        result.spearman_interval = Interval(level=settings.level, n=len(x), reason=result.spearman.reason)
    else:
        draws = rank_correlation_draws(resampled_ranks(x, counts), resampled_ranks(y, counts), counts)
        result.spearman_interval = percentile_interval(draws, settings, len(x), minimum=4)
    return result
