"""Attention maps of a run's probe images before and after, as ``maps.npz`` holds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attndrift.results.arrays import read_arrays

_ARRAYS = ("images", "before", "after", "labels", "class_names", "grid", "ids")
_LARGEST_SIDE, _MOST_PATCHES = 4096, 1 << 16


@dataclass(frozen=True)
class MapSet:
    """Attention of one run on ``k`` probe images.

    ``images`` (k, H, W, 3) uint8, ``before`` and ``after`` (k, layers, heads, N) shares of attention,
    ``labels`` (k,), ``class_names`` (classes,), ``grid`` (rows, columns) with rows x columns = N, ``ids`` (k,).
    """

    images: NDArray[np.uint8]
    before: NDArray[np.float32]
    after: NDArray[np.float32]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    grid: tuple[int, int]
    ids: tuple[str, ...]

    def name(self, index: int) -> str:
        """Class of image ``index``."""
        label = int(self.labels[index])
        return self.class_names[label] if 0 <= label < len(self.class_names) else str(label)


class MapError(ValueError):
    """A ``maps.npz`` that is not of the documented form; the message says which file and what is wrong."""


def read_maps(path: Path | Mapping[str, Any]) -> MapSet:
    """Read ``maps.npz`` (or take its arrays). Raises :class:`MapError`, naming the file, where it is not of its form."""
    where = str(path) if isinstance(path, Path) else "maps"
    try:
        if isinstance(path, Path):
            arrays = read_arrays(path, _ARRAYS)
        else:
            arrays = {name: np.asarray(path[name]) for name in _ARRAYS}
    except (OSError, ValueError, KeyError) as error:
        raise MapError(f"{where}: not a file of attention maps ({error}); run the study again to rewrite it") from error
    images, before, after = arrays["images"], arrays["before"], arrays["after"]
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8 or not images.size:
        raise MapError(f"{where}: `images` must be uint8 (k, height, width, 3), is {images.dtype} {images.shape}")
    if before.ndim != 4 or before.shape != after.shape or len(before) != len(images):
        raise MapError(
            f"{where}: `before` {before.shape} and `after` {after.shape} must both be ({len(images)}, layers, heads, N)"
        )
    if max(images.shape[1:3]) > _LARGEST_SIDE or before.shape[-1] > _MOST_PATCHES:
        raise MapError(
            f"{where}: images of {images.shape[1]} x {images.shape[2]} pixels and {before.shape[-1]} patches; at most "
            f"{_LARGEST_SIDE} a side and {_MOST_PATCHES:,} are shown"
        )
    for name, maps in (("before", before), ("after", after)):
        if maps.dtype.kind != "f" or not maps.size or not np.isfinite(maps).all():
            raise MapError(f"{where}: `{name}` must hold finite shares of attention, is {maps.dtype} {maps.shape}")
    sides = arrays["grid"].ravel()
    grid = tuple(int(side) for side in sides) if sides.dtype.kind in "iu" and len(sides) == 2 else (0, 0)
    if grid[0] * grid[1] != before.shape[-1]:
        raise MapError(f"{where}: `grid` {sides.tolist()} does not hold the {before.shape[-1]} patches of the maps")
    for name, kinds in (("labels", "iu"), ("ids", "U"), ("class_names", "U")):
        values = arrays[name]
        if values.ndim != 1 or values.dtype.kind not in kinds or (name != "class_names" and len(values) != len(images)):
            raise MapError(
                f"{where}: `{name}` must be a list of {'numbers' if kinds == 'iu' else 'texts'}"
                f"{'' if name == 'class_names' else f', one for each of the {len(images)} images'}, is {values.dtype} "
                f"{values.shape}"
            )
    return MapSet(
        images,
        before.astype(np.float32),
        after.astype(np.float32),
        arrays["labels"].astype(np.int64),
        tuple(str(name) for name in arrays["class_names"]),
        (grid[0], grid[1]),
        tuple(str(name) for name in arrays["ids"]),
    )
