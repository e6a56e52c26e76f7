"""Drift in a notebook: by block, and over the steps of a training."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.ticker import MaxNLocator

from attndrift.figures.axes import place_of, pyplot_figure
from attndrift.figures.canvas import MM, drawing_on, empty_figure
from attndrift.figures.style import Look, looks, styled, zero_line
from attndrift.metrics.registry import METRICS
from attndrift.results.columns import Column, metric_columns

# Importing these imports torch and transformers, and every command that draws imports this module.
if TYPE_CHECKING:
    from attndrift.drift.alerts import Alert
    from attndrift.drift.drift import Drift

WIDE = 170 * MM


def plot_drift(drift: Drift, ax: Any = None) -> Any:
    """Change of structure (percent) and similarity of representation by block: an array of two axes."""
    with styled():
        place = pyplot_figure() if ax is None else place_of(ax)
        with drawing_on(width=WIDE, place=place):
            change, same = empty_figure(60 * MM).subplots(1, 2)
        structural = [name for name in drift.structure.values if METRICS[name].headline]
        _lines(change, {name: drift.layer_change_pct(name).numpy() for name in structural})
        zero_line(change)
        change.set_ylabel("Change (%)")
        _lines(same, {name: values.numpy() for name, values in drift.compared.items() if METRICS[name].headline})
        same.set_ylabel("Similarity to the reference")
        for panel in (change, same):
            panel.set_xlabel("Block, from the input")
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        place.get_figure(root=True).draw_without_rendering()
    return np.array([change, same], dtype=object)


def plot_measurements(measured: Sequence[tuple[int, Drift]], alerts: Sequence[Alert] = (), ax: Any = None) -> Any:
    """The headline metrics over the steps, a panel each: an array of axes. ``alerts``: thresholds as dashed lines.

    Raises ``ValueError`` where nothing has been measured.
    """
    if not measured:
        raise ValueError("nothing has been measured yet; call monitor.measure(), or watch a training")
    with styled():
        place = pyplot_figure() if ax is None else place_of(ax)
        panels = _over_steps(place, measured, alerts)
        place.get_figure(root=True).draw_without_rendering()
    return panels


def measurements_png(measured: Sequence[tuple[int, Drift]], alerts: Sequence[Alert]) -> bytes:
    """The same as the bytes of a PNG."""
    with styled():
        panels = _over_steps(None, measured, alerts)
        file = io.BytesIO()
        figure = panels[0].get_figure(root=True)
        figure.dpi = 120
        FigureCanvasAgg(figure).print_png(file)
    return file.getvalue()


def _headlines() -> list[Column]:
    return [
        column for column in metric_columns("history")
        if METRICS[column.metric].headline and column.statistic in ("change_pct", "mean", "value")
        and not (METRICS[column.metric].own and column.statistic == "value")
    ]  # fmt: skip


def _over_steps(place: Any, measured: Sequence[tuple[int, Drift]], alerts: Sequence[Alert]) -> Any:
    # What an alert watches is shown, also where it is no headline.
    watched = [column for column in metric_columns("history") if column.name in {alert.metric for alert in alerts}]
    chosen = {column.name: column for column in [*_headlines(), *watched]}
    rows = {name: [drift.values().get(name) for _, drift in measured] for name in chosen}
    shown = [name for name, values in rows.items() if any(value is not None for value in values)]
    with drawing_on(width=WIDE, place=place):
        lines = -(-len(shown) // 2)
        axes = empty_figure(50 * lines * MM).subplots(lines, 2, squeeze=False, sharex=True)
    steps = [step for step, _ in measured]
    for name, panel in zip(shown, axes.flat, strict=False):
        values = [np.nan if value is None else value for value in rows[name]]
        panel.plot(steps, values, color="#0072B2", marker="o", markersize=2.6)
        column = chosen[name]
        panel.set_ylabel(column.label + (f"\n({column.unit})" if column.unit else ""))
        for bound in (bound for alert in alerts if alert.metric == name for bound in (alert.below, alert.above)):
            if bound is not None:
                panel.axhline(bound, color="#B22222", linestyle="--", linewidth=0.8)
    for panel in axes.flat[len(shown) :]:
        panel.remove()
    for panel in axes.flat[max(0, len(shown) - 2) : len(shown)]:
        panel.set_xlabel("Step")
        panel.tick_params(labelbottom=True)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    return np.array(list(axes.flat[: len(shown)]), dtype=object)


def _lines(panel: Any, values: dict[str, Any]) -> None:
    found: dict[str, Look] = looks([(name, name) for name in values])
    for name, by_block in values.items():
        look = found[name]
        label = METRICS[name].short_label or METRICS[name].label
        blocks = range(1, len(by_block) + 1)
        panel.plot(blocks, by_block, color=look.color, marker=look.marker, linestyle=look.line, label=label)
    panel.legend()
