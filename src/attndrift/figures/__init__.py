"""Figures from the tables: ``draw_figures(tables, output) -> [FigureResult]``."""

from attndrift.figures.draw import FIGURES, FigureError, FigureResult, draw_figures
from attndrift.figures.maps import MapError, MapSet, find_maps, read_maps
from attndrift.figures.source import Drawing, NoData, Source

__all__ = [
    "FIGURES",
    "Drawing",
    "FigureError",
    "FigureResult",
    "MapError",
    "MapSet",
    "NoData",
    "Source",
    "draw_figures",
    "find_maps",
    "read_maps",
]
