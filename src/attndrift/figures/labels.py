"""Names beside the points of a scatter plot: each where it touches no other name and no mark, on a line where it is far."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.transforms import Bbox

from attndrift.analysis.numbers import Floats
from attndrift.figures.style import GREY, SMALLEST

_DISTANCES = (5, 9, 14, 20, 27, 35, 44, 54, 66)
_ANGLES = (0, 180, 30, 330, 150, 210, 90, 270, 60, 300, 120, 240)
_NEAR = 9
_MARK = 3.2


def label_points(
    axes: Any, points: Sequence[tuple[float, float, str]], bars: Sequence[tuple[float, float, float, float]] = ()
) -> int:
    """Write the names of ``points`` (x, y, name); ``bars`` (x, y, x, y) are lines between marks that no name may touch.

    All in data coordinates. Returns how many found no place and were left out. The figure is laid out for it; its axes
    must not change afterwards.
    """
    figure = axes.get_figure(root=True)
    figure.draw_without_rendering()
    scale = figure.dpi / 72
    frame = axes.bbox.padded(-scale)
    places: list[tuple[float, float]] = [tuple(axes.transData.transform((x, y))) for x, y, _ in points]
    ends = [(axes.transData.transform(bar[:2]), axes.transData.transform(bar[2:])) for bar in bars]
    marks = [Bbox([low, high]).padded(_MARK * scale / 2) for low, high in ends]
    marks += [_box(x, y, _MARK * scale) for x, y in places]
    solid, of_points = _corners(marks), _corners(marks[len(ends) :])
    taken: list[Bbox] = []
    missing = 0
    # The uppermost first: names then run down in the order of their points.
    for index in sorted(range(len(points)), key=lambda i: (-places[i][1], places[i][0])):
        x, y, name = points[index]
        text = axes.annotate(
            name, (x, y), xytext=(0, 0), textcoords="offset points", fontsize=SMALLEST, annotation_clip=False
        )
        text.set_in_layout(False)
        extent = text.get_window_extent()
        size = (extent.width / scale, extent.height / scale)
        others = np.delete(of_points, index, axis=1)
        found = _free(places[index], size, scale, frame, solid, _corners(taken), others)
        text.remove()
        if found is None:
            missing += 1
            continue
        left, low, box, way = found
        line = {"arrowstyle": "-", "color": GREY, "linewidth": 0.4, "shrinkA": 0, "shrinkB": 2} if way else None
        placed = axes.annotate(
            name, (x, y), xytext=(left, low), textcoords="offset points", fontsize=SMALLEST, ha="left", va="bottom",
            arrowprops=line,
        )  # fmt: skip
        placed.set_in_layout(False)
        taken += [box, *way]
    return missing


def _box(x: float, y: float, half: float) -> Bbox:
    return Bbox.from_extents(x - half, y - half, x + half, y + half)


def _corners(boxes: Sequence[Bbox]) -> Floats:
    """The least and the largest x, then y, of each box: (4, boxes)."""
    return np.array([[box.xmin, box.xmax, box.ymin, box.ymax] for box in boxes], dtype=float).reshape(-1, 4).T


def _touch(boxes: Sequence[Bbox], others: Floats) -> bool:
    """Whether one of ``boxes`` and one of ``others`` (see :func:`_corners`) have a point in common."""
    if not boxes or not others.size:
        return False
    own = _corners(boxes)[:, :, None]
    return bool(((own[0] <= others[1]) & (others[0] <= own[1]) & (own[2] <= others[3]) & (others[2] <= own[3])).any())


def _free(
    place: tuple[float, float], size: tuple[float, float], scale: float, frame: Bbox, marks: Floats, taken: Floats,
    others: Floats,
) -> tuple[float, float, Bbox, list[Bbox]] | None:  # fmt: skip
    """The first free place: offset in points of its lower left corner, its box, and boxes along its line if it has one."""
    for distance in _DISTANCES:
        for angle in _ANGLES:
            across, up = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            # The nearest edge of the name lies at the distance.
            left = distance * across + (0 if across > 0.3 else -size[0] if across < -0.3 else -size[0] / 2)
            low = distance * up - size[1] / 2
            box = Bbox.from_bounds(place[0] + left * scale, place[1] + low * scale, size[0] * scale, size[1] * scale)
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if not inside or _touch([box], marks) or _touch([box], taken):
                continue
            way = _way(place, ((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2), box, scale) if distance > _NEAR else []
            if not _touch(way, taken) and not _touch(way, others):
                return left, low, box, way
    return None


def _way(start: tuple[float, float], end: tuple[float, float], box: Bbox, scale: float) -> list[Bbox]:
    """Small boxes along the line from a mark to its name, up to the name."""
    steps = [part / 24 for part in range(2, 24)]
    points = [(start[0] + part * (end[0] - start[0]), start[1] + part * (end[1] - start[1])) for part in steps]
    return [_box(x, y, 0.3 * scale) for x, y in points if not box.contains(x, y)]
