"""Figures from the tables: ``draw_figures(tables, output) -> [FigureResult]``."""

from attndrift.figures.draw import FigureResult, draw_figures
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
