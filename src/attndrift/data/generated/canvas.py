"""What the generated sets share: seeded generators, noise, masks, light, and the way down to 64 x 64.

Pictures must be equal on every machine. Arrays therefore see only what IEEE 754 defines exactly
(sums, products, comparisons, floors); sines are taken one at a time and rounded, and uniform draws
replace normal ones, whose library routines differ between processors.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Array = NDArray[np.float32]
Colour = tuple[float, float, float]
Point = tuple[float, float]

SIZE: Final = 64
"""Side of a picture in pixels."""
SCALE: Final = 2
"""Pictures are drawn this much larger, and averaged down."""
CANVAS: Final = SIZE * SCALE


def _axis(count: int) -> Array:
    return (np.arange(count, dtype=np.float32) + np.float32(0.5)) / np.float32(count)


Window = tuple[slice, slice]
"""Rows and columns of a part of the canvas."""

WHOLE: Final[Window] = (slice(None), slice(None))
X: Final[Array] = np.broadcast_to(_axis(CANVAS)[None, :], (CANVAS, CANVAS))
"""Horizontal position of every canvas pixel, 0 to 1 from left to right."""
Y: Final[Array] = np.broadcast_to(_axis(CANVAS)[:, None], (CANVAS, CANVAS))
"""Vertical position of every canvas pixel, 0 to 1 from top to bottom."""
COARSE: Final[Window] = (slice(None, None, SCALE), slice(None, None, SCALE))
"""Every other pixel: backgrounds are drawn coarsely, then spread over the canvas."""


@dataclass(frozen=True)
class GeneratedSet:
    """A set of pictures that a function draws.

    Attributes:
        name: name in the registry; part of every picture's seed.
        class_names: words for a prompt, in label order.
        painter: draws a picture of one class, (64, 64, 3), values about 0 to 255.
    """

    name: str
    class_names: tuple[str, ...]
    painter: Callable[[np.random.Generator, int], Array]

    def label(self, seed: int, index: int) -> int:
        """Class of picture ``index``: the classes take turns, so any run of indices is balanced."""
        _check(self.name, seed, index)
        return index % len(self.class_names)

    def draw(self, seed: int, index: int) -> NDArray[np.uint8]:
        """Picture ``index`` of series ``seed``, uint8 of shape (64, 64, 3), the same on every machine."""
        label = self.label(seed, index)
        generator = np.random.Generator(np.random.Philox([zlib.crc32(self.name.encode()), seed, index]))
        picture = self.painter(generator, label)
        return np.clip(picture + np.float32(0.5), 0, 255).astype(np.uint8)


def _check(name: str, seed: int, index: int) -> None:
    if seed < 0 or index < 0:
        raise ValueError(f"{name}: seed and index of a picture are 0 or more, not {seed} and {index}")


def uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A number between ``low`` and ``high``."""
    return low + (high - low) * float(rng.random())


def pick(rng: np.random.Generator, count: int) -> int:
    """One of ``0 .. count - 1``."""
    return min(count - 1, int(float(rng.random()) * count))


def chance(rng: np.random.Generator, probability: float) -> bool:
    """True with this probability."""
    return float(rng.random()) < probability


def unit(angle: float) -> Point:
    """Cosine and sine of an angle in radians, rounded so that no two machines differ."""
    return round(math.cos(angle), 9), round(math.sin(angle), 9)


def noise(rng: np.random.Generator, cells: int, *, cells_high: int | None = None, side: int = SIZE) -> Array:
    """Smooth noise (side, side), 0 to 1, from a grid of ``cells`` (wide) by ``cells_high``."""
    grid = rng.integers(0, 256, size=(cells_high or cells, cells), dtype=np.uint8)
    picture = Image.fromarray(grid).resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(picture, dtype=np.float32) * np.float32(1 / 255)


def mix(first: Sequence[float], second: Sequence[float], weight: Array) -> Array:
    """A picture between two colours, ``second`` where ``weight`` (height, width) is 1."""
    a, b = np.asarray(first, dtype=np.float32), np.asarray(second, dtype=np.float32)
    return a + (b - a) * weight[:, :, None]


def paste(canvas: Array, mask: Array, layer: Array | Sequence[float], window: Window = WHOLE) -> None:
    """Lay ``layer`` (pixels of the window, or a colour) over ``canvas`` by ``mask`` (0 to 1), in place."""
    part = canvas[window]
    part += (np.asarray(layer, dtype=np.float32) - part) * mask[:, :, None]


def spread(coarse: Array) -> Array:
    """(64, 64, 3) to the canvas's (128, 128, 3)."""
    return np.repeat(np.repeat(coarse, SCALE, axis=0), SCALE, axis=1)


def develop(rng: np.random.Generator, canvas: Array, *, strength: float = 0.3, grain: float = 9.0) -> Array:
    """Average the canvas down to (64, 64, 3), then light it unevenly and add grey grain.

    ``strength`` bounds exposure, slope and tint of the light, ``grain`` the grain's standard deviation.
    """
    small = canvas.reshape(SIZE, SCALE, SIZE, SCALE, 3)
    mean = (small[:, 0, :, 0] + small[:, 0, :, 1] + small[:, 1, :, 0] + small[:, 1, :, 1]) * np.float32(0.25)
    slope = ramp(uniform(rng, 0, 2 * math.pi), 1.0, window=COARSE)
    slope = (slope - slope[SIZE // 2, SIZE // 2]) * np.float32(uniform(rng, 0, strength * 1.4))
    gain = np.float32(uniform(rng, 1 - strength, 1 + strength * 0.6)) * (np.float32(1) + slope)
    tint = [uniform(rng, 1 - strength * 0.25, 1 + strength * 0.25) for _ in range(3)]
    dust = rng.integers(0, 256, size=(SIZE, SIZE, 1), dtype=np.uint8).astype(np.float32) - np.float32(127.5)
    # 73.9 is the standard deviation of a uniform byte.
    dust *= np.float32(uniform(rng, 0, grain) / 73.9)
    return mean * gain[:, :, None] * np.asarray(tint, np.float32) + dust


def jitter(rng: np.random.Generator, colour: Sequence[float], amount: float) -> Colour:
    """The colour, every channel moved by at most ``amount``, kept within 0 to 255."""
    red, green, blue = (min(255.0, max(0.0, c + uniform(rng, -amount, amount))) for c in colour)
    return red, green, blue


def random_colour(rng: np.random.Generator) -> Colour:
    """Any colour at all."""
    return uniform(rng, 0, 255), uniform(rng, 0, 255), uniform(rng, 0, 255)


def blend(first: Sequence[float], second: Sequence[float], weight: float) -> Colour:
    """The colour ``weight`` of the way from the first to the second."""
    red, green, blue = (a + (b - a) * weight for a, b in zip(first, second, strict=True))
    return red, green, blue


def distance(first: Sequence[float], second: Sequence[float]) -> float:
    """Euclidean distance of two colours."""
    return math.sqrt(sum((a - b) * (a - b) for a, b in zip(first, second, strict=True)))


def triangle_wave(phase: Array) -> Array:
    """0 at whole numbers, 1 halfway between: a wave without a sine."""
    return np.float32(1) - np.abs((phase - np.floor(phase)) * np.float32(2) - np.float32(1))


def ramp(angle: float, cycles: float, offset: float = 0.0, *, window: Window = WHOLE) -> Array:
    """A phase that grows along ``angle``: ``cycles`` across the canvas, starting at ``offset``."""
    c, s = unit(angle)
    return X[window] * np.float32(c * cycles) + Y[window] * np.float32(s * cycles) + np.float32(offset)


def step(values: Array, threshold: float, softness: float = 0.08) -> Array:
    """0 below the threshold, 1 above it, straight in between over ``softness``."""
    return np.clip((values - np.float32(threshold)) * np.float32(1 / softness) + np.float32(0.5), 0, 1)


class Stencil:
    """A mask drawn with polygons, ellipses and lines in canvas units of 0 to 1."""

    def __init__(self) -> None:
        self._image = Image.new("L", (CANVAS, CANVAS), 0)
        self._pen = ImageDraw.Draw(self._image)

    def polygon(self, points: Sequence[Point], *, ink: int = 255) -> Stencil:
        """Fill a polygon; ``ink`` 0 rubs it out."""
        self._pen.polygon([_pixel(p) for p in points], fill=ink)
        return self

    def ellipse(self, centre: Point, radii: Point, angle: float = 0.0, *, ink: int = 255) -> Stencil:
        """Fill an ellipse, turned by ``angle`` radians."""
        if angle == 0:
            (x, y), (a, b) = centre, radii
            self._pen.ellipse([_pixel((x - a, y - b)), _pixel((x + a, y + b))], fill=ink)
            return self
        return self.polygon(ellipse_points(centre, radii, angle), ink=ink)

    def line(self, points: Sequence[Point], width: float, *, ink: int = 255) -> Stencil:
        """Draw a line through the points; ``width`` in canvas units."""
        thick = max(1, round(width * CANVAS))
        self._pen.line([_pixel(p) for p in points], fill=ink, width=thick, joint="curve")
        return self

    def mask(self) -> Array:
        """The mask, (128, 128), 0 to 1."""
        return np.asarray(self._image, dtype=np.float32) * np.float32(1 / 255)

    def cut(self) -> tuple[Array, Window]:
        """The smallest part of the mask that holds all of it, and where that is; empty if nothing is drawn."""
        left, top, right, bottom = box = self._image.getbbox() or (0, 0, 0, 0)
        part = np.asarray(self._image.crop(box), dtype=np.float32).reshape(bottom - top, right - left)
        return part * np.float32(1 / 255), (slice(top, bottom), slice(left, right))

    def onto(self, canvas: Array, colour: Sequence[float]) -> None:
        """Paint the mask onto a canvas in one colour."""
        mask, window = self.cut()
        paste(canvas, mask, colour, window)


def _pixel(point: Point) -> tuple[int, int]:
    return round(point[0] * CANVAS), round(point[1] * CANVAS)


def ellipse_points(centre: Point, radii: Point, angle: float, count: int = 20) -> list[Point]:
    """Corners of a polygon that passes for an ellipse."""
    c, s = unit(angle)
    points = []
    for k in range(count):
        x, y = unit(2 * math.pi * k / count)
        x, y = x * radii[0], y * radii[1]
        points.append((centre[0] + c * x - s * y, centre[1] + s * x + c * y))
    return points


def place(points: Sequence[Point], centre: Point, size: float, angle: float, stretch: float = 1.0) -> list[Point]:
    """Points of a shape of radius 1 about the origin, stretched, turned, scaled and moved."""
    c, s = unit(angle)
    return [
        (centre[0] + size * (c * x * stretch - s * y), centre[1] + size * (s * x * stretch + c * y)) for x, y in points
    ]
