"""Where a figure is drawn: in a figure of its own, as wide as was asked, or in the place of a user's axes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

MM = 1 / 25.4
WIDTH = 85 * MM
"""Width of a figure in inches unless another is asked for: one column of a journal."""

_INCHES = {"mm": MM, "cm": 10 * MM, "in": 1.0, "pt": 1 / 72}
_LEAST, _MOST = 60 * MM, 400 * MM


@dataclass(frozen=True)
class _Canvas:
    width: float = WIDTH
    place: Any = None


_USUAL = _Canvas()
_CANVAS: ContextVar[_Canvas] = ContextVar("canvas", default=_USUAL)


def drawing_width() -> float:
    """The width in inches of the figures that are drawn now."""
    return _CANVAS.get().width


@contextmanager
def drawing_on(*, width: float = WIDTH, place: Any = None) -> Iterator[None]:
    """Figures drawn within are ``width`` inches wide, or go into ``place``, a figure or a part of one."""
    token = _CANVAS.set(_Canvas(width, place))
    try:
        yield
    finally:
        _CANVAS.reset(token)


def empty_figure(height: float) -> Any:
    """A figure of that height in inches, or the place that figures are to go into."""
    place = _CANVAS.get().place
    if place is None:
        place = Figure(figsize=(drawing_width(), height), layout="constrained")
        FigureCanvasAgg(place)
    elif isinstance(place, Figure):
        place.set_size_inches(drawing_width(), height)
    return place


def parse_width(text: str) -> float:
    """Inches of ``85mm``, ``8.5cm``, ``3.3in`` or ``240pt``. Raises ``ValueError``.

    >>> round(parse_width("85mm"), 3)
    3.346
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(mm|cm|in|pt)", text.strip())
    inches = float(found[1]) * _INCHES[found[2]] if found else 0.0
    if not _LEAST <= inches <= _MOST:
        raise ValueError(f"width is {text!r}; write 60mm to 400mm, as 85mm, 8.5cm, 3.3in or 240pt")
    return inches
