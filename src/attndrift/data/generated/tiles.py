"""``tiles``: ten kinds of land use as seen from above, a stand-in for EuroSAT.

What tells the classes apart is layout and grain more than colour: season, soil, haze and light vary
within every class, fields, woods and water appear beside each other, and a tile of any class may
hold a track, a copse or a few houses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from attndrift.data.generated.canvas import (
    CANVAS,
    WHOLE,
    Array,
    Colour,
    GeneratedSet,
    Point,
    Stencil,
    blend,
    chance,
    develop,
    jitter,
    mix,
    noise,
    paste,
    pick,
    ramp,
    step,
    triangle_wave,
    uniform,
    unit,
)

_WOOD: Final[Colour] = (38, 62, 40)
_GRASS: Final[Colour] = (104, 128, 74)
_SCRUB: Final[Colour] = (118, 112, 82)
_WATER: Final[Colour] = (42, 62, 88)
_ROAD: Final[Colour] = (142, 138, 132)
_CROPS: Final[tuple[Colour, ...]] = (
    (148, 122, 92), (176, 152, 112), (112, 132, 70), (86, 112, 60), (128, 100, 78), (162, 158, 96), (98, 88, 70),
)  # fmt: skip
_ROOFS: Final[tuple[Colour, ...]] = ((168, 92, 72), (150, 110, 92), (176, 172, 168), (120, 112, 110), (206, 200, 192))


def _grain(rng: np.random.Generator, cells: int, amount: float) -> Array:
    """A factor about 1 that varies by ``amount`` over the canvas."""
    return np.float32(1) + (noise(rng, cells, side=CANVAS) - np.float32(0.5)) * np.float32(2 * amount)


def _wood(rng: np.random.Generator) -> Array:
    colour = jitter(rng, blend(_WOOD, _GRASS, uniform(rng, 0, 0.35)), 10)
    crowns = _grain(rng, 26 + pick(rng, 24), uniform(rng, 0.18, 0.42)) * _grain(rng, 4 + pick(rng, 4), 0.15)
    return np.asarray(colour, np.float32) * crowns[:, :, None]


def _grass(rng: np.random.Generator) -> Array:
    dry = blend(_GRASS, (158, 144, 96), uniform(rng, 0, 0.7))
    layer = mix(jitter(rng, dry, 14), jitter(rng, dry, 26), noise(rng, 3 + pick(rng, 3), side=CANVAS))
    return layer * _grain(rng, 30, uniform(rng, 0.02, 0.08))[:, :, None]


def _scrub(rng: np.random.Generator) -> Array:
    first = jitter(rng, blend(_SCRUB, _GRASS, uniform(rng, 0, 0.8)), 14)
    second = blend(first, _WOOD, uniform(rng, 0.35, 0.75))
    patches = noise(rng, 7 + pick(rng, 8), side=CANVAS) * np.float32(0.6)
    patches += noise(rng, 18 + pick(rng, 16), side=CANVAS) * np.float32(0.4)
    return mix(first, second, step(patches, uniform(rng, 0.45, 0.6), uniform(rng, 0.15, 0.5)))


def _parcels(rng: np.random.Generator, *, size: float, rows: float) -> Array:
    """Fields between straight borders; ``rows`` is the share of fields with visible rows of plants."""
    turn = uniform(rng, 0, math.pi)
    along, across = ramp(turn, 1 / size), ramp(turn + math.pi / 2, 1 / (size * uniform(rng, 0.5, 1.3)))
    strip = np.floor(across + np.float32(uniform(rng, 0, 1)))
    # Every strip of fields starts elsewhere, so that borders do not meet in crosses.
    shifted = along + (strip * np.float32(0.381966) - np.floor(strip * np.float32(0.381966)))
    field = np.floor(shifted)
    number = (np.abs(strip * np.float32(7) + field * np.float32(13)) % 16).astype(np.int64)
    palette = [jitter(rng, _CROPS[pick(rng, len(_CROPS))], 16) for _ in range(16)]
    layer = np.asarray(palette, np.float32)[number]
    furrows = triangle_wave(ramp(turn + math.pi / 2 * pick(rng, 2), uniform(rng, 18, 40)))
    depth = np.asarray([uniform(rng, 0.12, 0.35) if chance(rng, rows) else 0.03 for _ in range(16)], np.float32)
    layer *= (np.float32(1) - furrows * depth[number])[:, :, None]
    if chance(rng, 0.6):
        edge = np.maximum(
            step(np.abs(shifted - field - np.float32(0.5)), 0.5 - 0.012 / size, 0.02),
            step(np.abs(across - np.floor(across) - np.float32(0.5)), 0.5 - 0.012 / size, 0.02),
        )
        paste(layer, edge * np.float32(uniform(rng, 0.2, 0.7)), blend(_GRASS, _ROAD, uniform(rng, 0, 1)))
    return layer * _grain(rng, 20, 0.05)[:, :, None]


def _course(rng: np.random.Generator, bend: float) -> list[Point]:
    """A line across the whole tile, through its middle part, that bends by about ``bend``."""
    c, s = unit(uniform(rng, 0, 2 * math.pi))
    aside, swing, phase = uniform(rng, -0.28, 0.28), uniform(rng, -bend, bend), uniform(rng, 0, 6.28)
    cycles = uniform(rng, 0.4, 1.3)
    points = []
    for k in range(25):
        t = (k / 24 - 0.5) * 1.7
        off = aside + swing * unit(phase + 2 * math.pi * cycles * t)[1]
        points.append((0.5 + c * t - s * off, 0.5 + s * t + c * off))
    return points


def _houses(
    rng: np.random.Generator, canvas: Array, spots: Sequence[Point], *, low: float, high: float, turn: float
) -> None:
    for x, y in spots:
        a, b = uniform(rng, low, high), uniform(rng, low, high)
        c, s = unit(turn)
        square = ((-1, -1), (1, -1), (1, 1), (-1, 1))
        corners = [(x + c * i * a - s * j * b, y + s * i * a + c * j * b) for i, j in square]
        roof = jitter(rng, _ROOFS[pick(rng, len(_ROOFS))], 22)
        Stencil().polygon([(p + 0.012, q + 0.012) for p, q in corners]).onto(canvas, (48, 48, 46))
        Stencil().polygon(corners).onto(canvas, roof)


def _streets(rng: np.random.Generator, canvas: Array, spacing: float, turn: float, width: float) -> None:
    for angle in (turn, turn + math.pi / 2):
        phase = ramp(angle, 1 / (spacing * uniform(rng, 0.8, 1.6)), uniform(rng, 0, 1))
        near = np.abs(phase - np.floor(phase) - np.float32(0.5)) * np.float32(spacing)
        paste(canvas, np.float32(1) - step(near, width, 0.012), jitter(rng, _ROAD, 18))


def _lattice(rng: np.random.Generator, spacing: float, turn: float, keep: float) -> list[Point]:
    """Places on a turned, shaken grid."""
    c, s = unit(turn)
    reach = math.ceil(0.75 / spacing)
    spots = []
    for i in range(-reach, reach + 1):
        for j in range(-reach, reach + 1):
            x, y = 0.5 + spacing * (c * i - s * j), 0.5 + spacing * (s * i + c * j)
            if -0.05 < x < 1.05 and -0.05 < y < 1.05 and chance(rng, keep):
                spots.append((x + uniform(rng, -0.2, 0.2) * spacing, y + uniform(rng, -0.2, 0.2) * spacing))
    return spots


def _country(rng: np.random.Generator) -> Array:
    """Whatever lies around a road or a river."""
    kind = pick(rng, 5)
    if kind == 0:
        return _wood(rng)
    if kind == 1:
        return _grass(rng)
    if kind == 2:
        return _scrub(rng)
    layer = _parcels(rng, size=uniform(rng, 0.25, 0.6), rows=0.2)
    if kind == 3:
        paste(layer, step(noise(rng, 4, side=CANVAS), 0.6, 0.1), _wood(rng))
    return layer


def _guests(rng: np.random.Generator, canvas: Array) -> None:
    """Things that may be on a tile of any class, and tell nothing."""
    if chance(rng, 0.3):
        track = jitter(rng, blend(_ROAD, _SCRUB, uniform(rng, 0, 0.8)), 14)
        Stencil().line(_course(rng, 0.12), uniform(rng, 0.008, 0.02)).onto(canvas, track)
    if chance(rng, 0.3):
        spots = [(uniform(rng, 0, 1), uniform(rng, 0, 1)) for _ in range(1 + pick(rng, 4))]
        _houses(rng, canvas, spots, low=0.01, high=0.03, turn=uniform(rng, 0, 1.5))
    if chance(rng, 0.35):
        for _ in range(1 + pick(rng, 9)):
            spot = (uniform(rng, 0, 1), uniform(rng, 0, 1))
            radius = uniform(rng, 0.012, 0.05)
            Stencil().ellipse(spot, (radius, radius * uniform(rng, 0.7, 1.4))).onto(canvas, jitter(rng, _WOOD, 10))
    if chance(rng, 0.18):
        wedge = ramp(uniform(rng, 0, 2 * math.pi), 1.0)
        edge = wedge + (noise(rng, 4, side=CANVAS) - np.float32(0.5)) * np.float32(0.3)
        share = np.float32(uniform(rng, 0.15, 0.3))
        corner = edge.min() + (edge.max() - edge.min()) * (np.float32(1) - share)
        paste(canvas, step(edge, float(corner), 0.04), _country(rng))


def _annual_crop(rng: np.random.Generator) -> Array:
    return _parcels(rng, size=uniform(rng, 0.28, 0.9), rows=0.25)


def _permanent_crop(rng: np.random.Generator) -> Array:
    canvas = _parcels(rng, size=uniform(rng, 0.3, 0.8), rows=0.15)
    turn, cells = uniform(rng, 0, math.pi), uniform(rng, 9, 19)
    across = triangle_wave(ramp(turn, cells))
    if chance(rng, 0.5):
        plants = step(across, 0.5, 0.5)
    else:
        plants = step(across * triangle_wave(ramp(turn + math.pi / 2, cells)), 0.3, 0.3)
    where = step(noise(rng, 2 + pick(rng, 2), side=CANVAS), uniform(rng, 0.2, 0.5), 0.06)
    green = jitter(rng, blend(_WOOD, _GRASS, uniform(rng, 0.1, 0.7)), 12)
    paste(canvas, plants * where * np.float32(uniform(rng, 0.35, 0.85)), green)
    return canvas


def _forest(rng: np.random.Generator) -> Array:
    canvas = _wood(rng)
    if chance(rng, 0.4):
        clearing = step(noise(rng, 3 + pick(rng, 3), side=CANVAS), uniform(rng, 0.62, 0.8), 0.06)
        paste(canvas, clearing, _grass(rng) if chance(rng, 0.5) else _scrub(rng))
    return canvas


def _herbaceous(rng: np.random.Generator) -> Array:
    canvas = _scrub(rng)
    if chance(rng, 0.35):
        paste(canvas, step(noise(rng, 3, side=CANVAS), uniform(rng, 0.55, 0.75), 0.15), _grass(rng))
    return canvas


def _pasture(rng: np.random.Generator) -> Array:
    canvas = _grass(rng)
    hedge = jitter(rng, blend(_WOOD, _GRASS, uniform(rng, 0, 0.5)), 10)
    for _ in range(pick(rng, 4)):
        Stencil().line(_course(rng, 0.05), uniform(rng, 0.012, 0.03)).onto(canvas, hedge)
    if chance(rng, 0.4):
        paste(canvas, step(noise(rng, 5, side=CANVAS), uniform(rng, 0.68, 0.8), 0.05), _wood(rng))
    return canvas


def _highway(rng: np.random.Generator) -> Array:
    canvas = _country(rng)
    road, width = _course(rng, uniform(rng, 0, 0.2)), uniform(rng, 0.028, 0.065)
    grey = jitter(rng, blend(_ROAD, (96, 94, 92), uniform(rng, 0, 0.8)), 14)
    Stencil().line(road, width * 1.7).onto(canvas, blend(grey, _GRASS, 0.6))
    Stencil().line(road, width).onto(canvas, grey)
    if chance(rng, 0.5):
        Stencil().line(road, width * 0.22).onto(canvas, blend(grey, _GRASS, uniform(rng, 0.3, 1)))
    if chance(rng, 0.4):
        Stencil().line(_course(rng, 0.3), width * uniform(rng, 0.35, 0.8)).onto(canvas, jitter(rng, grey, 12))
    return canvas


def _river(rng: np.random.Generator) -> Array:
    canvas = _country(rng)
    course, width = _course(rng, uniform(rng, 0.08, 0.32)), uniform(rng, 0.05, 0.26)
    water = jitter(rng, blend(_WATER, (96, 104, 88), uniform(rng, 0, 0.9)), 12)
    Stencil().line(course, width * uniform(rng, 1.1, 1.6)).onto(canvas, blend(water, _SCRUB, uniform(rng, 0.4, 1)))
    Stencil().line(course, width).onto(canvas, water)
    return canvas


def _sea_lake(rng: np.random.Generator) -> Array:
    water = jitter(rng, blend(_WATER, (72, 98, 92), uniform(rng, 0, 0.8)), 14)
    canvas = mix(water, jitter(rng, water, 18), noise(rng, 2 + pick(rng, 3), side=CANVAS))
    canvas *= _grain(rng, 30, uniform(rng, 0, 0.06))[:, :, None]
    if chance(rng, 0.4):
        shore = ramp(uniform(rng, 0, 6.28), 1.0)
        shore = shore + (noise(rng, 4, side=CANVAS) - np.float32(0.5)) * np.float32(uniform(rng, 0.1, 0.5))
        edge = float(shore.min() + (shore.max() - shore.min()) * np.float32(uniform(rng, 0.62, 0.9)))
        paste(canvas, step(shore, edge, 0.03), _country(rng))
    if chance(rng, 0.3):
        spots = [(uniform(rng, 0, 1), uniform(rng, 0, 1)) for _ in range(1 + pick(rng, 5))]
        _houses(rng, canvas, spots, low=0.006, high=0.022, turn=uniform(rng, 0, 1.5))
    return canvas


def _residential(rng: np.random.Generator) -> Array:
    canvas = _grass(rng) if chance(rng, 0.5) else _scrub(rng)
    turn, spacing = uniform(rng, 0, math.pi), uniform(rng, 0.09, 0.16)
    _streets(rng, canvas, spacing * 2, turn, uniform(rng, 0.012, 0.022))
    spots = _lattice(rng, spacing, turn + uniform(rng, -0.1, 0.1), uniform(rng, 0.5, 0.95))
    if chance(rng, 0.4):
        middle = (uniform(rng, 0.2, 0.8), uniform(rng, 0.2, 0.8))
        spots = [p for p in spots if (p[0] - middle[0]) ** 2 + (p[1] - middle[1]) ** 2 < 0.3]
    _houses(rng, canvas, spots, low=spacing * 0.16, high=spacing * 0.4, turn=turn)
    return canvas


def _industrial(rng: np.random.Generator) -> Array:
    ground = jitter(rng, blend(_ROAD, _SCRUB, uniform(rng, 0, 0.6)), 18)
    canvas = mix(ground, jitter(rng, ground, 26), noise(rng, 6, side=CANVAS))
    if chance(rng, 0.4):
        paste(canvas, step(noise(rng, 3, side=CANVAS), 0.55, 0.06), _country(rng))
    turn, spacing = uniform(rng, 0, math.pi), uniform(rng, 0.24, 0.42)
    _streets(rng, canvas, spacing, turn, uniform(rng, 0.014, 0.03))
    spots = _lattice(rng, spacing, turn, uniform(rng, 0.6, 1.0))
    _houses(rng, canvas, spots, low=spacing * 0.14, high=spacing * 0.46, turn=turn)
    return canvas


_CLASSES: Final = {
    "annual crop": _annual_crop,
    "forest": _forest,
    "herbaceous vegetation": _herbaceous,
    "highway": _highway,
    "industrial": _industrial,
    "pasture": _pasture,
    "permanent crop": _permanent_crop,
    "residential": _residential,
    "river": _river,
    "sea or lake": _sea_lake,
}
_PAINTERS: Final = tuple(_CLASSES.values())


def _paint(rng: np.random.Generator, label: int) -> Array:
    canvas = _PAINTERS[label](rng)
    if _PAINTERS[label] is not _sea_lake:
        _guests(rng, canvas)
    # Season and air: one tint for the whole tile, and haze that lifts its darks.
    tint = np.asarray([uniform(rng, 0.9, 1.12) for _ in range(3)], np.float32)
    haze = uniform(rng, 0, 0.3)
    canvas *= tint
    paste(canvas, np.full(canvas[WHOLE].shape[:2], haze, np.float32), (150, 156, 166))
    return develop(rng, canvas, strength=0.28, grain=8)


TILES: Final = GeneratedSet(name="tiles", class_names=tuple(_CLASSES), painter=_paint)
"""Ten kinds of land use."""
