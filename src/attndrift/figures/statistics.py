"""The statistics in pictures: paired differences with intervals, correlations of measures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from attndrift.analysis.contrasts import HIGHER, LOWER, MEAN, ONE
from attndrift.analysis.measures import headlines, measured_columns
from attndrift.figures.panels import ROW_MM, color_bar, positions, row_axis
from attndrift.figures.registry import figure
from attndrift.figures.source import Drawing, NoData, Source, variants_of
from attndrift.figures.style import DIVERGING, axis_label, legend, new_figure, short_label, wrap, zero_line

_MOST_PAIRS = 5


@figure(
    "statistical_summary",
    title="Differences between methods",
    section="rq2",
    alt="Forest plot: a row a comparison, dots with intervals around the line of no difference.",
)
def statistical_summary(source: Source) -> Drawing:
    """Forest plot: differences between methods at equal settings, with intervals over seeds."""
    every = [
        row
        for row in source.analysis.tables["differences"].rows
        if (row["model_name"], row["selection_name"], row["dataset"])
        == (source.model, source.selection, source.primary)
        and row["contrast"] == (MEAN if row["n_rates"] > 1 else ONE)
    ]
    several = {(row["first"], row["second"], row["measure"]) for row in every if row["contrast"] == MEAN}
    key = ("first", "second", "measure")
    every = [row for row in every if row["contrast"] == MEAN or tuple(row[name] for name in key) not in several]
    if not every:
        raise NoData("no two methods share data set, settings and learning rate")
    order = {name: number for number, (name, _) in enumerate(variants_of(source.adapted))}
    every.sort(key=lambda row: (order.get(row["first"], 99), order.get(row["second"], 99)))
    pairs = list(dict.fromkeys((row["first"], row["second"]) for row in every))[:_MOST_PAIRS]
    wanted = [source.accuracy, *headlines(last_block=True)]
    wanted += source.retentions
    found = {(row["first"], row["second"], row["measure"]): row for row in reversed(every)}
    measures = [m for m in wanted if any((*pair, m) in found for pair in pairs)]
    if not measures:
        raise NoData("the compared methods have none of the measures that the figure shows")
    labels = [wrap(f"{first}\u00a0− {second}", 21, 3) for first, second in pairs]
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
    open_mark = Line2D([], [], color="black", marker="s", markerfacecolor="white", linestyle="none")
    entries = [
        ("mean, interval over seeds", Line2D([], [], color="black", marker="s")),
        ("open: no test, or not after correction", open_mark),
    ]
    legend(figure, entries, {1} if source.analysis.data.single_seed else ())
    text = (
        f"Differences between methods on {source.primary} at equal settings, mean over the learning rates that both "
        f"have ({_range(frame['n_rates'], 'rate')}). Lines: {source.analysis.settings.level:.0%} intervals over seeds "
        f"(Student's t, n = {_range(frame['n_seeds'], 'seed')}). Filled: not 0 after Holm's correction."
    )
    return Drawing(figure, source.caption(text), frame)


def _range(values: pd.Series, noun: str) -> str:
    low, high = int(values.min()), int(values.max())
    return f"{high} {noun}{'' if high == 1 else 's'}" if low == high else f"{low} to {high} {noun}s"


def _forest_row(panel: Any, place: float, row: dict[str, Any]) -> dict[str, Any]:
    if row["low"] is not None:
        panel.plot([row["low"], row["high"]], [place, place], color="black", linewidth=1.0)
    filled = "black" if row["verdict"] in (LOWER, HIGHER) else "white"
    panel.plot(row["estimate"], place, color="black", marker="s", markerfacecolor=filled)
    names = ("first", "second", "measure", "unit", "rates", "n_rates", "n_seeds", "estimate", "low", "high", "p_holm")
    return {name: row[name] for name in (*names, "verdict", "reason")}


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
