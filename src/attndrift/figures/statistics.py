"""The statistics in pictures: paired differences with intervals, correlations of measures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from attndrift.analysis.measures import headlines, measured_columns
from attndrift.analysis.result import Comparison
from attndrift.figures.panels import ROW_MM, color_bar, positions, row_axis
from attndrift.figures.registry import figure
from attndrift.figures.source import Drawing, NoData, Source, variants_of
from attndrift.figures.style import DIVERGING, axis_label, legend, new_figure, percent, short_label, wrap, zero_line

_MOST_PAIRS = 5


@figure(
    "statistical_summary",
    title="Differences between methods",
    section="rq2",
    alt="Forest plot: a row a comparison, dots with intervals around the line of no difference.",
)
def statistical_summary(source: Source) -> Drawing:
    """Forest plot: differences between methods on identical cells, with bootstrap intervals."""
    every = [
        c
        for c in source.analysis.comparisons
        if c.model == source.model and c.selection == source.selection and c.cells.mean is not None
    ]
    scope = "all datasets" if any(c.scope == "all datasets" for c in every) else source.primary
    every = [c for c in every if c.scope == scope]
    if not every:
        raise NoData("no two methods share a cell of data set, learning rate and seed")
    order = {name: number for number, (name, _) in enumerate(variants_of(source.adapted))}
    every.sort(key=lambda c: (order.get(c.first, 99), order.get(c.second, 99)))
    pairs = list(dict.fromkeys((c.first, c.second) for c in every))[:_MOST_PAIRS]
    wanted = [source.accuracy, *headlines(last_block=True)]
    wanted += source.retentions
    found = {(c.first, c.second, c.measure): c for c in every}
    measures = [m for m in wanted if any((*pair, m) in found for pair in pairs)]
    if not measures:
        raise NoData("the compared methods have none of the measures that the figure shows")
    labels = [_pair_label(*pair, every) for pair in pairs]
    places = positions(labels)
    rows = -(-len(measures) // 2)
    height = 12 + rows * (14 + ROW_MM * (places[-1] + 1.5))
    figure, axes = new_figure(height, rows, min(2, len(measures)), sharey=True)
    data: list[dict[str, Any]] = []
    for measure, panel in zip(measures, axes.flat, strict=False):
        for place, pair in zip(places, pairs, strict=True):
            one = found.get((*pair, measure))
            if one is not None:
                data.append(_forest_row(panel, place, one))
        zero_line(panel, vertical=True)
        panel.set_xlabel(_difference_label(measure))
        panel.margins(x=0.1)
        panel.xaxis.set_major_locator(MaxNLocator(3))
    for panel in axes.flat[len(measures) :]:
        panel.set_visible(False)
    for panel in axes[:, 0]:
        row_axis(panel, places, labels)
    frame = pd.DataFrame(data)
    few = source.analysis.settings.min_configurations
    entries = [
        ("mean, interval", Line2D([], [], color="black", marker="s")),
        (
            f"open: fewer than {few} configurations",
            Line2D([], [], color="black", marker="s", markerfacecolor="white", linestyle="none"),
        ),
    ]
    legend(figure, entries, {1} if source.analysis.data.single_seed else ())
    level = source.analysis.settings.level
    text = (
        f"Differences between methods on identical (data set, rate, seed) cells, {scope}. Lines: {level:.0%} "
        "percentile bootstrap that resamples configurations; "
        f"n = {_range(frame['n_configurations'], 'configuration')} (named at each pair), {_range(frame['n_cells'], 'cell')}. Open marks rest on fewer than {few} "
        "configurations and are descriptive; marks without a line had too few configurations for an interval."
    )
    return Drawing(figure, source.caption(text), frame)


def _range(values: pd.Series, noun: str) -> str:
    low, high = int(values.min()), int(values.max())
    return f"{high} {noun}{'' if high == 1 else 's'}" if low == high else f"{low} to {high} {noun}s"


def _pair_label(first: str, second: str, comparisons: list[Comparison]) -> str:
    n = max(c.n_configurations for c in comparisons if (c.first, c.second) == (first, second))
    return wrap(f"{first}\u00a0− {second} (n\u00a0=\u00a0{n})", 21, 3)


def _forest_row(panel: Any, place: float, one: Comparison) -> dict[str, Any]:
    factor = 100.0 if percent(one.measure) else 1.0
    mean = one.configurations.mean if one.configurations.mean is not None else one.cells.mean
    low, high = one.interval.low, one.interval.high
    if low is not None and high is not None:
        panel.plot([factor * low, factor * high], [place, place], color="black", linewidth=1.0)
    filled = "white" if one.configurations.descriptive else "black"
    panel.plot(factor * (mean or 0.0), place, color="black", marker="s", markerfacecolor=filled)
    return {
        "first": one.first,
        "second": one.second,
        "measure": one.measure,
        "difference": mean,
        "low": low,
        "high": high,
        "interval_reason": one.interval.reason,
        "d_z_cells": one.cells.d_z,
        "n_configurations": one.n_configurations,
        "n_cells": one.n_cells,
        "n_seeds": one.n_seeds,
        "label": one.label,
    }


def _difference_label(measure: str) -> str:
    words, _, unit = axis_label(measure).replace("\n", " ").partition(" (")
    return wrap(words, 22, 2) + ("\n(points)" if unit == "%)" else "\n(difference)")


def _short_rho(value: float) -> str:
    """`.94`, `−.41`, `1`, `0`: a cell has room for two digits; only what rounds to 1 is printed as such."""
    text = f"{value:.2f}"
    if text in ("-0.00", "0.00"):
        return "0"
    return text.replace("-", "−").replace("0.", ".").replace("1.00", "1")


@figure(
    "metric_correlations",
    title="Correlations between measures",
    section="rq3",
    alt="Square heatmap of rank correlations between measures.",
)
def metric_correlations(source: Source) -> Drawing:
    """Spearman correlations between all measures over configuration means."""
    columns = [*measured_columns(), source.accuracy]
    columns += source.retentions
    means = source.adapted.groupby("configuration")[columns].mean()
    columns = [c for c in columns if means[c].notna().sum() >= 5 and means[c].nunique() > 1]
    if len(columns) < 2:
        raise NoData("fewer than two measures vary over five configurations")
    means = means[columns]
    rho = means.corr(method="spearman", min_periods=5)
    counts = means.notna().astype(int).T @ means.notna().astype(int)
    shown = rho.to_numpy().copy()
    size = len(columns)
    shown[np.triu_indices(size)] = np.nan
    labels = [short_label(c) for c in columns]
    figure, axes = new_figure(34 + 5.8 * size)
    panel = axes[0, 0]
    mesh = panel.imshow(np.ma.masked_invalid(shown[1:, :-1]), cmap=DIVERGING, vmin=-1, vmax=1)
    for row in range(size - 1):
        for column in range(row + 1):
            value = shown[row + 1, column]
            if np.isfinite(value):
                text = _short_rho(value)
                dark = abs(value) > 0.62
                panel.text(column, row, text, ha="center", va="center", color="white" if dark else "black")
    panel.set_xticks(range(size - 1), labels[:-1], rotation=90)
    panel.set_yticks(range(size - 1), labels[1:])
    panel.tick_params(length=0)
    panel.spines[["left", "bottom"]].set_visible(False)
    color_bar(figure, mesh, panel, "Spearman rho", below=True, ticks=(-1, -0.5, 0, 0.5, 1))
    legend(figure, [], {1} if source.analysis.data.single_seed else ())
    low, high = int(counts.to_numpy().min()), int(counts.to_numpy().max())
    n = f"{high}" if low == high else f"{low} to {high}"
    text = (
        f"Spearman correlations between the measures over configuration means (n = {n} configurations). Descriptive: "
        "the configurations differ in method, data set and rate at once, so a correlation here is not an effect; "
        "no interval is drawn. Structural measures are changes in percent."
    )
    long = rho.rename_axis("first").reset_index().melt(id_vars="first", var_name="second", value_name="spearman")
    long["n"] = [int(counts.loc[a, b]) for a, b in zip(long["first"], long["second"], strict=True)]
    return Drawing(figure, source.caption(text), long[long["first"] < long["second"]])
