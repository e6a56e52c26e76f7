"""A figure in a notebook, or in a figure of one's own: ``attndrift.figures.pareto_front(tables, ax=ax)``."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from attndrift.figures.canvas import drawing_on
from attndrift.figures.registry import FIGURES
from attndrift.figures.source import Source
from attndrift.figures.style import styled
from attndrift.results.tables import Tables, read_tables

if TYPE_CHECKING:
    from attndrift.analysis.result import Analysis


def function_of(name: str) -> Callable[..., Any]:
    """The function ``attndrift.figures.NAME``. Raises :class:`~attndrift.registry.UnknownNameError`."""
    spec = FIGURES[name]

    def draw(
        tables: Tables | str | os.PathLike[str],
        ax: Any = None,
        *,
        maps: Path | Mapping[str, Any] | None = None,
        analysis: Analysis | None = None,
    ) -> Any:
        return draw_axes(name, tables, ax, maps=maps, analysis=analysis)

    draw.__name__ = draw.__qualname__ = name
    draw.__doc__ = (
        f"{spec.title}. {spec.alt}\n\n    Args, Returns and Raises: as :func:`attndrift.figures.axes.draw_axes`."
    )
    return draw


def draw_axes(
    name: str,
    tables: Tables | str | os.PathLike[str],
    ax: Any = None,
    *,
    maps: Path | Mapping[str, Any] | None = None,
    analysis: Analysis | None = None,
) -> Any:
    """Draw the figure called ``name``, and return its axes.

    Args:
        tables: of a study, or the folder that they are in.
        ax: an axes whose place the figure takes; it is removed. Without one a new figure of pyplot is made.
        maps: where attention maps lie, as for :func:`~attndrift.figures.draw.draw_figures`; by default the folder.
        analysis: of the same tables; computed where the figure needs one and none is given.

    Returns:
        The axes that are drawn in: one, or an array (panels,).

    Raises:
        NoData: the tables hold nothing of it; the message is the reason.
    """
    if not isinstance(tables, Tables):
        maps = Path(tables) if maps is None else maps
        tables = read_tables(Path(tables))
    source = Source(tables, maps, analysis)
    with styled(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        place = pyplot_figure() if ax is None else place_of(ax)
        with drawing_on(place=place):
            FIGURES[name].draw(source)
        # Ticks take their size from the style, and are made when a figure is first drawn.
        place.get_figure(root=True).draw_without_rendering()
    shown = [panel for panel in place.axes if panel.get_visible()]
    return shown[0] if len(shown) == 1 else np.array(shown, dtype=object)


def pyplot_figure() -> Any:
    """An empty figure that a notebook or a window shows."""
    # Here, as it chooses a window system or a notebook's display: drawing files needs neither.
    from matplotlib import pyplot

    return pyplot.figure(layout="constrained")


def place_of(ax: Any) -> Any:
    """A part of the figure of ``ax``, where it was."""
    whole = ax.get_figure(root=False)
    if whole.get_figure(root=True).get_layout_engine() is None:
        whole.get_figure(root=True).set_layout_engine("constrained")
    place = whole.add_subfigure(ax.get_subplotspec())
    ax.remove()
    return place
