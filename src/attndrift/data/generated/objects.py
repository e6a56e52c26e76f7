"""``objects``: 100 classes of a coloured, patterned shape in a cluttered scene. The transfer set.

A class is a colour, a pattern and a shape, such as "red striped triangle". Every shape comes in ten
of the thirty pairs of colour and pattern, so that no single property and no pair of two tells the
class: all three must be seen, and on the same thing. Nuisance: background, small things of
any colour, pattern and shape around it, occlusion, place, size, turn, proportions, light, grain.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from attndrift.data.generated.canvas import (
    COARSE,
    Array,
    Colour,
    GeneratedSet,
    Point,
    Stencil,
    Window,
    X,
    Y,
    blend,
    chance,
    develop,
    distance,
    jitter,
    mix,
    noise,
    paste,
    pick,
    place,
    ramp,
    random_colour,
    spread,
    step,
    triangle_wave,
    uniform,
    unit,
)

_COLOURS: Final[dict[str, Colour]] = {
    "red": (208, 38, 40),
    "yellow": (240, 205, 40),
    "green": (40, 150, 58),
    "blue": (42, 76, 205),
    "purple": (142, 52, 165),
    "white": (238, 238, 236),
}
_PATTERNS: Final = ("plain", "striped", "dotted", "checkered", "hollow")


def _regular(corners: int, turn: float = -math.pi / 2) -> list[Point]:
    return [unit(turn + 2 * math.pi * k / corners) for k in range(corners)]


def _star(tips: int, inner: float) -> list[Point]:
    points = []
    for k in range(2 * tips):
        x, y = unit(-math.pi / 2 + math.pi * k / tips)
        radius = inner if k % 2 else 1.0
        points.append((x * radius, y * radius))
    return points


def _arc(start: float, stop: float, radius: float, centre: Point = (0.0, 0.0), count: int = 14) -> list[Point]:
    points = []
    for k in range(count):
        x, y = unit(start + (stop - start) * k / (count - 1))
        points.append((centre[0] + radius * x, centre[1] + radius * y))
    return points


_HEART: Final[list[Point]] = [
    (0.0, 0.95),
    *_arc(math.pi * 0.85, math.pi * 2, 0.5, (-0.48, -0.3)),
    *_arc(math.pi, math.pi * 2.15, 0.5, (0.48, -0.3)),
]
_SHAPES: Final[dict[str, list[Point]]] = {
    "circle": _regular(28),
    "square": [(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)],
    "triangle": [(0.0, -0.95), (0.95, 0.75), (-0.95, 0.75)],
    "star": _star(5, 0.42),
    "cross": [
        (-0.33, -1), (0.33, -1), (0.33, -0.33), (1, -0.33), (1, 0.33), (0.33, 0.33),
        (0.33, 1), (-0.33, 1), (-0.33, 0.33), (-1, 0.33), (-1, -0.33), (-0.33, -0.33),
    ],
    "heart": _HEART,
    "crescent": [
        *_arc(math.pi * 0.28, math.pi * 1.72, 1.0, count=20),
        *_arc(math.pi * 1.6, math.pi * 0.4, 0.82, (0.37, 0.0), count=18),
    ],
    "arrow": [(1, 0), (0.15, -0.85), (0.15, -0.32), (-1, -0.32), (-1, 0.32), (0.15, 0.32), (0.15, 0.85)],
    "hexagon": _regular(6),
    "flower": [
        point
        for k in range(5)
        for point in _arc(
            2 * math.pi * k / 5 - math.pi * 0.55,
            2 * math.pi * k / 5 + math.pi * 0.55,
            0.46,
            (0.56 * unit(2 * math.pi * k / 5)[0], 0.56 * unit(2 * math.pi * k / 5)[1]),
            count=8,
        )
    ],
}  # fmt: skip

_COLOUR_NAMES: Final = tuple(_COLOURS)
_SHAPE_NAMES: Final = tuple(_SHAPES)


def _classes() -> list[tuple[str, str, str]]:
    """Per shape ten of the thirty pairs; steps of 3 and 7 spread them over colours and patterns."""
    pairs = [(colour, pattern) for colour in _COLOUR_NAMES for pattern in _PATTERNS]
    return [
        (*pairs[(3 * k + 7 * position) % len(pairs)], shape)
        for position, shape in enumerate(_SHAPE_NAMES)
        for k in range(10)
    ]


CLASSES: Final = tuple(_classes())
"""Colour, pattern and shape of every class, in label order."""


def _background(rng: np.random.Generator, colour: Colour) -> Array:
    kind = pick(rng, 6)
    first = colour
    # Backgrounds stay duller than objects, as walls and grounds are, and unlike the object's colour.
    for _ in range(6):
        first = random_colour(rng)
        grey = sum(first) / 3
        first = blend((grey, grey, grey), first, uniform(rng, 0.25, 0.8))
        if distance(first, colour) > 95:
            break
    second = blend(first, random_colour(rng), uniform(rng, 0.1, 0.45))
    if kind == 0:
        weight = np.clip(ramp(uniform(rng, 0, 6.28), 1.0, window=COARSE), 0, 1)
    elif kind == 1:
        weight = noise(rng, 3 + pick(rng, 4))
    elif kind == 2:
        fine = noise(rng, 16 + pick(rng, 24))
        weight = noise(rng, 3 + pick(rng, 5)) * np.float32(0.6) + fine * np.float32(0.4)
    elif kind == 3:
        wave = triangle_wave(ramp(uniform(rng, 0, 6.28), uniform(rng, 3, 12), window=COARSE))
        weight = step(wave, 0.5, 0.2)
    elif kind == 4:
        cells = np.float32(uniform(rng, 3, 9))
        checks = (np.floor(X[COARSE] * cells) + np.floor(Y[COARSE] * cells)) % 2
        weight = checks * np.float32(0.7) + noise(rng, 5) * np.float32(0.3)
    else:
        horizon = uniform(rng, 0.35, 0.75)
        wavy = Y[COARSE] + (noise(rng, 4) - np.float32(0.5)) * np.float32(uniform(rng, 0, 0.2))
        weight = step(wavy, horizon, 0.03) * np.float32(0.8) + noise(rng, 12) * np.float32(0.2)
    return spread(mix(first, second, weight))


def _pattern(
    rng: np.random.Generator, name: str, colour: Colour, size: float, angle: float, window: Window
) -> Array | Colour:
    """What fills the shape. The second ink is near black, which is no class's colour."""
    if name in ("plain", "hollow"):
        return colour
    value = uniform(rng, 8, 42)
    ink = (value, value, value)
    cell = size * uniform(rng, 0.42, 0.6)
    turn = angle + uniform(rng, -0.5, 0.5)
    if name == "striped":
        phase = ramp(turn, 1 / cell, uniform(rng, 0, 1), window=window)
        return mix(colour, ink, step(triangle_wave(phase), 0.5, 0.2))
    u = ramp(turn, 1 / cell, uniform(rng, 0, 1), window=window)
    v = ramp(turn + math.pi / 2, 1 / cell, uniform(rng, 0, 1), window=window)
    if name == "checkered":
        return mix(colour, ink, (np.floor(u * np.float32(1.5)) + np.floor(v * np.float32(1.5))) % 2)
    du, dv = u - np.floor(u) - np.float32(0.5), v - np.floor(v) - np.float32(0.5)
    near = np.float32(uniform(rng, 0.075, 0.11)) - du * du - dv * dv
    return mix(colour, ink, step(near, 0.0, 0.03))


def _thing(
    rng: np.random.Generator,
    canvas: Array,
    colour: Colour,
    pattern: str,
    shape: str,
    centre: Point,
    size: float,
    *,
    shadow: bool,
) -> None:
    angle = uniform(rng, -0.45, 0.45)
    if shape == "arrow":
        angle = uniform(rng, 0, 2 * math.pi)
    elif shape == "crescent":
        angle += math.pi * pick(rng, 2)
    stretch = uniform(rng, 0.82, 1.2)
    outline = _SHAPES[shape]
    body = Stencil().polygon(place(outline, centre, size, angle, stretch))
    if pattern == "hollow":
        # A scaled copy would leave crescents and stars with arms of uneven width.
        body = Stencil()
        rim = place(outline, centre, size * 0.9, angle, stretch)
        body.line([*rim, rim[0], rim[1]], size * uniform(rng, 0.2, 0.28))
    mask, window = body.cut()
    if shadow and chance(rng, 0.5):
        dx, dy = 2 + pick(rng, 5), 2 + pick(rng, 5)
        rows, columns = window
        under = canvas[rows.start + dy : rows.stop + dy, columns.start + dx : columns.stop + dx]
        cast = mask[: under.shape[0], : under.shape[1], None]
        under *= np.float32(1) - cast * np.float32(uniform(rng, 0.2, 0.55))
    layer = _pattern(rng, pattern, jitter(rng, colour, 18), size, angle, window)
    if chance(rng, 0.6):
        slope = ramp(uniform(rng, 0, 6.28), uniform(rng, 0, 0.5) / size, window=window)
        shade = np.float32(1) + np.clip(slope - (slope.max() + slope.min()) * np.float32(0.5), -0.3, 0.3)
        layer = np.asarray(layer, dtype=np.float32) * shade[:, :, None]
    paste(canvas, mask, layer, window)


def _clutter(rng: np.random.Generator, canvas: Array, count: int, centre: Point, size: float) -> None:
    for _ in range(count):
        kind = pick(rng, 4)
        spot = (uniform(rng, 0, 1), uniform(rng, 0, 1))
        if kind == 0:
            far = unit(uniform(rng, 0, 2 * math.pi))
            end = (spot[0] + 0.5 * far[0], spot[1] + 0.5 * far[1])
            Stencil().line([spot, end], uniform(rng, 0.01, 0.04)).onto(canvas, random_colour(rng))
            continue
        # Small things keep off the middle of the object, so that it stays the main one.
        for _ in range(4):
            if (spot[0] - centre[0]) ** 2 + (spot[1] - centre[1]) ** 2 > (size * 1.1) ** 2:
                break
            spot = (uniform(rng, 0, 1), uniform(rng, 0, 1))
        if kind == 1:
            radii = (uniform(rng, 0.03, 0.12), uniform(rng, 0.03, 0.12))
            Stencil().ellipse(spot, radii, uniform(rng, 0.1, 3)).onto(canvas, random_colour(rng))
            continue
        colour = _COLOURS[_COLOUR_NAMES[pick(rng, len(_COLOUR_NAMES))]]
        shape = _SHAPE_NAMES[pick(rng, len(_SHAPE_NAMES))]
        pattern = _PATTERNS[pick(rng, len(_PATTERNS))]
        _thing(rng, canvas, colour, pattern, shape, spot, size * uniform(rng, 0.22, 0.45), shadow=False)


def _paint(rng: np.random.Generator, label: int) -> Array:
    colour, pattern, shape = CLASSES[label]
    canvas = _background(rng, _COLOURS[colour])
    size = uniform(rng, 0.2, 0.4)
    room = max(0.02, 0.5 - size)
    centre = (0.5 + uniform(rng, -room, room), 0.5 + uniform(rng, -room, room))
    _clutter(rng, canvas, 2 + pick(rng, 4), centre, size)
    _thing(rng, canvas, _COLOURS[colour], pattern, shape, centre, size, shadow=True)
    if chance(rng, 0.35):
        # Something thin in front of it.
        x, y = unit(uniform(rng, 0, 2 * math.pi))
        past = (centre[0] + uniform(rng, -0.7, 0.7) * size, centre[1] + uniform(rng, -0.7, 0.7) * size)
        line = [(past[0] - x, past[1] - y), (past[0] + x, past[1] + y)]
        Stencil().line(line, uniform(rng, 0.012, 0.04)).onto(canvas, random_colour(rng))
    return develop(rng, canvas)


OBJECTS: Final = GeneratedSet(
    name="objects",
    class_names=tuple(f"{colour} {pattern} {shape}" for colour, pattern, shape in CLASSES),
    painter=_paint,
)
"""100 classes of a colour, a pattern and a shape."""
