"""Every block of one model against every block of another, as a heatmap."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.ticker import MaxNLocator

from attndrift.figures.axes import place_of, pyplot_figure
from attndrift.figures.canvas import MM, drawing_on, empty_figure
from attndrift.figures.style import styled

WIDE = 90 * MM


def plot_cross_layer_cka(values: Any, ax: Any = None, *, label: str = "Debiased CKA") -> Any:
    """CKA of block i of the pretrained model (from below) with block j of the adapted one (from the left): one axis.

    ``values``: (blocks, blocks), as :func:`attndrift.metrics.cross_layer_cka` gives; NaN stays white.
    """
    with styled():
        place = pyplot_figure() if ax is None else place_of(ax)
        panel = _draw(values, place, label)
        place.get_figure(root=True).draw_without_rendering()
    return panel


def cross_layer_png(values: Sequence[Sequence[float | None]], *, label: str = "Debiased CKA") -> bytes:
    """The same as the bytes of a PNG; None where there is no value."""
    with styled():
        panel = _draw(np.array(values, dtype=float), None, label)
        figure, file = panel.get_figure(root=True), io.BytesIO()
        figure.dpi = 150
        FigureCanvasAgg(figure).print_png(file)
    return file.getvalue()


def _draw(values: Any, place: Any, label: str) -> Any:
    shown = np.ma.masked_invalid(np.asarray(values, dtype=float))
    if shown.ndim != 2:
        raise ValueError(f"values: expected (blocks, blocks), got {shown.shape}")
    with drawing_on(width=WIDE, place=place):
        figure = empty_figure(78 * MM)
        panel = figure.subplots()
    rows, columns = shown.shape
    mesh = panel.imshow(
        shown, cmap="viridis", vmin=0, vmax=1, origin="lower", extent=(0.5, columns + 0.5, 0.5, rows + 0.5)
    )
    panel.get_figure().colorbar(mesh, ax=panel, fraction=0.05, pad=0.03).set_label(label)
    panel.set_xlabel("Block of the adapted model")
    panel.set_ylabel("Block of the pretrained model")
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    return panel
