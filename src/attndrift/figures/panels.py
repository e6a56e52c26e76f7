"""Panels that several figures are made of: curves over time, rows of dots, heatmaps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from attndrift.figures.source import NoData, Source, error_of, label_of, over_seeds, scaled, time_axis, variants_of
from attndrift.figures.style import (
    DIVERGING,
    GREY,
    MARKERS,
    Look,
    axis_label,
    clip,
    legend,
    looks,
    mark,
    new_figure,
    percent,
    wrap,
    zero_line,
)

MOST_ROWS = 24
"""Rows of dots or of a heatmap that stay legible in one figure."""


def curve(axes: Any, x: Any, mean: Any, sd: Any, look: Look, **kwargs: Any) -> None:
    """A line of means with a band of one standard deviation; no band where there is no deviation."""
    x, mean, sd = (np.asarray(values, dtype=float) for values in (x, mean, sd))
    # Marks as well as colours and dashes: lines of one method are near in colour.
    marks = {"marker": look.marker, "markersize": 2.6, "markevery": max(1, -(-len(x) // 8))}
    axes.plot(x, mean, color=look.color, linestyle=look.line, **{**marks, **kwargs})
    if np.isfinite(sd).any():
        spread = np.nan_to_num(sd)
        axes.fill_between(x, mean - spread, mean + spread, color=look.color, alpha=0.18, linewidth=0)


def bars(axes: Any, x: Any, mean: Any, error: Any, look: Look, **kwargs: Any) -> None:
    """Joined markers with error bars: lengths below and above, (2, points), or None."""
    axes.errorbar(
        x,
        mean,
        yerr=error,
        color=look.color,
        marker=look.marker,
        linestyle=look.line,
        capsize=1.6,
        elinewidth=0.7,
        capthick=0.7,
        **kwargs,
    )


def dot_rows(
    source: Source,
    configurations: Sequence[str],
    columns: Sequence[str],
    *,
    runs: pd.DataFrame | None = None,
    labels: Sequence[str] | None = None,
    kinds: Sequence[str] | None = None,
    grid: int = 2,
) -> tuple[Figure, pd.DataFrame]:
    """A row a configuration, a panel a column: runs as small dots, their mean with its deviation.

    ``labels`` name the rows (method and rate by default), ``kinds`` give them their colours (the method by
    default). Returns the figure and the table of means that it shows.
    """
    runs = source.adapted if runs is None else runs
    columns = [c for c in columns if c in runs and runs[c].notna().any()]
    if not columns:
        raise NoData("none of the compared columns has a value")
    own = runs[runs["configuration"].isin(list(configurations))]
    names = [wrap(text) for text in (labels or [label_of(own, name) for name in configurations])]
    look = _row_looks(own, configurations, kinds)
    places = positions(names)
    grid = min(grid, len(columns))
    panel_rows = -(-len(columns) // grid)
    height = 10 + panel_rows * (11 + ROW_MM * places[-1] + 3.5)
    figure, axes = new_figure(height, panel_rows, grid, sharey=True)
    tables: list[pd.DataFrame] = []
    for column, panel in zip(columns, axes.flat, strict=False):
        table = over_seeds(own, ["configuration"], column, source.images).set_index("configuration")
        for place, name in zip(places, configurations, strict=True):
            if name in table.index:
                runs_of = own.loc[own["configuration"] == name, column]
                _dot_row(panel, place, runs_of, table.loc[[name]], column, look[name])
        panel.set_xlabel(axis_label(column))
        panel.margins(x=0.12)
        if column.endswith("change_pct"):
            zero_line(panel, vertical=True)
        elif percent(column):
            _widen(panel)
        _guide_lines(panel)
        panel.xaxis.set_major_locator(MaxNLocator(3 if grid > 1 else 6, min_n_ticks=2))
        tables.append(table.assign(measure=column).reset_index())
    for panel in axes.flat[len(columns) :]:
        panel.set_visible(False)
    for panel in axes[:, 0]:
        row_axis(panel, places, names)
    for panel in axes[:, 1:].flat:
        panel.tick_params(axis="y", length=0)
    same_scale(dict(zip(columns, axes.flat, strict=False)))
    counts = own.groupby("configuration")["replicate"].nunique()
    shown = [
        ("mean ± sd", Line2D([], [], color=GREY, marker="o", markersize=4.2)),
        ("one run", Line2D([], [], color=GREY, marker="o", markersize=2, linestyle="none")),
    ]
    spare = axes.flat[len(columns)] if len(columns) < axes.size else None
    data = pd.concat(tables, ignore_index=True)
    legend(figure, shown if counts.max() > 1 else [], counts, spare=spare, images=image_words(data))
    data.insert(0, "label", data["configuration"].map(dict(zip(configurations, names, strict=True))))
    data["label"] = data["label"].str.replace(r"\s+", " ", regex=True)
    return figure, data


def image_words(data: pd.DataFrame) -> str:
    """What the bars of a figure of one seed are, for its legend; nothing where it has none."""
    drawn = "low" in data and bool(data["low"].notna().any())
    return "bars are 95% intervals over test images" if drawn else ""


def same_scale(panels: dict[str, Any], *, vertical: bool = False) -> None:
    """One scale for the entropy change of all blocks and of the last one, which stand to be compared."""
    names = ("entropy_change_pct", "entropy_last_layer_change_pct")
    pair = [panels[name] for name in names if name in panels]
    if len(pair) < 2:
        return
    if vertical:
        pair[1].sharey(pair[0])
    else:
        pair[1].sharex(pair[0])
    for panel in pair:
        panel.autoscale_view()


def _guide_lines(panel: Any) -> None:
    panel.grid(axis="y", color="#ececec", linewidth=0.5)
    panel.set_axisbelow(True)


ROW_MM = 3.1
"""Height of a line of a row's label."""


def positions(labels: Sequence[str]) -> list[float]:
    """Places of rows from the top, in lines of text: a label of two lines gets the room of two."""
    places: list[float] = []
    edge = 0.0
    for label in labels:
        lines = 1 + label.count("\n")
        places.append(edge + (lines + 0.35) / 2)
        edge += lines + 0.35
    return [place - places[0] for place in places]


def row_axis(panel: Any, places: Sequence[float], labels: Sequence[str]) -> None:
    """Names of the rows on the left, the first row on top."""
    panel.set_yticks(list(places), list(labels))
    first, last = 1 + labels[0].count("\n"), 1 + labels[-1].count("\n")
    panel.set_ylim(places[-1] + 0.5 * last + 0.15, places[0] - 0.5 * first - 0.15)
    panel.tick_params(axis="y", length=0)


def name_groups(panel: Any, places: Sequence[float], groups: Sequence[str]) -> None:
    """Names of runs of equal ``groups`` along the right edge, with a line between two groups."""
    if len(set(groups)) < 2:
        return
    start = 0
    for end in range(1, len(groups) + 1):
        if end < len(groups) and groups[end] == groups[start]:
            continue
        low, high = places[start], places[end - 1]
        room = max(9, int((high - low + 1) * ROW_MM / 1.35))
        panel.text(
            1.015, (low + high) / 2, clip(groups[start], room),
            transform=panel.get_yaxis_transform(), rotation=270, ha="left", va="center",
        )  # fmt: skip
        if end < len(groups):
            panel.axhline((high + places[end]) / 2, color="black", linewidth=0.7)
        start = end


def _row_looks(runs: pd.DataFrame, configurations: Sequence[str], kinds: Sequence[str] | None) -> dict[str, Look]:
    """Colour by kind, marker by variant; rows of a variant that differ in the rate look alike."""
    first = runs.drop_duplicates("configuration").set_index("configuration")
    kinds = kinds or [str(first.loc[name, "method"]) for name in configurations]
    colours = looks([(kind, kind) for kind in dict.fromkeys(kinds)])
    variants = list(dict.fromkeys(str(first.loc[name, "variant"]) for name in configurations))
    result: dict[str, Look] = {}
    for name, kind in zip(configurations, kinds, strict=True):
        marker = MARKERS[variants.index(str(first.loc[name, "variant"])) % len(MARKERS)]
        result[name] = Look(colours[kind].color, marker, "-")
    return result


def _widen(panel: Any, least: float = 0.5) -> None:
    """Accuracies: an axis of at least half a point, so that one image does not look like a difference."""
    low, high = panel.get_xlim()
    if high - low < least:
        middle = (low + high) / 2
        panel.set_xlim(middle - least / 2, middle + least / 2)


def _dot_row(panel: Any, place: float, values: pd.Series, row: pd.DataFrame, column: str, look: Look) -> None:
    """Mean with its bar, and above it the single runs, where the mean does not hide them."""
    present = scaled(column, values.dropna())
    if not len(present):
        return
    if len(present) > 1:
        panel.plot(
            present,
            np.full(len(present), place - 0.42),
            linestyle="none",
            marker="o",
            markersize=2,
            color=look.color,
            markeredgewidth=0,
        )
    panel.errorbar(
        scaled(column, row["mean"]),
        [place],
        xerr=None if (error := error_of(row)) is None else scaled(column, error),
        color=look.color,
        marker=look.marker,
        markersize=3.6,
        capsize=1.8,
        elinewidth=0.8,
        linestyle="none",
    )


def evolution(source: Source, columns: Sequence[str], configurations: Sequence[str]) -> tuple[Figure, pd.DataFrame]:
    """Curves of ``columns`` over time; mean and band over seeds.

    A panel column a data set where there are two, else the panels stand in two columns.
    """
    history = source.history(configurations)
    columns = [c for c in columns if history[c].notna().any()]
    if not columns:
        raise NoData("the table `history` holds no value of these columns")
    datasets = [name for name in source.datasets if (history["dataset"] == name).any()][:2]
    if len(datasets) > 1:
        figure, axes = new_figure(14 + 37 * len(columns), len(columns), len(datasets), sharex="col", sharey="row")
    else:
        rows = -(-len(columns) // 2)
        figure, grid = new_figure(14 + 36 * rows, rows, min(2, len(columns)))
        axes = grid.reshape(-1, 1)
    time, time_label = time_axis(history)
    look = looks(variants_of(source.adapted[source.adapted["configuration"].isin(list(configurations))]))
    tables: list[pd.DataFrame] = []
    for row, column in enumerate(columns):
        for place, dataset in enumerate(datasets):
            panel = axes[row, place]
            part = history[history["dataset"] == dataset]
            table = over_seeds(part, ["configuration", "variant", time], column).sort_values(time, kind="stable")
            for _, one in table.groupby("configuration", sort=False):
                curve(
                    panel, one[time], scaled(column, one["mean"]), scaled(column, one["sd"]),
                    look[str(one["variant"].iloc[0])],
                )  # fmt: skip
            if column.endswith("change_pct"):
                zero_line(panel)
            panel.yaxis.set_major_locator(MaxNLocator(5))
            if row == 0 and len(datasets) > 1:
                panel.set_title(wrap(dataset, 22, 2))
            tables.append(table.assign(dataset=dataset, measure=column))
        axes[row, 0].set_ylabel(axis_label(column))
    for panel in axes[-1] if len(datasets) > 1 else axes[: len(columns), 0]:
        panel.set_xlabel(time_label)
        panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    spare = None
    for panel in axes[len(columns) :, 0]:
        panel.set_visible(False)
        spare = panel
    entries = _variant_entries(source, history, look)
    data = pd.concat(tables, ignore_index=True)
    legend(figure, entries, data["n"], spare=spare)
    return figure, data


def _variant_entries(source: Source, history: pd.DataFrame, look: dict[str, Look]) -> list[tuple[str, Any]]:
    """Legend entries; the rate is told where it is the same in all panels."""
    entries: list[tuple[str, Any]] = []
    for variant in look:
        rates = history.loc[history["variant"] == variant, "rate_text"].unique()
        if not len(rates):
            continue
        text = f"{variant}\u00a0·\u00a0{rates[0]}" if len(rates) == 1 else variant
        entries.append((text, mark(look[variant], markersize=2.6)))
    return entries


def change_norm(values: Any) -> TwoSlopeNorm:
    """Colours centred on 0, symmetric, wide enough for all ``values``."""
    finite = np.abs(np.asarray(values, dtype=float))
    finite = finite[np.isfinite(finite)]
    limit = float(finite.max()) if len(finite) and finite.max() > 0 else 1.0
    return TwoSlopeNorm(vcenter=0.0, vmin=-limit, vmax=limit)


def heatmap(axes: Any, x: Any, layers: Sequence[int], values: Any, norm: Any, *, cmap: str = DIVERGING) -> Any:
    """``values`` (layers x columns) with layer 1 at the bottom; columns keep their distance on the x axis."""
    edges = _edges(np.asarray(x, dtype=float))
    mesh = axes.pcolormesh(
        edges, np.arange(len(layers) + 1) + 0.5, np.ma.masked_invalid(values), cmap=cmap, norm=norm, rasterized=True
    )
    axes.set_facecolor("#d9d9d9")
    axes.spines[["top", "right"]].set_visible(True)
    axes.yaxis.set_minor_locator(NullLocator())
    step = 1 if len(layers) <= 6 else 2 if len(layers) <= 14 else 4
    ticks = list(range(1, len(layers) + 1, step))
    axes.set_yticks(ticks, [str(layers[tick - 1]) for tick in ticks])
    return mesh


def _edges(x: Any) -> Any:
    if len(x) == 1:
        return np.asarray([x[0] - 0.5, x[0] + 0.5])
    middle = (x[1:] + x[:-1]) / 2
    return np.concatenate([[x[0] - (middle[0] - x[0])], middle, [x[-1] + (x[-1] - middle[-1])]])


def color_bar(
    figure: Figure, mesh: Any, axes: Any, label: str, *, below: bool = False, ticks: Sequence[float] | None = None
) -> None:
    bar = figure.colorbar(
        mesh,
        ax=axes,
        location="bottom" if below else "right",
        shrink=0.7 if below else 1.0,
        aspect=28 if below else 22,
        pad=0.02,
    )
    bar.set_label(label)
    bar.outline.set_linewidth(0.5)
    bar.locator = MaxNLocator(6, steps=[1, 2, 4, 5, 10]) if ticks is None else FixedLocator(list(ticks))
    bar.update_ticks()
