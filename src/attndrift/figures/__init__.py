"""Figures from the tables: ``draw_figures(tables, output)`` writes files, ``pareto_front(tables, ax=ax)`` returns axes.

Every figure of ``attndrift list figures`` is a function here. Nothing is imported before it is asked for: a command that
draws nothing needs no matplotlib.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attndrift.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from attndrift.figures.draw import draw_figures
    from attndrift.figures.drawn import FigureResult
    from attndrift.figures.maps import find_maps
    from attndrift.figures.registry import FIGURES, FigureSpec, figure
    from attndrift.figures.source import Drawing, NoData, Source
    from attndrift.results.attention_maps import MapError, MapSet, read_maps

__all__ = [
    "FIGURES",
    "Drawing",
    "FigureResult",
    "FigureSpec",
    "MapError",
    "MapSet",
    "NoData",
    "Source",
    "draw_figures",
    "figure",
    "find_maps",
    "read_maps",
]

_get, _dir = lazy_imports(
    __name__,
    {
        "attndrift.figures.draw": ("draw_figures",),
        "attndrift.figures.drawn": ("FigureResult",),
        "attndrift.figures.maps": ("find_maps",),
        "attndrift.figures.registry": ("FIGURES", "FigureSpec", "figure"),
        "attndrift.figures.source": ("Drawing", "NoData", "Source"),
        "attndrift.results.attention_maps": ("MapError", "MapSet", "read_maps"),
    },
)


def __getattr__(name: str) -> Any:
    try:
        return _get(name)
    except AttributeError:
        if name.startswith("_"):
            raise
        # Imported here, as all of the package.
        from attndrift.figures.axes import function_of
        from attndrift.registry import UnknownNameError

        try:
            return function_of(name)
        except UnknownNameError as error:
            raise AttributeError(f"attndrift.figures: {error}") from None


def __dir__() -> list[str]:
    # As above: naming the figures imports what draws them.
    from attndrift.figures.registry import FIGURES

    return sorted({*_dir(), *FIGURES.names()})
