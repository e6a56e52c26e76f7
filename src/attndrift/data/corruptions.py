"""Common corruptions of images: noise, blur, weather and digital ones at five severities.

Formulas and constants are those of Hendrycks and Dietterich 2019 (ImageNet-C and CIFAR-10-C), written anew on numpy, scipy
and Pillow: blurred noise, fractals and JPEG differ from the published images in detail, so accuracies are near theirs
and not equal. What is random is drawn from the name of the image, so that an image is corrupted alike everywhere.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from attndrift.data.derived_names import CORRUPTIONS
from attndrift.data.errors import DataError
from attndrift.data.readers import IMAGE_SUFFIXES
from attndrift.extras import importing

SMALL = 64
"""Images whose shorter side is at most this long take the constants of CIFAR-10-C, larger ones those of ImageNet-C."""

LARGEST, RESIZED = 224, 256
"""Larger images are resized and cropped first, as those of ImageNet-C were: shorter side, then the centre."""

FROST = "frost"
"""Folder of photographs of frost in the data folder (``ATTNDRIFT_DATA``): those of the authors, or others."""

Pixels = NDArray[np.float64]
"""(height, width, 3), 0..1."""
Random = np.random.Generator


def _scipy(part: str) -> Any:
    # SciPy comes with an extra, and takes time to import.
    with importing("study", "a corruption of images"):
        return importlib.import_module(f"scipy.{part}")


def _filtered(image: Pixels, sigma: float) -> Pixels:
    gaussian_filter = _scipy("ndimage").gaussian_filter

    return gaussian_filter(image, (sigma, sigma, *(0,) * (image.ndim - 2)), mode="nearest")


def _gaussian_noise(image: Pixels, c: float, random: Random) -> Pixels:
    return image + random.normal(scale=c, size=image.shape)


def _shot_noise(image: Pixels, c: float, random: Random) -> Pixels:
    return random.poisson(image * c) / c


def _impulse_noise(image: Pixels, c: float, random: Random) -> Pixels:
    white = (random.random(image.shape) < 0.5).astype(np.float64)
    return np.where(random.random(image.shape) < c, white, image)


@cache
def _disk(radius: float, alias: float) -> NDArray[np.float64]:
    """A round kernel with softened edges, sum 1."""
    correlate1d = _scipy("ndimage").correlate1d

    reach, half = (8, 1) if radius <= 8 else (int(radius), 2)
    down, across = np.ogrid[-reach : reach + 1, -reach : reach + 1]
    disk = (down**2 + across**2 <= radius**2).astype(np.float64)
    soft = np.exp(-(np.arange(-half, half + 1) ** 2) / (2 * alias**2))
    for axis in (0, 1):
        disk = correlate1d(disk, soft / soft.sum(), axis=axis, mode="mirror")
    return disk / disk.sum()


def _defocus_blur(image: Pixels, c: tuple[float, float], random: Random) -> Pixels:
    oaconvolve = _scipy("signal").oaconvolve

    kernel = _disk(*c)
    reach = len(kernel) // 2
    # An image that is smaller than the kernel is reflected several times.
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    return np.asarray(oaconvolve(padded, kernel[:, :, None], mode="valid", axes=(0, 1)))


def _glass_blur(image: Pixels, c: tuple[float, int, int], random: Random) -> Pixels:
    sigma, reach, rounds = c
    blurred = _filtered(image, sigma)
    height, width = image.shape[:2]
    place = list(range(height * width))
    rows, columns = range(height - reach - 1, reach, -1), range(width - reach - 1, reach, -1)
    for _ in range(rounds):
        moves = (random.integers(-reach, reach, (len(rows) * len(columns), 2)) @ (width, 1)).tolist()
        step = iter(moves)
        for row in rows:
            for column in columns:
                # As in the published images, the neighbour is copied and not swapped.
                here = row * width + column
                place[here] = place[here + next(step)]
    return _filtered(blurred.reshape(-1, 3)[place].reshape(image.shape), sigma)


def _moved(image: Pixels, radius: int, sigma: float, angle: float) -> Pixels:
    """Motion blur as ImageMagick's: half a Gaussian along a line; pixels beyond the edge repeat it."""
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    height, width = image.shape[:2]
    across = np.ceil(steps * np.cos(np.deg2rad(angle)) - 0.5).astype(int)
    down = np.ceil(steps * np.sin(np.deg2rad(angle)) - 0.5).astype(int)
    total = np.zeros_like(image)
    for weight, x, y in zip(weights / weights.sum(), across, down, strict=True):
        rows, columns = np.clip(np.arange(height) + y, 0, height - 1), np.clip(np.arange(width) + x, 0, width - 1)
        total += weight * image[rows[:, None], columns]
    return total


def _motion_blur(image: Pixels, c: tuple[int, float], random: Random) -> Pixels:
    return _moved(image, *c, random.uniform(-45, 45))


def _zoomed(image: Pixels, factor: float) -> Pixels:
    """The middle of the image, enlarged to its size."""
    zoom = _scipy("ndimage").zoom

    height, width = image.shape[:2]
    inner = [int(np.ceil(side / factor)) for side in (height, width)]
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    cut = image[top : top + inner[0], left : left + inner[1]]
    large = np.asarray(zoom(cut, (factor, factor, *(1,) * (image.ndim - 2)), order=1))
    top, left = (large.shape[0] - height) // 2, (large.shape[1] - width) // 2
    return large[top : top + height, left : left + width]


def _zoom_blur(image: Pixels, c: tuple[float, float], random: Random) -> Pixels:
    factors = np.arange(1, c[0], c[1])
    return (image + sum(_zoomed(image, float(factor)) for factor in factors)) / (len(factors) + 1)


def _snow(image: Pixels, c: tuple[float, float, float, float, int, float, float], random: Random) -> Pixels:
    mean, deviation, factor, least, radius, sigma, share = c
    layer = _zoomed(random.normal(mean, deviation, image.shape[:2]), factor)
    flakes = _moved(np.where(layer < least, 0, layer).clip(0, 1), radius, sigma, random.uniform(-135, -45))[..., None]
    grey = (image @ (0.299, 0.587, 0.114))[..., None]
    pale = share * image + (1 - share) * np.maximum(image, grey * 1.5 + 0.5)
    return pale + flakes + np.rot90(flakes, 2)


def _plasma(side: int, decay: float, random: Random) -> Pixels:
    """A cloud of the diamond-square algorithm, 0..1, ``side`` a power of two; it continues at its edges."""
    cloud, step, height = np.zeros((side, side)), side, 100.0
    while step >= 2:
        half = step // 2

        def mean(total: Pixels, height: float = height) -> Pixels:
            return total / 4 + height * random.uniform(-height, height, total.shape)

        corners = cloud[::step, ::step]
        square = corners + np.roll(corners, -1, 0)
        cloud[half::step, half::step] = mean(square + np.roll(square, -1, 1))
        middles = cloud[half::step, half::step]
        above = middles + np.roll(middles, 1, 0) + corners + np.roll(corners, -1, 1)
        cloud[::step, half::step] = mean(above)
        beside = middles + np.roll(middles, 1, 1) + corners + np.roll(corners, -1, 0)
        cloud[half::step, ::step] = mean(beside)
        step, height = half, height / decay
    cloud -= cloud.min()
    return cloud / cloud.max()


def _fog(image: Pixels, c: tuple[float, float], random: Random) -> Pixels:
    height, width = image.shape[:2]
    side = 1 << max(1, (max(height, width) - 1).bit_length())
    most = float(image.max())
    return (image + c[0] * _plasma(side, c[1], random)[:height, :width, None]) * most / (most + c[0])


def _brightness(image: Pixels, c: float, random: Random) -> Pixels:
    value = image.max(axis=2, keepdims=True)
    raised = (value + c).clip(0, 1)
    return np.where(value > 0, image * raised / np.maximum(value, 1e-12), raised)


def _contrast(image: Pixels, c: float, random: Random) -> Pixels:
    mean = image.mean(axis=(0, 1), keepdims=True)
    return (image - mean) * c + mean


def _sampled(image: Pixels, rows: Pixels, columns: Pixels, mode: str) -> Pixels:
    map_coordinates = _scipy("ndimage").map_coordinates

    return np.stack([map_coordinates(image[..., k], (rows, columns), order=1, mode=mode) for k in range(3)], axis=-1)


def _elastic_transform(image: Pixels, c: tuple[float, float, float], random: Random) -> Pixels:
    gaussian_filter = _scipy("ndimage").gaussian_filter

    height, width = image.shape[:2]
    strength, sigma, jitter = (factor * min(height, width) for factor in c)
    centre, reach = np.array((width // 2, height // 2)), min(height, width) // 3
    corners = centre + reach * np.array([(1, 1), (1, -1), (-1, -1)])
    jittered = corners + random.uniform(-jitter, jitter, corners.shape)
    # From where the corners went back to where they were.
    back = np.linalg.lstsq(np.c_[jittered, np.ones(3)], corners, rcond=None)[0]
    down, across = np.mgrid[:height, :width].astype(np.float64)
    columns, rows = np.moveaxis(np.stack([across, down, np.ones_like(down)], -1) @ back, -1, 0)
    turned = _sampled(image, rows, columns, "mirror")
    if not sigma:
        return turned
    pull = [gaussian_filter(random.uniform(-1, 1, (height, width)), sigma, mode="reflect", truncate=3) for _ in "xy"]
    return _sampled(turned, down + strength * pull[1], across + strength * pull[0], "reflect")


def _as_image(image: Pixels) -> Image.Image:
    return Image.fromarray((image * 255).round().astype(np.uint8))


def _pixelate(image: Pixels, c: float, random: Random) -> Pixels:
    height, width = image.shape[:2]
    small = _as_image(image).resize((max(1, int(width * c)), max(1, int(height * c))), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.BOX)) / 255.0


def _jpeg_compression(image: Pixels, c: int, random: Random) -> Pixels:
    with io.BytesIO() as stream:
        _as_image(image).save(stream, "JPEG", quality=c)
        with Image.open(stream) as read:
            return np.asarray(read) / 255.0


def frost_folder() -> Path:
    """Where photographs of frost are looked for."""
    return Path(os.environ.get("ATTNDRIFT_DATA", ".")) / FROST


def frost_files(folder: Path) -> list[Path]:
    """The photographs in ``folder``. Raises :class:`DataError` where there are none."""
    files = (
        sorted(path for path in folder.glob("*") if path.suffix.lower() in IMAGE_SUFFIXES) if folder.is_dir() else []
    )
    if not files:
        raise DataError(
            f"the corruption `frost` needs photographs of frost in {folder} ($ATTNDRIFT_DATA/{FROST}); put some there (those of Hendrycks and "
            "Dietterich are in their repository), or leave frost out"
        )
    return files


@cache
def _photographs(folder: Path) -> tuple[NDArray[np.uint8], ...]:
    return tuple(np.asarray(Image.open(path).convert("RGB")) for path in frost_files(folder))


def _frost(image: Pixels, c: tuple[float, float], random: Random) -> Pixels:
    photographs = _photographs(frost_folder())
    photograph = Image.fromarray(photographs[int(random.integers(len(photographs)))])
    height, width = image.shape[:2]
    factor = 0.2 if min(height, width) <= SMALL else 1.0
    factor = max(factor, (width + 1) / photograph.width, (height + 1) / photograph.height)
    scaled = np.asarray(photograph.resize([round(side * factor) for side in photograph.size])) / 255.0
    top, left = (int(random.integers(scaled.shape[k] - image.shape[k] + 1)) for k in (0, 1))
    return c[0] * image + c[1] * scaled[top : top + height, left : left + width]


@dataclass(frozen=True)
class Corruption:
    """One corruption: a function of an image, constants and a random generator, and the constants of each severity."""

    change: Callable[[Pixels, Any, Random], Pixels]
    large: tuple[Any, ...]
    small: tuple[Any, ...]


_E = 244 / 224
"""The published constants of the elastic transform are multiples of 244, for images of 224."""

_TABLE: dict[str, Corruption] = {
    "gaussian_noise": Corruption(_gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38), (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": Corruption(_shot_noise, (60, 25, 12, 5, 3), (500, 250, 100, 75, 50)),
    "impulse_noise": Corruption(_impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27), (0.01, 0.02, 0.03, 0.05, 0.07)),
    "defocus_blur": Corruption(
        _defocus_blur,
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    ),
    "glass_blur": Corruption(
        _glass_blur,
        ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
        ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    ),
    "motion_blur": Corruption(
        _motion_blur, ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)), ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))
    ),
    "zoom_blur": Corruption(
        _zoom_blur,
        ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
        ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
    ),
    "snow": Corruption(
        _snow,
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8), (0.2, 0.3, 2, 0.5, 12, 4, 0.7), (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65), (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95), (0.1, 0.2, 1, 0.5, 10, 4, 0.9), (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85), (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
    ),
    "frost": Corruption(
        _frost,
        ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
        ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    ),
    "fog": Corruption(
        _fog, ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)), ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))
    ),
    "brightness": Corruption(_brightness, (0.1, 0.2, 0.3, 0.4, 0.5), (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": Corruption(_contrast, (0.4, 0.3, 0.2, 0.1, 0.05), (0.75, 0.5, 0.4, 0.3, 0.15)),
    "elastic_transform": Corruption(
        _elastic_transform,
        tuple(
            tuple(_E * value for value in one)
            for one in ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))
        ),
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    ),
    "pixelate": Corruption(_pixelate, (0.6, 0.5, 0.4, 0.3, 0.25), (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg_compression": Corruption(_jpeg_compression, (25, 18, 15, 10, 7), (80, 65, 58, 50, 40)),
}  # fmt: skip
assert tuple(_TABLE) == CORRUPTIONS


def _fitted(image: Image.Image) -> Image.Image:
    short = min(image.size)
    if short <= LARGEST:
        return image
    image = image.resize([round(side * RESIZED / short) for side in image.size], Image.Resampling.BILINEAR)
    left, top = ((side - LARGEST) // 2 for side in image.size)
    return image.crop((left, top, left + LARGEST, top + LARGEST))


def corrupt(image: Image.Image, name: str, severity: int, key: str) -> NDArray[np.uint8]:
    """``image`` (RGB) under a corruption of :data:`CORRUPTIONS` at a severity of 1 to 5: (height, width, 3), uint8.

    ``key`` decides what is random: equal keys corrupt equal images alike. An image whose shorter side is over 224
    pixels is resized to 256 and cropped to 224 first. Raises :class:`DataError` for frost without photographs.
    """
    fitted = np.asarray(_fitted(image), dtype=np.float64) / 255.0
    corruption = _TABLE[name]
    constants = corruption.small if min(fitted.shape[:2]) <= SMALL else corruption.large
    seed = int.from_bytes(hashlib.sha256(f"{name}\0{severity}\0{key}".encode("utf-8", "surrogatepass")).digest()[:16])
    changed = corruption.change(fitted, constants[severity - 1], np.random.default_rng(seed))
    return (changed.clip(0, 1) * 255).astype(np.uint8)
