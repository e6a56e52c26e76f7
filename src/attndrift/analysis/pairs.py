"""Two methods on identical cells, and the change of one method against zero.

A cell is one (model, selection, dataset, other conditions, learning rate, seed). Both levels are
given: over cells, where seeds of one configuration count as if they were independent, and over
configuration means, which is what claims rest on. Intervals resample configurations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from attndrift.analysis.bootstrap import bootstrap, percentile_interval
from attndrift.analysis.configurations import Prepared, evidence_label
from attndrift.analysis.hypothesis_tests import correct_family, difference
from attndrift.analysis.measures import Measure, changes
from attndrift.analysis.numbers import Floats, number
from attndrift.analysis.result import Change, Comparison, Interval
from attndrift.analysis.settings import AnalysisSettings

ALL_DATASETS = "all datasets"
MOST_DATASETS = 8
"""With more datasets than this, tests are made over all of them alone."""


@dataclass(frozen=True)
class _Pair:
    cells: int
    model: str
    selection: str
    first: str
    second: str


def _cells(runs: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """One row a (conditions, rate, replicate): the mean where a cell was run twice."""
    keys = ["variant", "conditions", "replicate"]
    cells = runs.groupby(keys, sort=True)[names].mean()
    return cells.join(runs.groupby(keys, sort=True)[["dataset", "seed"]].first()).reset_index()


def _intervals(
    values: Floats, configuration: NDArray[np.intp], settings: AnalysisSettings, *names: str
) -> list[Interval]:
    """Intervals of the mean over configuration means of ``values`` (cells, measures; NaN where missing).

    Configurations are resampled, and each counts once however many seeds it has: the mean that is printed and
    tested beside the interval is the same one.
    """
    means = pd.DataFrame(values).groupby(configuration).mean().to_numpy().T
    held = np.isfinite(means).sum(axis=1)
    draws = bootstrap((means,), np.nanmean, settings, *names)
    return [percentile_interval(draw, settings, int(n)) for draw, n in zip(draws, held, strict=True)]


def _means_by(configuration: NDArray[np.intp], values: Floats) -> Floats:
    n = int(configuration.max()) + 1 if len(configuration) else 0
    present = np.isfinite(values)
    count = np.bincount(configuration[present], minlength=n)
    total = np.bincount(configuration[present], weights=values[present], minlength=n)
    return (total[count > 0] / count[count > 0]).astype(np.float64)


def compare_methods(prepared: Prepared, settings: AnalysisSettings, notes: list[str]) -> list[Comparison]:
    """All pairs of methods that share cells; capped, the pairs with most shared cells first, and noted."""
    result: list[Comparison] = []
    candidates: list[_Pair] = []
    held: dict[tuple[str, str], pd.DataFrame] = {}
    for (model, selection), runs in prepared.adapted.groupby(["model_name", "selection_name"], sort=True):
        cells = held[str(model), str(selection)] = _cells(runs, [m.name for m in prepared.measures])
        for (first, second), count in _shared(cells).items():
            candidates.append(_Pair(count, str(model), str(selection), first, second))
    candidates.sort(key=_priority)
    left = len(candidates) - settings.max_method_pairs
    if left > 0:
        notes.append(
            f"{settings.max_method_pairs} pairs of methods are compared, full against plain LoRA and those with most "
            f"shared cells first; {left} further pairs are not (max_method_pairs)."
        )
    if prepared.adapted["dataset"].nunique() > MOST_DATASETS:
        notes.append(f"With more than {MOST_DATASETS} datasets, methods are tested over all of them, not one by one.")
    if not candidates:
        notes.append("No two methods share a (dataset, settings, rate, seed) cell: no paired comparison is possible.")
    for pair in candidates[: settings.max_method_pairs]:
        cells = held[pair.model, pair.selection]
        merged = cells[cells["variant"] == pair.first].merge(
            cells[cells["variant"] == pair.second], on=["conditions", "replicate"], suffixes=("_1", "_2")
        )
        result += _compare(pair, ALL_DATASETS, merged, prepared.measures, settings)
        datasets = sorted(merged["dataset_1"].unique())
        if 1 < len(datasets) <= MOST_DATASETS:
            for dataset in datasets:
                part = merged[merged["dataset_1"] == dataset]
                result += _compare(pair, str(dataset), part, prepared.measures, settings)
    for whole in (True, False):
        chosen = [c for c in result if (c.scope == ALL_DATASETS) == whole]
        scope = "all datasets" if whole else "single datasets"
        for level in ("cells", "configurations"):
            for place, test in enumerate(("paired t", "Wilcoxon", "Welch t", "Mann-Whitney U")):
                correct_family(
                    [getattr(c, level).tests[place] for c in chosen],
                    f"methods, {scope}, {level}, {test}: all pairs and measures",
                )
    return result


def _pair_order(variant: str) -> tuple[int, str]:
    """Full fine-tuning stands first in a pair, so that differences read full - other."""
    return (0 if variant == "full" else 1 if variant.startswith("full") else 2, variant)


def _priority(pair: _Pair) -> tuple[int, int, str, str, str, str]:
    plain = pair.first == "full" and pair.second.startswith("LoRA") and not set(",+") & set(pair.second)
    return (0 if plain else 1, -pair.cells, pair.model, pair.selection, pair.first, pair.second)


def _shared(cells: pd.DataFrame) -> dict[tuple[str, str], int]:
    """How many cells each pair of methods shares."""
    pairs = cells[["conditions", "replicate", "variant"]].drop_duplicates()
    codes, names = pd.factorize(pairs["variant"], sort=True)
    cell = pairs.groupby(["conditions", "replicate"], sort=False).ngroup().to_numpy()
    held = sparse.csr_array((np.ones(len(pairs)), (cell, codes)), shape=(int(cell.max(initial=-1)) + 1, len(names)))
    common = sparse.triu(held.T @ held, k=1).tocoo()
    result: dict[tuple[str, str], int] = {}
    for i, j, count in zip(*common.coords, common.data, strict=True):
        first, second = sorted((str(names[i]), str(names[j])), key=_pair_order)
        result[first, second] = int(count)
    return result


def _compare(
    pair: _Pair,
    scope: str,
    merged: pd.DataFrame,
    measures: list[Measure],
    settings: AnalysisSettings,
) -> list[Comparison]:
    first, second, model, selection = pair.first, pair.second, pair.model, pair.selection
    merged = merged.sort_values(["conditions", "replicate"], kind="stable")
    configuration = pd.factorize(merged["conditions"])[0]
    one = merged[[f"{m.name}_1" for m in measures]].to_numpy(dtype=float)
    two = merged[[f"{m.name}_2" for m in measures]].to_numpy(dtype=float)
    change = one - two
    intervals = _intervals(change, configuration, settings, "pair", model, selection, scope, first, second)
    result: list[Comparison] = []
    for column, measure in enumerate(measures):
        present = np.isfinite(change[:, column])
        if not present.any():
            continue
        codes = pd.factorize(configuration[present])[0]
        a, b, d = one[present, column], two[present, column], change[present, column]
        seeds = merged["replicate"].to_numpy()[present]
        means = [_means_by(codes, values) for values in (a, b, d)]
        by_configuration = difference("configurations", means[0], means[1], means[2])
        by_configuration.descriptive = len(means[2]) < settings.min_configurations
        result.append(
            Comparison(
                first=first,
                second=second,
                model=model,
                selection=selection,
                scope=scope,
                measure=measure.name,
                unit=measure.unit,
                n_configurations=len(means[2]),
                n_cells=len(d),
                n_seeds=len(set(seeds)),
                first_mean=number(means[0].mean()),
                second_mean=number(means[1].mean()),
                cells=difference("cells", a, b, d),
                configurations=by_configuration,
                interval=intervals[column],
                label=evidence_label(len(means[2]), len(set(seeds)), settings.min_configurations),
            )
        )
    return result


def changes_from_zero(prepared: Prepared, settings: AnalysisSettings, notes: list[str]) -> list[Change]:
    """Each method's structural changes against zero, per dataset and over all datasets."""
    measures = [m for m in changes() if m in prepared.measures]
    if not measures:
        notes.append("No structural change is given: nothing can be said about attention.")
        return []
    groups: list[tuple[str, str, str, str, pd.DataFrame]] = []
    for (model, selection, variant), runs in prepared.adapted.groupby(
        ["model_name", "selection_name", "variant"], sort=True
    ):
        groups.append((str(model), str(selection), str(variant), ALL_DATASETS, runs))
        if 1 < runs["dataset"].nunique() <= MOST_DATASETS:
            for dataset, part in runs.groupby("dataset", sort=True):
                groups.append((str(model), str(selection), str(variant), str(dataset), part))
    groups.sort(key=lambda g: (-len(g[4]), *g[:4]))
    limit = 4 * settings.max_method_pairs
    if len(groups) > limit:
        notes.append(f"Changes against zero are tested for the {limit} largest of {len(groups)} groups of runs.")
    result: list[Change] = []
    for model, selection, variant, scope, runs in sorted(
        groups[:limit], key=lambda g: (g[0], g[1], _pair_order(g[2]), g[3] != ALL_DATASETS, g[3])
    ):
        codes = pd.factorize(runs["configuration"])[0]
        values = runs[[m.name for m in measures]].to_numpy(dtype=float)
        intervals = _intervals(values, codes, settings, "change", model, selection, variant, scope)
        for column, measure in enumerate(measures):
            present = np.isfinite(values[:, column])
            if not present.any():
                continue
            inner = pd.factorize(codes[present])[0]
            means = _means_by(inner, values[present, column])
            by_configuration = difference("configurations", None, None, means)
            by_configuration.descriptive = len(means) < settings.min_configurations
            n_seeds = int(runs.loc[present, "replicate"].nunique())
            result.append(
                Change(
                    method=variant,
                    model=model,
                    selection=selection,
                    scope=scope,
                    measure=measure.name,
                    unit=measure.unit,
                    n_configurations=len(means),
                    n_runs=int(present.sum()),
                    n_seeds=n_seeds,
                    cells=difference("cells", None, None, values[present, column]),
                    configurations=by_configuration,
                    interval=intervals[column],
                    label=evidence_label(len(means), n_seeds, settings.min_configurations),
                )
            )
    for whole in (True, False):
        chosen = [c for c in result if (c.scope == ALL_DATASETS) == whole]
        scope = "all datasets" if whole else "single datasets"
        for level in ("cells", "configurations"):
            for place, test in enumerate(("one-sample t", "Wilcoxon")):
                correct_family(
                    [getattr(c, level).tests[place] for c in chosen],
                    f"changes, {scope}, {level}, {test}: all methods and measures",
                )
    return result
