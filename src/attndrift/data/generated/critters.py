"""``critters``: 37 breeds of a generated animal, a stand-in for Oxford-IIIT Pet.

A breed is a row of traits: ears, tail, coat, two colours, and the proportions of legs, body, head and snout.
Neighbouring rows share most of them, so breeds must be told apart by a part, not by the whole. Nuisance:
pose, side, size, place, background, light, shade of the coat, grass and posts in front.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from attndrift.data.generated.canvas import (
    CANVAS,
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
    ellipse_points,
    jitter,
    mix,
    noise,
    paste,
    pick,
    ramp,
    random_colour,
    spread,
    step,
    triangle_wave,
    uniform,
    unit,
)

_INKS: Final[dict[str, Colour]] = {
    "black": (44, 40, 42),
    "white": (228, 224, 216),
    "grey": (128, 128, 132),
    "brown": (112, 74, 46),
    "tan": (190, 150, 104),
    "ginger": (204, 118, 52),
    "cream": (222, 200, 162),
}


@dataclass(frozen=True)
class Breed:
    """Traits of a breed; lengths in units of the body's height."""

    name: str
    ears: str
    tail: str
    coat: str
    first: str
    second: str
    legs: float
    length: float
    head: float
    snout: float


def _row(text: str) -> Breed:
    name, ears, tail, coat, first, second, *numbers = [part.strip() for part in text.split(",")]
    legs, length, head, snout = (float(number) for number in numbers)
    return Breed(name, ears, tail, coat, first, second, legs, length, head, snout)


BREEDS: Final = tuple(
    _row(line)
    for line in """
    alder hound,      drop,    thin,   saddle,  tan,    black,  1.5, 2.1, 0.62, 0.75
    birch hound,      drop,    thin,   patches, white,  brown,  1.5, 2.1, 0.62, 0.75
    cedar hound,      drop,    thin,   solid,   tan,    brown,  1.7, 2.0, 0.55, 0.85
    dune hound,       prick,   thin,   solid,   cream,  tan,    1.7, 2.0, 0.55, 0.85
    ember hound,      drop,    curl,   saddle,  ginger, black,  1.5, 2.1, 0.62, 0.75
    fen terrier,      prick,   stub,   saddle,  tan,    black,  0.9, 1.8, 0.72, 0.60
    glen terrier,     fold,    stub,   saddle,  tan,    black,  0.9, 1.8, 0.72, 0.60
    heath terrier,    fold,    stub,   patches, white,  ginger, 1.0, 1.8, 0.70, 0.60
    isle terrier,     prick,   stub,   solid,   white,  cream,  0.8, 2.0, 0.72, 0.55
    juniper terrier,  prick,   bushy,  solid,   black,  grey,   0.8, 2.0, 0.72, 0.55
    kelp spaniel,     long,    stub,   patches, white,  ginger, 1.2, 1.9, 0.66, 0.62
    lark spaniel,     long,    stub,   patches, white,  black,  1.2, 1.9, 0.66, 0.62
    moor spaniel,     long,    bushy,  solid,   brown,  tan,    1.2, 1.9, 0.66, 0.62
    nettle spaniel,   long,    bushy,  speckle, white,  brown,  1.2, 1.9, 0.66, 0.62
    oak spitz,        prick,   curl,   belly,   ginger, white,  1.1, 1.6, 0.74, 0.50
    pine spitz,       prick,   curl,   belly,   grey,   white,  1.2, 1.8, 0.70, 0.55
    quill spitz,      prick,   curl,   solid,   white,  cream,  1.1, 1.7, 0.72, 0.50
    reed spitz,       prick,   curl,   mask,    grey,   black,  1.2, 1.8, 0.70, 0.55
    sorrel mastiff,   fold,    thin,   mask,    tan,    black,  1.3, 1.7, 0.86, 0.40
    thistle mastiff,  fold,    thin,   stripes, brown,  black,  1.3, 1.7, 0.86, 0.40
    umber mastiff,    drop,    thin,   belly,   brown,  white,  1.2, 1.8, 0.90, 0.40
    vale pug,         fold,    curl,   mask,    cream,  black,  0.8, 1.5, 0.84, 0.20
    willow pug,       fold,    curl,   solid,   black,  grey,   0.8, 1.5, 0.84, 0.20
    yarrow longcat,   tuft,    bushy,  stripes, brown,  black,  0.9, 2.0, 0.66, 0.22
    aspen longcat,    tuft,    bushy,  stripes, grey,   black,  0.9, 2.0, 0.66, 0.22
    bramble longcat,  prick,   bushy,  belly,   ginger, white,  0.9, 1.9, 0.66, 0.22
    clover longcat,   prick,   bushy,  points,  cream,  brown,  0.9, 1.9, 0.66, 0.22
    dusk shorthair,   prick,   thin,   solid,   grey,   black,  0.9, 1.7, 0.70, 0.20
    fern shorthair,   fold,    bushy,  solid,   grey,   black,  0.8, 1.7, 0.80, 0.18
    hazel shorthair,  prick,   thin,   stripes, ginger, brown,  0.9, 1.7, 0.70, 0.20
    ivy shorthair,    prick,   thin,   patches, white,  black,  0.9, 1.7, 0.70, 0.20
    lotus shorthair,  prick,   thin,   points,  cream,  brown,  1.1, 1.7, 0.60, 0.30
    maple bobtail,    prick,   stub,   patches, white,  ginger, 0.9, 1.7, 0.70, 0.20
    myrtle bobtail,   tuft,    stub,   spots,   tan,    black,  1.0, 1.8, 0.68, 0.22
    olive leopard,    round,   thin,   spots,   tan,    black,  1.0, 2.1, 0.60, 0.28
    poppy leopard,    round,   thin,   spots,   grey,   black,  1.0, 2.1, 0.60, 0.28
    sage leopard,     round,   bushy,  spots,   cream,  brown,  0.9, 2.1, 0.60, 0.26
    """.strip().splitlines()
)  # fmt: skip
"""Every breed, in label order."""


class _Pose:
    """Where this animal stands: from its own units (body centre 0, 0; head to the right) to the canvas."""

    def __init__(self, rng: np.random.Generator, breed: Breed) -> None:
        self.unit = uniform(rng, 0.14, 0.205) * (1 - 0.12 * (breed.length - 1.5))
        self.side = -1.0 if chance(rng, 0.5) else 1.0
        self.turn = unit(uniform(rng, -0.22, 0.22))
        self.centre = (
            0.5 - self.side * 0.06 + uniform(rng, -0.1, 0.1),
            0.5 - 0.04 + uniform(rng, -0.1, 0.08),
        )
        self.legs = breed.legs * uniform(rng, 0.88, 1.1)
        self.length = breed.length * uniform(rng, 0.93, 1.07)
        self.head = breed.head * uniform(rng, 0.94, 1.06)
        self.raise_head = uniform(rng, -0.15, 0.75)
        self.stride = uniform(rng, -0.45, 0.45)
        self.sit = uniform(rng, 0.3, 0.6) if chance(rng, 0.3) else 0.0
        self.wag = uniform(rng, -0.6, 0.6)

    def at(self, x: float, y: float) -> Point:
        """A point on the canvas."""
        # A sitting animal's hind part is low.
        y = y + self.sit * max(0.0, 0.4 - x)
        c, s = self.turn
        return (
            self.centre[0] + self.unit * self.side * (c * x - s * y),
            self.centre[1] + self.unit * (s * x + c * y),
        )

    def blob(self, x: float, y: float, radii: Point, angle: float = 0.0) -> list[Point]:
        """An ellipse in the animal's units."""
        return [self.at(*point) for point in ellipse_points((x, y), radii, angle)]

    def own(self, window: Window) -> tuple[Array, Array]:
        """The animal's units at every pixel of a window, sitting left aside."""
        c, s = self.turn
        scale = np.float32(1 / self.unit)
        u = (X[window] - np.float32(self.centre[0])) * np.float32(self.side) * scale
        v = (Y[window] - np.float32(self.centre[1])) * scale
        return u * np.float32(c) + v * np.float32(s), v * np.float32(c) - u * np.float32(s)


def _coat(rng: np.random.Generator, breed: Breed, pose: _Pose, window: Window, first: Colour, second: Colour) -> Array:
    """Colours of body and head over a window."""
    u, v = pose.own(window)
    half = np.float32(pose.length / 2)
    wavy = noise(rng, 9, side=CANVAS)[window] - np.float32(0.5)
    if breed.coat == "solid":
        weight = np.zeros_like(u)
    elif breed.coat == "saddle":
        weight = step(-v + wavy * np.float32(0.5), uniform(rng, -0.12, 0.12), 0.25) * step(
            half * np.float32(0.75) - u, 0, 0.3
        )
    elif breed.coat == "belly":
        weight = step(v + wavy * np.float32(0.4), uniform(rng, 0.08, 0.25), 0.2)
    elif breed.coat == "patches":
        weight = step(noise(rng, 5 + pick(rng, 3), side=CANVAS)[window], uniform(rng, 0.48, 0.58), 0.06)
    elif breed.coat == "stripes":
        phase = u * np.float32(uniform(rng, 1.7, 2.3)) + v * np.float32(0.3) + wavy * np.float32(0.5)
        weight = step(triangle_wave(phase + np.float32(uniform(rng, 0, 1))), 0.62, 0.25)
    elif breed.coat == "spots":
        rate = np.float32(uniform(rng, 2.0, 2.6))
        p = u * rate + wavy * np.float32(0.9)
        odd = np.floor(p).astype(np.float32) * np.float32(0.5)
        q = v * rate + odd + np.float32(uniform(rng, 0, 1))
        dp = p - np.floor(p) - np.float32(0.5)
        dq = q - np.floor(q) - np.float32(0.5)
        weight = step(-(dp * dp + dq * dq), -0.085, 0.05)
    elif breed.coat == "speckle":
        weight = step(noise(rng, 40, side=CANVAS)[window], 0.58, 0.1)
    else:
        # Mask and points are parts in the second colour; the body is plain.
        weight = np.zeros_like(u)
    return mix(first, second, weight * np.float32(0.92))


def _tail(breed: Breed, pose: _Pose) -> Stencil:
    x, w = -pose.length / 2 + 0.08, pose.wag
    stencil = Stencil()
    if breed.tail == "stub":
        return stencil.polygon(pose.blob(x - 0.14, -0.22, (0.17, 0.13)))
    if breed.tail == "curl":
        ring = [pose.at(x - 0.02 + 0.34 * unit(a)[0], -0.62 + 0.34 * unit(a)[1]) for a in np.linspace(1.2, 6.6, 14)]
        return stencil.line(ring, pose.unit * 0.27)
    path = [pose.at(x - 0.9 * t, -0.25 - (0.35 + w) * t + 0.5 * w * t * t - 0.25 * t * t) for t in np.linspace(0, 1, 8)]
    if breed.tail == "thin":
        return stencil.line(path, pose.unit * 0.14)
    for t, point in zip(np.linspace(0, 1, 8), path, strict=True):
        radius = pose.unit * (0.12 + 0.26 * float(t) * (1.25 - 0.55 * float(t)))
        stencil.ellipse(point, (radius, radius))
    return stencil


def _ear(breed: Breed, pose: _Pose, x: float, y: float, r: float) -> Stencil:
    """One ear whose root is at x, y on a head of radius r."""
    stencil = Stencil()
    if breed.ears in ("prick", "tuft"):
        stencil.polygon(
            [pose.at(x - 0.42 * r, y + 0.15 * r), pose.at(x - 0.1 * r, y - 1.0 * r), pose.at(x + 0.4 * r, y + 0.1 * r)]
        )
        if breed.ears == "tuft":
            tip = pose.at(x - 0.1 * r, y - 0.85 * r)
            stencil.line([tip, pose.at(x - 0.3 * r, y - 1.5 * r)], max(0.012, pose.unit * 0.1))
        return stencil
    if breed.ears == "round":
        return stencil.polygon(pose.blob(x, y - 0.2 * r, (0.42 * r, 0.42 * r)))
    if breed.ears == "fold":
        return stencil.polygon(
            [pose.at(x - 0.45 * r, y), pose.at(x - 0.1 * r, y - 0.55 * r), pose.at(x + 0.5 * r, y + 0.3 * r)]
        )
    long = 1.25 if breed.ears == "long" else 0.75
    return stencil.polygon(pose.blob(x - 0.2 * r, y + 0.72 * long * r, (0.34 * r, 0.8 * long * r), 0.15))


def _shade(rng: np.random.Generator, ink: Colour) -> Colour:
    """Lighter or darker, and only a little redder or bluer."""
    by = uniform(rng, -22, 22)
    return jitter(rng, (ink[0] + by, ink[1] + by, ink[2] + by), 9)


def _animal(rng: np.random.Generator, canvas: Array, breed: Breed) -> None:
    pose = _Pose(rng, breed)
    first, second = _shade(rng, _INKS[breed.first]), _shade(rng, _INKS[breed.second])
    dark = blend(first, (20, 18, 20), 0.35)
    ends = second if breed.coat == "points" else first
    half, ground = pose.length / 2, 0.45 + pose.legs
    shade = Stencil().polygon(pose.blob(0.1, ground, (half + 0.4, 0.22)))
    mask, window = shade.cut()
    paste(canvas, mask * np.float32(uniform(rng, 0.15, 0.5)), (30, 28, 26), window)

    def leg(x: float, lean: float, colour: Colour) -> None:
        path = [pose.at(x, 0.15), pose.at(x + lean * 0.4, 0.2 + pose.legs * 0.55), pose.at(x + lean, ground)]
        Stencil().line(path, pose.unit * 0.3).polygon(pose.blob(x + lean + 0.08, ground - 0.06, (0.2, 0.11))).onto(
            canvas, colour
        )

    leg(half - 0.35, -pose.stride, blend(dark, ends, 0.2))
    leg(-half + 0.3, pose.stride, blend(dark, ends, 0.2))
    _tail(breed, pose).onto(canvas, ends if breed.coat != "saddle" else blend(first, second, 0.6))
    body = Stencil().polygon(pose.blob(0, 0, (half, 0.52)))
    body.polygon(pose.blob(half - 0.42, -0.02, (0.5, 0.55)))
    head_x, head_y = half + 0.22, -0.42 - pose.raise_head * 0.75
    neck = (0.34, 0.0)
    body.polygon(
        [
            pose.at(half - 0.7, -0.38),
            pose.at(head_x - neck[0], head_y),
            pose.at(head_x + 0.1, head_y + 0.3),
            pose.at(half + 0.02, 0.25),
        ]
    )
    body.polygon(pose.blob(head_x, head_y, (pose.head * 0.62, pose.head * 0.56)))
    mask, window = body.cut()
    coat = _coat(rng, breed, pose, window, first, second)
    _, v = pose.own(window)
    coat *= (np.float32(1.06) - np.clip(v, -0.6, 0.6) * np.float32(uniform(rng, 0.1, 0.4)))[:, :, None]
    coat *= (np.float32(0.9) + noise(rng, 34, side=CANVAS)[window] * np.float32(0.2))[:, :, None]
    paste(canvas, mask, coat, window)
    for x, lean in ((half - 0.5, pose.stride), (-half + 0.48, -pose.stride)):
        leg(x, lean, second if breed.coat in ("points", "belly") else first)
    _face(rng, canvas, breed, pose, (head_x, head_y), first, second)


def _face(
    rng: np.random.Generator, canvas: Array, breed: Breed, pose: _Pose, head: Point, first: Colour, second: Colour
) -> None:
    x, y = head
    r = pose.head * 0.6
    marked = breed.coat in ("mask", "points")
    ear = second if breed.coat in ("points", "saddle", "patches", "speckle") else blend(first, (20, 18, 20), 0.22)
    hanging = breed.ears in ("drop", "long")
    for dx in (-0.28, 0.42):
        if hanging and dx > 0:
            continue
        _ear(breed, pose, x + dx * r, y - (0.35 if hanging else 0.62) * r, r).onto(canvas, ear)
    muzzle = second if marked or breed.coat == "belly" else blend(first, (240, 230, 215), 0.18)
    reach = breed.snout
    Stencil().polygon(pose.blob(x + 0.55 * r + reach * 0.38, y + 0.28 * r, (0.32 * r + reach * 0.42, 0.36 * r))).onto(
        canvas, muzzle
    )
    Stencil().polygon(pose.blob(x + 0.8 * r + reach * 0.75, y + 0.16 * r, (0.13, 0.1))).onto(canvas, (26, 22, 24))
    if marked:
        Stencil().polygon(pose.blob(x + 0.35 * r, y - 0.02, (0.4 * r, 0.3 * r))).onto(canvas, second)
    eye = (216, 190, 96) if chance(rng, 0.5) else (232, 228, 220)
    Stencil().polygon(pose.blob(x + 0.38 * r, y - 0.15 * r, (0.11, 0.1))).onto(canvas, eye)
    Stencil().polygon(pose.blob(x + 0.42 * r, y - 0.15 * r, (0.055, 0.08))).onto(canvas, (14, 12, 12))


def _background(rng: np.random.Generator) -> Array:
    indoors = chance(rng, 0.4)
    if indoors:
        wall, floor = random_colour(rng), random_colour(rng)
        wall, floor = blend(wall, (160, 152, 140), 0.6), blend(floor, (120, 100, 84), 0.6)
    else:
        wall = jitter(rng, blend((150, 178, 208), (110, 140, 96), uniform(rng, 0, 1)), 28)
        floor = jitter(rng, blend((96, 128, 66), (168, 148, 112), uniform(rng, 0, 1)), 24)
    horizon = uniform(rng, 0.3, 0.8)
    edge = Y[COARSE] + (noise(rng, 5) - np.float32(0.5)) * np.float32(0.0 if indoors else uniform(rng, 0, 0.3))
    coarse = mix(wall, floor, step(edge, horizon, 0.02))
    coarse *= (np.float32(1) + (noise(rng, 4) - np.float32(0.5)) * np.float32(0.3))[:, :, None]
    coarse *= (np.float32(1) + (noise(rng, 24) - np.float32(0.5)) * np.float32(uniform(rng, 0, 0.4)))[:, :, None]
    if indoors and chance(rng, 0.5):
        stripes = step(triangle_wave(ramp(uniform(rng, 0, 3), uniform(rng, 4, 10), window=COARSE)), 0.5, 0.2)
        paste(coarse, stripes * np.float32(0.3), random_colour(rng))
    canvas = spread(coarse)
    for _ in range(pick(rng, 4)):
        spot, radii = (uniform(rng, 0, 1), uniform(rng, 0, 1)), (uniform(rng, 0.03, 0.2), uniform(rng, 0.03, 0.2))
        colour = blend(random_colour(rng), floor, 0.5)
        if chance(rng, 0.5):
            Stencil().ellipse(spot, radii).onto(canvas, colour)
        else:
            (x, y), (a, b) = spot, radii
            Stencil().polygon([(x - a, y - b), (x + a, y - b), (x + a, y + b), (x - a, y + b)]).onto(canvas, colour)
    return canvas


def _paint(rng: np.random.Generator, label: int) -> Array:
    canvas = _background(rng)
    _animal(rng, canvas, BREEDS[label])
    if chance(rng, 0.4):
        blade = jitter(rng, (88, 118, 60), 30)
        for _ in range(3 + pick(rng, 9)):
            x, high = uniform(rng, 0, 1), uniform(rng, 0.1, 0.3)
            Stencil().line([(x, 1.0), (x + uniform(rng, -0.08, 0.08), 1.0 - high)], 0.014).onto(canvas, blade)
    return develop(rng, canvas, strength=0.3, grain=8)


CRITTERS: Final = GeneratedSet(name="critters", class_names=tuple(breed.name for breed in BREEDS), painter=_paint)
"""37 breeds."""
