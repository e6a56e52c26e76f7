"""Training as it goes: the triple curve, the dynamics of all methods, onset and convergence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from attndrift.analysis.measures import headlines
from attndrift.figures.panels import MOST_ROWS, ROW_MM, curve, evolution, name_groups, positions, row_axis
from attndrift.figures.registry import figure
from attndrift.figures.source import (
    Drawing,
    NoData,
    Source,
    in_order,
    over_seeds,
    row_label,
    scaled,
    spread_text,
    time_axis,
    variants_of,
)
from attndrift.figures.style import Look, legend, mark, new_figure, wrap, zero_line

_TRIPLE = (
    ("train_accuracy", "training", Look("#B37B00", "o", (0, (4, 1.5)))),
    ("val_accuracy", "validation", Look("#0072B2", "s", "-")),
    ("entropy_change_pct", "mean over blocks", Look("#D55E00", "^", "-")),
    ("entropy_last_layer_change_pct", "last block", Look("#000000", "D", (0, (1.2, 1.2)))),
)


@figure(
    "fig3_triple_curve",
    title="Accuracy and entropy during full fine-tuning",
    section="rq1",
    alt="Lines over training time: accuracy above, change of attention entropy below.",
    needs=("history",),
)
def triple_curve(source: Source) -> Drawing:
    """Fig. 3: accuracy and entropy change of full fine-tuning over training, a column a data set."""
    chosen: list[str] = []
    for dataset in source.datasets[:2]:
        runs = source.plain(dataset)
        runs = runs[runs["method"] == "full"]
        if runs.empty:
            continue
        rate = source.usual_rate(runs, variants_of(runs)[0][0])
        chosen.append(str(runs.loc[runs["rate_text"] == rate, "configuration"].iloc[0]))
    if not chosen:
        raise NoData("there is no full fine-tuning run without preservation loss and frozen blocks")
    history = source.history(chosen)
    figure, axes = new_figure(86, 2, len(chosen), sharex="col", sharey="row")
    time, time_label = time_axis(history)
    tables: list[pd.DataFrame] = []
    shown: dict[str, Look] = {}
    for place, name in enumerate(chosen):
        part = history[history["configuration"] == name]
        for column, words, look in _TRIPLE:
            if part[column].notna().sum() == 0:
                continue
            table = over_seeds(part, [time], column).sort_values(time, kind="stable")
            panel = axes[0 if column.endswith("accuracy") else 1, place]
            curve(panel, table[time], scaled(column, table["mean"]), scaled(column, table["sd"]), look)
            shown[f"{'accuracy' if column.endswith('accuracy') else 'entropy'}, {words}"] = look
            tables.append(table.assign(configuration=name, measure=column))
        zero_line(axes[1, place])
        dataset = str(part["dataset"].iloc[0])
        axes[0, place].set_title(f"{wrap(dataset, 22, 2)}\nfull · {part['rate_text'].iloc[0]}")
        axes[1, place].set_xlabel(time_label)
        axes[1, place].xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if not tables:
        raise NoData("the table `history` holds neither accuracy nor entropy change of these runs")
    axes[0, 0].set_ylabel("Accuracy (%)")
    axes[1, 0].set_ylabel("Entropy change (%)")
    data = pd.concat(tables, ignore_index=True)
    entries = [(text, mark(one, markersize=2.6)) for text, one in shown.items()]
    legend(figure, entries, data["n"])
    text = (
        "Accuracy (top) and change of attention entropy (bottom) during full fine-tuning. The panels share their time, "
        "not an axis: accuracy and entropy have no common scale. " + spread_text(data["n"], "Bands")
    )
    return Drawing(figure, source.caption(text), data)


@figure(
    "training_dynamics",
    title="Training dynamics",
    section="rq1",
    alt="Lines over training time, a panel a measure, a line a method.",
    needs=("history",),
)
def training_dynamics(source: Source) -> Drawing:
    """Loss, accuracy, entropy and representation of all methods over training, primary data set."""
    chosen = source.representatives(source.primary)
    columns = ["train_loss", "val_accuracy", *headlines(), "monitor_zero_shot_retention_pct"]
    figure, data = evolution(source, columns, chosen)
    for panel in figure.axes:
        if panel.get_ylabel().startswith("monitor"):
            panel.set_ylabel("Retention on the\nzero-shot monitor (%)")
    text = (
        f"Training of each method on {source.primary}: loss, validation accuracy, entropy change, representation "
        "similarity (CKA) and, where it was monitored, zero-shot retention. Rates are those named in the legend and "
        "differ between methods. " + spread_text(data["n"], "Bands")
    )
    return Drawing(figure, source.caption(text), data)


@figure(
    "convergence",
    title="Convergence and onset of collapse",
    section="rq1",
    alt="A row a configuration: marks on a time axis for convergence and for the onset of collapse.",
    needs=("history",),
)
def convergence(source: Source) -> Drawing:
    """When each run converges and when its attention begins to collapse."""
    table = source.analysis.tables["dynamics_runs"]
    known = source.adapted.set_index("run_id")
    rows = [row for row in table.rows if row["run_id"] in known.index]
    if not any(_known(row, key) for row in rows for key in ("converged_epoch_best", "onset_epoch")):
        raise NoData("the table `history` has neither validation accuracies nor an onset of collapse")
    data = pd.DataFrame(rows)
    names = in_order(source, [str(name) for name in data["configuration"]])
    left = max(0, len(names) - MOST_ROWS)
    names = names[:MOST_ROWS]
    labels = [wrap(row_label(source, name), 30) for name in names]
    places = positions(labels)
    figure, axes = new_figure(20 + ROW_MM * places[-1])
    panel = axes[0, 0]
    late = float(pd.to_numeric(data["converged_epoch_best"]).max(skipna=True) or 0)
    onset = pd.to_numeric(data["onset_epoch"]).max(skipna=True)
    end = 1.22 * max(late, float(onset) if np.isfinite(onset) else 0.0, 1e-9)
    step = 0.022 * end
    for place, name in zip(places, names, strict=True):
        own = data[data["configuration"] == name]
        _events(panel, place - 0.22, own["converged_epoch_best"], "#0072B2", "o", step)
        found = _events(panel, place + 0.22, own["onset_epoch"], "#D55E00", "v", step)
        if not found and (own["reason"].fillna("").str.startswith("entropy change never")).all():
            panel.annotate(
                "none",
                (1.0, place + 0.22),
                xycoords=("axes fraction", "data"),
                ha="right",
                va="center",
                color="#B04A00",
            )
    settings = source.analysis.settings
    panel.set_xlim(0, end)
    row_axis(panel, places, labels)
    dataset = dict(zip(source.adapted["configuration"], source.adapted["dataset"], strict=True))
    name_groups(panel, places, [str(dataset[name]) for name in names])
    panel.grid(axis="y", color="#e4e4e4", linewidth=0.5)
    panel.set_axisbelow(True)
    panel.set_xlabel("Epoch")
    entries = [
        (f"within {_points(settings.convergence_points)} of best", Line2D([], [], color="#0072B2", marker="o", lw=0)),
        (
            f"entropy {settings.collapse_onset_pct:g}% or lower".replace("-", "−"),
            Line2D([], [], color="#D55E00", marker="v", lw=0),
        ),
    ]
    seeds = data.groupby("configuration").size()
    legend(figure, entries, {1} if set(seeds) == {1} else ())
    text = (
        f"Convergence (first evaluation within {_points(settings.convergence_points)} of the run's best validation "
        f"accuracy) and onset of collapse (first evaluation with an entropy change of {settings.collapse_onset_pct:g}% "
        f"or lower; `none`: never). A mark a run (n = {len(data)}); runs of one time stand side by side. "
        "Times are resolved no finer than the evaluations."
    )
    if left:
        text += f" {left} further configurations are in the tables of the analysis."
    return Drawing(figure, source.caption(text), data)


def _known(row: dict[str, Any], key: str) -> bool:
    return row.get(key) is not None


def _events(panel: Any, place: float, values: pd.Series, color: str, marker: str, step: float) -> bool:
    """A mark a run; runs of one time stand ``step`` apart around it, so that each can be counted."""
    times = pd.to_numeric(values).dropna().sort_values().to_numpy(dtype=float)
    if not len(times):
        return False
    _, which, counts = np.unique(times, return_inverse=True, return_counts=True)
    rank = np.arange(len(times)) - np.searchsorted(times, times)
    shown = times + step * (rank - (counts[which] - 1) / 2)
    panel.plot(shown, np.full(len(times), place), color=color, marker=marker, markersize=3, linestyle="none")
    return True


def _points(value: float) -> str:
    return f"{value:g} point" + ("" if value == 1 else "s")
