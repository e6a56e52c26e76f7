"""Retention over many transfer sets: targets by sets as a heatmap, and accuracy against the mean over a suite."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colors import TwoSlopeNorm
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from attndrift.analysis.set_summaries import ALL_SETS, left_out
from attndrift.figures.panels import MOST_ROWS, ROW_MM, color_bar, name_groups, positions, row_axis
from attndrift.figures.registry import figure
from attndrift.figures.source import Drawing, NoData, Source, in_order, row_label, seeds_text, variants_of
from attndrift.figures.style import GREY, axis_label, clip, legend, looks, mark, new_figure, wrap
from attndrift.methods.registry import in_order as methods_in_order
from attndrift.methods.registry import label_of
from attndrift.results.measures import MEASURES

_MOST_PRINTED = 14
"""Columns of a heatmap whose cells have room for a number."""
_MOST_SUITES = 3
_MOST_VARIANTS = 8
"""Variants that a legend tells apart; of more it names the methods."""
_LETTER_MM = 1.45
"""Room that a letter of a set's name takes."""


def _rows(source: Source, table: str) -> list[dict[str, Any]]:
    """Rows of a table of the analysis that are about the model and the selection of the figures."""
    found = source.analysis.tables.get(table)
    names = set(source.adapted["configuration"])
    return [row for row in found.rows if row["configuration"] in names] if found else []


def _left_out(source: Source) -> str:
    """The measured sets that the figure has no mark of, as the end of its caption."""
    found = left_out(source.adapted)
    return f" {found}" if found else ""


@figure(
    "transfer_matrix",
    title="Retention of each target and transfer set",
    section="sets",
    alt="Heatmap of retention: a row a target and method, a column a transfer set, then their mean and their worst.",
)
def transfer_matrix(source: Source) -> Drawing:
    """Retention by target and transfer set: each method at its best rate, a panel a measure."""
    rows = [row for row in _rows(source, "transfer_matrix") if row["best_rate"]]
    if not rows:
        raise NoData(f"no retention measure has a retention on two transfer sets.{_left_out(source)}".removesuffix("."))
    order = {name: place for place, name in enumerate(in_order(source, [row["configuration"] for row in rows]))}
    rows.sort(key=lambda row: order[row["configuration"]])
    measures = list(dict.fromkeys(row["measure"] for row in rows))
    shown = {
        measure: [row for row in rows if row["measure"] == measure][: MOST_ROWS // len(measures)]
        for measure in measures
    }
    columns = {measure: _columns(own) for measure, own in shown.items()}
    labels = {
        measure: [wrap(row_label(source, row["configuration"]), 26) for row in own] for measure, own in shown.items()
    }
    places = {measure: positions(own) for measure, own in labels.items()}
    below = {measure: 2 + _LETTER_MM * max(len(line) for name in own for line in _set_label(name).split("\n"))
             for measure, own in columns.items()}  # fmt: skip
    heights = [3 + ROW_MM * (places[measure][-1] + 1.4) for measure in measures]
    figure, axes = new_figure(
        20 + sum(heights) + sum(below.values()) + 4 * len(measures),
        len(measures),
        1,
        gridspec_kw={"height_ratios": heights},
    )
    # As far up as down: a gain of 20 points is no darker than a loss of 20.
    norm = TwoSlopeNorm(vcenter=100.0, vmin=0.0, vmax=200.0)
    for measure, panel in zip(measures, axes[:, 0], strict=True):
        mesh = _panel(panel, shown[measure], columns[measure], places[measure], labels[measure], norm)
        if len(measures) > 1:
            panel.set_title(MEASURES[measure].label)
    color_bar(figure, mesh, list(axes[:, 0]), "Retention (%)", below=True, ticks=(0, 50, 100, 150, 200))
    seeds = [row["n_seeds"] for own in shown.values() for row in own]
    legend(figure, [], {1} if set(seeds) == {1} else ())
    left = sum(row["measure"] == measures[0] for row in rows) - len(shown[measures[0]])
    text = (
        f"Retention on each transfer set, percent of the pretrained model's accuracy ({', '.join(MEASURES[m].label for m in measures)}); "
        f"each method at the rate with its best validation accuracy, mean over seeds (n = {seeds_text(seeds)}). Red: lost, blue: gained. The last two "
        "columns are mean and worst over the sets of the row. Grey: the target itself, not measured, or without retention. Deviations over seeds "
        "are in the table beside the figure."
    )
    if left:
        text += f" {left} further rows are in the tables of the analysis."
    text += _left_out(source)
    names = ["measure", "dataset", "configuration", "n_seeds"]
    data = pd.DataFrame([row for own in shown.values() for row in own])
    cells = [name for name in data if str(name).startswith("set_")]
    return Drawing(figure, source.caption(text), data[[*names, *cells, "mean", "worst"]])


def _set_label(column: str) -> str:
    """A set's name on at most two lines: what it is made of, and how."""
    base, _, made = column.removeprefix("set_").partition("+")
    return clip(base, 18) + (f"\n+{clip(made, 18)}" if made else "")


def _columns(rows: list[dict[str, Any]]) -> list[str]:
    """Columns of the table that a panel shows: the sets of any of its rows, mean and worst."""
    sets = [name for name in rows[0] if name.startswith("set_") and not name.endswith("_sd")]
    return [name for name in sets if any(row[name] is not None for row in rows)] + ["mean", "worst"]


def _panel(
    panel: Any, rows: list[dict[str, Any]], columns: list[str], places: list[float], labels: list[str], norm: Any
) -> Any:
    values = np.array([[np.nan if row[name] is None else row[name] for name in columns] for row in rows])
    half = [(1 + label.count("\n") + 0.35) / 2 for label in labels]
    edges = [places[0] - half[0], *(place + own for place, own in zip(places, half, strict=True))]
    # A gap sets mean and worst apart from the sets.
    left = np.arange(len(columns), dtype=float) + np.array(
        [0.25 if name in ("mean", "worst") else 0.0 for name in columns]
    )
    panel.set_facecolor("white")
    for place, start in enumerate(left):
        mesh = panel.pcolormesh(
            [start, start + 1], edges, np.ma.masked_invalid(values[:, [place]]), cmap="RdBu", norm=norm,
            edgecolors="white", linewidth=0.4,
        )  # fmt: skip
        for row, y in enumerate(places):
            value = values[row, place]
            if not np.isfinite(value):
                panel.fill_between([start, start + 1], edges[row], edges[row + 1], color="#d9d9d9", linewidth=0)
            elif len(columns) <= _MOST_PRINTED:
                dark = not 0.2 <= norm(value) <= 0.85
                panel.text(start + 0.5, y, f"{value:.0f}", ha="center", va="center", color="white" if dark else "black")
    panel.set_xlim(left[0], left[-1] + 1)
    row_axis(panel, places, labels)
    panel.set_xticks(left + 0.5, [_set_label(name) for name in columns], rotation=90)
    panel.tick_params(length=0)
    panel.spines[["left", "bottom"]].set_visible(False)
    name_groups(panel, places, [str(row["dataset"]) for row in rows])
    return mesh


@figure(
    "suite_front",
    title="Accuracy and mean retention over a suite",
    section="sets",
    alt="Scatter plot of accuracy against mean retention over transfer sets; lines go down to the worst set.",
)
def suite_front(source: Source) -> Drawing:
    """Accuracy against the mean retention over each suite, with intervals, and the worst set below."""
    rows = [row for row in _rows(source, "suites") if row["dataset"] == source.primary and row["accuracy"] is not None]
    if not rows:
        raise NoData("no configuration has both a test accuracy and a retention on two transfer sets")
    table = pd.DataFrame(rows)
    known = source.adapted.drop_duplicates("configuration").set_index("configuration")
    table["method"] = table["configuration"].map(known["method"])
    variants = [pair for pair in variants_of(source.adapted) if pair[0] in set(table["variant"])]
    told = "variant" if len(variants) <= _MOST_VARIANTS else "method"
    methods = methods_in_order(table["method"])
    look = looks(variants if told == "variant" else [(method, method) for method in methods])
    groups = list(dict.fromkeys(zip(table["measure"], table["suite"], strict=True)))
    kept = groups[:_MOST_SUITES]
    table = table[[pair in kept for pair in zip(table["measure"], table["suite"], strict=True)]]
    figure, axes = new_figure(18 + 52 * len(kept), len(kept), 1, sharex=True)
    for (measure, suite), panel in zip(kept, axes[:, 0], strict=True):
        part = table[(table["measure"] == measure) & (table["suite"] == suite)].sort_values("accuracy", kind="stable")
        _front_panel(panel, part, look, told)
        panel.set_ylabel("Mean retention (%)")
        named = "" if suite == ALL_SETS else f"{suite}, "
        panel.set_title(f"{named}{part['n_sets'].max()} sets: {MEASURES[measure].label}")
    axes[-1, 0].set_xlabel(axis_label("test_accuracy"))
    entries = [
        (name if told == "variant" else label_of(name, short=True), mark(one, line=False)) for name, one in look.items()
    ]
    entries += [
        ("filled, steps: on the front", Line2D([], [], color=GREY, marker="o")),
        ("tick: worst set", Line2D([], [], color=GREY, marker="_", linestyle=":")),
    ]
    legend(figure, entries, {1} if set(table["n_seeds"]) == {1} else ())
    over = ", ".join(sorted({str(value) for value in table["over"]} - {""}))
    text = (
        f"Test accuracy on {source.primary} and mean retention over the transfer sets of a suite, a mark a configuration (n = {len(part)}, "
        f"{seeds_text(table['n_seeds'])} each). Filled marks, with the steps between them, are those that no other configuration "
        f"betters in both. Dotted lines end at the worst set. "
    )
    text += f"Bars: {source.analysis.settings.level:.0%} intervals over {over}." if over else "No interval is known."
    text += (
        f" {len(groups) - len(kept)} further suites or measures are in the tables of the analysis."
        if len(groups) > len(kept)
        else ""
    )
    text += _left_out(source)
    return Drawing(figure, source.caption(text), table.drop(columns=["model_name", "selection_name"]))


def _front_panel(panel: Any, part: pd.DataFrame, look: dict[str, Any], told: str) -> None:
    front = part[part["pareto"].astype(bool)]
    panel.plot(100 * front["accuracy"], front["mean_pct"], color=GREY, linewidth=0.9, zorder=1, drawstyle="steps-pre")
    # Beside the bars, which it would hide.
    aside = max(100 * float(np.ptp(part["accuracy"])), 1.0) * 0.015
    for row in part.to_dict("records"):
        one, x, y = look[row[told]], 100 * row["accuracy"], row["mean_pct"]
        panel.plot(
            [x, x + aside, x + aside], [y, y, row["worst_pct"]], color=one.color, linewidth=0.7, linestyle=":", zorder=1
        )
        panel.plot(x + aside, row["worst_pct"], color=one.color, marker="_", markersize=4)
        known = row["low"] is not None and np.isfinite(row["low"])
        error = [[y - row["low"]], [row["high"] - y]] if known else None
        panel.errorbar(
            x, y, yerr=error, color=one.color, marker=one.marker, markersize=3.8, elinewidth=0.6, linestyle="none",
            markerfacecolor=one.color if row["pareto"] else "white",
        )  # fmt: skip
    panel.xaxis.set_major_locator(MaxNLocator(6))
    panel.margins(0.08)
