"""What the learning rate does: the sweep of structure, and dose-response panels by data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.ticker import MaxNLocator

from attndrift.analysis.measures import headlines
from attndrift.figures.panels import bars, image_words, same_scale
from attndrift.figures.registry import figure
from attndrift.figures.source import (
    Drawing,
    NoData,
    Source,
    error_of,
    over_seeds,
    scaled,
    seeds_text,
    spread_text,
    structure_columns,
    variants_of,
)
from attndrift.figures.style import (
    Look,
    axis_label,
    legend,
    looks,
    mark,
    new_figure,
    percent,
    rate_axis,
    wrap,
    zero_line,
)


def _swept(source: Source, dataset: str, *, least: int = 2) -> pd.DataFrame:
    """Plain runs of the variants that were run at ``least`` or more rates."""
    runs = source.plain(dataset)
    runs = runs[runs["learning_rate"].notna() & (runs["learning_rate"] > 0)]
    counts = runs.groupby("variant")["rate_text"].nunique()
    return runs[runs["variant"].isin(counts[counts >= least].index)]


@figure(
    "fig6_lr_sweep",
    title="Learning rate sweep",
    section="rq5",
    alt="Lines over the learning rate, a panel a measure, a line a method.",
)
def lr_sweep(source: Source) -> Drawing:
    """Fig. 6: accuracy and structure against the learning rate on the primary data set."""
    runs = _swept(source, source.primary)
    if runs.empty:
        raise NoData(f"no method was run at two learning rates on {source.primary}")
    columns = [c for c in (source.accuracy, *structure_columns(runs, last=True)) if runs[c].notna().any()]
    figure, axes = new_figure(14 + 31 * -(-len(columns) // 2), -(-len(columns) // 2), 2)
    look = looks(variants_of(runs))
    tables = [_panel(source, panel, runs, c, look) for c, panel in zip(columns, axes.flat, strict=False)]
    for panel in axes.flat[len(columns) :]:
        panel.set_visible(False)
    same_scale(dict(zip(columns, axes.flat, strict=False)), vertical=True)
    data = pd.concat(tables, ignore_index=True)
    spare = axes.flat[len(columns)] if len(columns) < axes.size else None
    entries = [(name, mark(one)) for name, one in look.items()]
    legend(figure, entries, data["n"], spare=spare, images=image_words(data))
    text = (
        f"Accuracy and change of attention structure against the learning rate on {source.primary}, mean over blocks; "
        f"entropy also of the last block. n = {len(runs)} runs, {len(look)} method{'' if len(look) == 1 else 's'}. "
        + spread_text(data["n"], images=data)
    )
    return Drawing(figure, source.caption(text), data)


def _panel(
    source: Source, axes: Any, runs: pd.DataFrame, column: str, look: dict[str, Look], *, label: bool = True
) -> pd.DataFrame:
    table = over_seeds(runs, ["variant", "learning_rate"], column, source.images)
    table = table.sort_values("learning_rate", kind="stable")
    for variant, one in look.items():
        part = table[table["variant"] == variant]
        if len(part):
            error = error_of(part)
            error = None if error is None else scaled(column, error)
            bars(axes, part["learning_rate"], scaled(column, part["mean"]), error, one)
    rate_axis(axes, list(runs["learning_rate"]), label=label)
    axes.set_ylabel(axis_label(column))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    if not percent(column) and column.endswith("change_pct"):
        zero_line(axes)
    return table.assign(measure=column)


@figure(
    "dose_response",
    title="Dose and response",
    section="rq5",
    alt="Lines over the learning rate: accuracy, retention, entropy change and embedding drift, a column a data set.",
)
def dose_response(source: Source) -> Drawing:
    """Accuracy, retention, entropy change and embedding drift against the rate, a panel column a data set."""
    swept: dict[str, pd.DataFrame] = {}
    for dataset in source.datasets[:2]:
        if len(_swept(source, dataset)):
            # Methods of a single rate are shown beside the sweep: where the rates meet, they can be compared.
            swept[dataset] = _swept(source, dataset, least=1)
    if not swept:
        raise NoData("no method was run at two learning rates")
    every = pd.concat(swept.values())
    columns = _responses(source, every)
    if not columns:
        raise NoData("the runs of the rate sweep have no accuracy, retention or drift")
    if len(swept) > 1:
        figure, axes = new_figure(16 + 30 * len(columns), len(columns), len(swept), sharey="row", sharex="col")
    else:
        rows = -(-len(columns) // 2)
        figure, grid = new_figure(14 + 34 * rows, rows, min(2, len(columns)))
        for spare in grid.flat[len(columns) :]:
            spare.set_visible(False)
        axes = grid.reshape(-1, 1)
    look = looks(variants_of(every))
    tables: list[pd.DataFrame] = []
    for place, (dataset, runs) in enumerate(swept.items()):
        for row, column in enumerate(columns):
            panel = axes[row, place]
            part = _panel(source, panel, runs, column, look, label=row == len(columns) - 1 or len(swept) == 1)
            tables.append(part.assign(dataset=dataset))
            if place:
                panel.set_ylabel("")
            if row == 0 and len(swept) > 1:
                panel.set_title(wrap(dataset, 22, 2))
    data = pd.concat(tables, ignore_index=True)
    legend(figure, [(name, mark(one)) for name, one in look.items()], data["n"], images=image_words(data))
    text = (
        f"Dose and response on {' and '.join(swept)}: what the learning rate does to accuracy, zero-shot retention "
        f"(percent of the pretrained accuracy), attention and embeddings. n = {len(every)} runs "
        f"({seeds_text(data['n'])} a point). Methods of one rate are single marks. "
        + spread_text(data["n"], images=data)
    )
    return Drawing(figure, source.caption(text), data)


def _responses(source: Source, runs: pd.DataFrame) -> Sequence[str]:
    columns = [source.accuracy]
    columns += source.retentions
    columns += headlines()
    return [c for c in columns if runs[c].notna().any()]
