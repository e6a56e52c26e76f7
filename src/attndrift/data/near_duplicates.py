"""Images that two sets have in common though their files differ: near-duplicates by a 64-bit perceptual hash.

The hash says which of the 8 x 8 lowest frequencies of the grey image are above their median (pHash). Pairs that differ
in at most :data:`DISTANCE` bits are compared once more, by the correlation of their grey thumbnails: flat images have
hashes that differ by chance alone. Mirrored copies count too: training flips images.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image

from attndrift.data.cache import cache_folder
from attndrift.data.dataset import ImageSplit
from attndrift.data.decoding import quiet_decoding
from attndrift.data.errors import UnreadableImageError
from attndrift.data.readers import GeneratedReader
from attndrift.files import replacing

LIMIT = 50_000
"""Images of a set that are compared; of a larger one this many, evenly over its order."""

DISTANCE = 6
"""Bits of 64 in which the hashes of near-duplicates differ at most."""

CORRELATION = 0.95
"""Of the thumbnails of near-duplicates, at least. Re-encoded, resized and brighter copies have more; cropped ones may not."""

_SIDE, _LOW = 32, 8
_BLOCK = 256
_ANGLES = np.pi / (2 * _SIDE) * np.outer(np.arange(_LOW), 2 * np.arange(_SIDE) + 1)
_COSINES = np.cos(_ANGLES)

Hashes = NDArray[np.uint64]


def thumbnail(image: Image.Image) -> NDArray[np.float64]:
    """The image in grey, (32, 32)."""
    return np.asarray(image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS), dtype=np.float64)


def perceptual_hash(grey: NDArray[np.float64]) -> Hashes:
    """The 64-bit hashes of thumbnails (images, 32, 32): (images,)."""
    low = (_COSINES @ grey @ _COSINES.T).reshape(len(grey), -1)
    bits = low > np.median(low, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(np.uint64).reshape(-1)


def comparable(split: ImageSplit) -> bool:
    """Whether the images are somebody's: generated ones are nobody's copies."""
    return not isinstance(split.reader, GeneratedReader)


def compared_of(images: int) -> int:
    """How many of a set's ``images`` are compared."""
    return min(images, LIMIT)


def _sampled(indices: NDArray[np.int64]) -> NDArray[np.int64]:
    count = compared_of(len(indices))
    return indices if count == len(indices) else indices[np.linspace(0, len(indices) - 1, count).astype(np.int64)]


def hashes_of(
    split: ImageSplit, indices: NDArray[np.int64], cache_dir: str | Path | None = None, *, mirrored: bool = False
) -> Hashes:
    """The hashes of some images of a split, or of their mirror images. 0 where one cannot be decoded.

    Both are kept on disk, so that an image is decoded for them once.
    """
    folder = cache_folder(cache_dir) / "hashes"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{split.fingerprint[:32]}.npy"
    with FileLock(path.with_suffix(".lock")):
        known = _stored(path, len(split))
        missing = indices[known[0, indices] == 0]
        if len(missing):
            with quiet_decoding():
                for start in range(0, len(missing), 1000):
                    part = missing[start : start + 1000]
                    known[1:, part] = _hashed(split, part)
            known[0, missing] = 1
            with replacing(path) as partial, partial.open("wb") as file:
                np.save(file, known)
    return known[2 if mirrored else 1, indices]


def _stored(path: Path, images: int) -> Hashes:
    """(3, images): whether an image is hashed, its hash, and that of its mirror image."""
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        found = None
    if found is None or found.shape != (3, images) or found.dtype != np.uint64:
        return np.zeros((3, images), dtype=np.uint64)
    return np.asarray(found)


def _hashed(split: ImageSplit, indices: NDArray[np.int64]) -> Hashes:
    """The hashes of images and of their mirror images: (2, images)."""
    grey, read = np.zeros((len(indices), _SIDE, _SIDE)), np.ones(len(indices), dtype=bool)
    for place, index in enumerate(indices.tolist()):
        try:
            grey[place] = thumbnail(split.decode(index))
        except UnreadableImageError:
            read[place] = False
    return np.where(read, [perceptual_hash(grey), perceptual_hash(grey[:, :, ::-1])], np.uint64(0))


def near_duplicates(
    first: tuple[ImageSplit, NDArray[np.int64]],
    second: tuple[ImageSplit, NDArray[np.int64]],
    cache_dir: str | Path | None = None,
) -> list[tuple[int, int]]:
    """Pairs of near-duplicates, mirrored ones too, as indices into the two splits; each image of ``second`` at most once.

    Each side is a split and which of its images are compared, at most :data:`LIMIT`.
    """
    (one, ours), (other, theirs) = first, second
    ours, theirs = _sampled(ours), _sampled(theirs)
    mine, wanted = hashes_of(one, ours, cache_dir), hashes_of(other, theirs, cache_dir)
    flipped = hashes_of(other, theirs, cache_dir, mirrored=True)
    found: list[tuple[int, int]] = []
    for start in range(0, len(theirs), _BLOCK):
        part, mirror = wanted[start : start + _BLOCK], flipped[start : start + _BLOCK]
        near = np.bitwise_count(part[:, None] ^ mine[None, :]) <= DISTANCE
        near |= np.bitwise_count(mirror[:, None] ^ mine[None, :]) <= DISTANCE
        near &= (part != 0)[:, None] & (mine != 0)[None, :]
        for row in np.flatnonzero(near.any(axis=1)).tolist():
            index = int(theirs[start + row])
            copies = ours[near[row]].tolist()
            match = _most_alike(one, copies[:8], other, index)
            if match is not None:
                found.append((match, index))
    return found


def _most_alike(one: ImageSplit, copies: list[int], other: ImageSplit, index: int) -> int | None:
    """Which of ``copies`` is a near-duplicate of an image or of its mirror image; None where none is."""
    wanted = _centred(thumbnail(other[index]))
    both = np.stack([wanted, wanted[:, ::-1]])
    alike = [float((both * _centred(thumbnail(one[copy]))).sum(axis=(1, 2)).max()) for copy in copies]
    best = int(np.argmax(alike))
    return copies[best] if alike[best] >= CORRELATION else None


def _centred(grey: NDArray[np.float64]) -> NDArray[np.float64]:
    centred = grey - grey.mean()
    length = float(np.linalg.norm(centred))
    return centred / length if length > 1e-9 else np.zeros_like(centred)
