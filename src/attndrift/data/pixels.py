"""Pixels decoded, resized and cropped once, by the model's own processor, and kept as 8-bit arrays.

Normalising is left for the batch: per channel it maps 256 values to 256 others, so a table taken from
the processor itself gives what the processor gives, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from attndrift.data.dataset import ImageSplit
from attndrift.data.errors import DataError, some
from attndrift.data.pixel_cache import Progress, check_processor, image_processor_of, kept_pixels, normalization


class PixelStore:
    """Images of a split as a model takes them, by position.

    Attributes:
        pixels: (images, 3, height, width), uint8, read-only; a memory map where it comes from the cache.
        indices: (images,), int64: position i holds image ``indices[i]`` of the split.
        ids, labels: of the images, by position.
    """

    def __init__(
        self,
        pixels: NDArray[np.uint8],
        table: NDArray[np.float32],
        indices: NDArray[np.int64],
        labels: NDArray[np.int64],
        ids: Sequence[str],
    ) -> None:
        self.pixels, self.indices, self.labels, self.ids = pixels, indices, labels, list(ids)
        self._table = table
        self._device_tables: dict[torch.device, tuple[Tensor, Tensor]] = {}

    @classmethod
    def open(
        cls,
        split: ImageSplit,
        processor: Any,
        *,
        indices: ArrayLike | None = None,
        cache_dir: str | Path | None = None,
        progress: Progress | None = None,
    ) -> PixelStore:
        """The store of a split, or of some of its images, from the cache if it was made before.

        ``processor``: an image processor of ``transformers``, or a processor that holds one; its resize,
        crop and normalisation are applied as they are. ``indices``: images of the split, None for all.
        ``cache_dir``: see :func:`~attndrift.data.cache.cache_folder`. ``progress`` is told how many images
        of how many are done.

        Raises :class:`DataError` that names every unreadable image, and for a processor whose output
        cannot be kept. Of two processes that ask for one store, one makes it and the other waits.
        """
        processor = image_processor_of(processor)
        chosen = _chosen(split, indices)
        table = normalization(processor)
        check_processor(split, processor, table, int(chosen[0]))
        pixels = kept_pixels(split, processor, chosen, cache_dir, progress)
        ids = [split.ids[i] for i in chosen.tolist()]
        return cls(pixels, table, chosen, split.labels[chosen], ids)

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return int(self.pixels.shape[2]), int(self.pixels.shape[3])

    def subset(self, indices: ArrayLike) -> PixelStore:
        """A store of some of this store's images, given by their index in the split; pixels are shared."""
        return _Subset(self, self.positions(indices))

    def part_of(self) -> tuple[PixelStore, NDArray[np.int64] | None]:
        """The store that this one is a part of, and where its images are in it; itself and None for a store of its own."""
        return self, None

    def positions(self, indices: ArrayLike) -> NDArray[np.int64]:
        """Positions of images given by their index in the split. An absent one raises :class:`DataError`."""
        wanted = np.asarray(indices, dtype=np.int64)
        order = np.argsort(self.indices, kind="stable")
        found = np.searchsorted(self.indices, wanted, sorter=order)
        positions = order[np.minimum(found, len(order) - 1)]
        absent = wanted[self.indices[positions] != wanted]
        if len(absent):
            raise DataError(f"images {some(absent.tolist())} of the split are not in this store")
        return positions

    def _rows(self, positions: NDArray[np.int64]) -> NDArray[np.uint8]:
        return self.pixels[positions]

    def _asked(
        self, positions: ArrayLike, flip: ArrayLike | None
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_] | None]:
        where = np.asarray(positions, dtype=np.int64).reshape(-1)
        if len(where) and (where.min() < 0 or where.max() >= len(self)):
            raise IndexError(f"positions run from {where.min()} to {where.max()}; the store has {len(self)} images")
        if flip is None:
            return where, None
        mirrored = np.asarray(flip, dtype=bool).reshape(-1)
        if len(mirrored) != len(where):
            raise ValueError(f"`flip` has {len(mirrored)} values for {len(where)} positions")
        return where, mirrored

    def fetch_uint8(self, positions: ArrayLike, flip: ArrayLike | None = None) -> Tensor:
        """Images at ``positions``: (images, 3, height, width), uint8; those with ``flip`` are mirrored."""
        where, mirrored = self._asked(positions, flip)
        rows = np.asarray(self._rows(where))
        if mirrored is not None:
            rows[mirrored] = rows[mirrored][..., ::-1]
        return torch.from_numpy(rows)

    def fetch(self, positions: ArrayLike, flip: ArrayLike | None = None) -> Tensor:
        """As :meth:`fetch_uint8`, normalised: float32, equal to the processor's own output."""
        return self.normalize(self.fetch_uint8(positions, flip))

    def normalize(self, batch: Tensor) -> Tensor:
        """8-bit images (images, 3, height, width) as the processor normalises them: float32, same device."""
        if batch.dtype != torch.uint8 or batch.ndim != 4 or batch.shape[1] != 3:
            raise ValueError(f"expected uint8 (images, 3, height, width), got {batch.dtype} {tuple(batch.shape)}")
        if batch.device.type == "cpu":
            values = batch.numpy()
            result = np.empty(values.shape, dtype=np.float32)
            for channel in range(3):
                np.take(self._table[channel], values[:, channel], out=result[:, channel], mode="clip")
            return torch.from_numpy(result)
        return self._looked_up(batch)

    def _looked_up(self, batch: Tensor) -> Tensor:
        """:meth:`normalize` on the batch's own device, in one lookup."""
        device = batch.device
        if device not in self._device_tables:
            # Of the three channels' tables end to end, channel c's begins at 256 c.
            begins = torch.arange(0, 768, 256, dtype=torch.int32, device=device)[:, None, None]
            self._device_tables[device] = torch.from_numpy(self._table.reshape(-1)).to(device), begins
        table, begins = self._device_tables[device]
        return table.index_select(0, (batch + begins).flatten()).view(batch.shape)


class _Subset(PixelStore):
    """Rows of another store, without a copy of its pixels."""

    def __init__(self, whole: PixelStore, positions: NDArray[np.int64]) -> None:
        ids = [whole.ids[i] for i in positions.tolist()]
        super().__init__(whole.pixels, whole._table, whole.indices[positions], whole.labels[positions], ids)
        self._whole, self._positions = whole, positions

    def part_of(self) -> tuple[PixelStore, NDArray[np.int64] | None]:
        """The store that this one is a part of, and where its images are in it."""
        whole, rows = self._whole.part_of()
        return whole, self._positions if rows is None else rows[self._positions]

    def _rows(self, positions: NDArray[np.int64]) -> NDArray[np.uint8]:
        return self._whole._rows(self._positions[positions])


def _chosen(split: ImageSplit, indices: ArrayLike | None) -> NDArray[np.int64]:
    if indices is None:
        return np.arange(len(split), dtype=np.int64)
    chosen = np.asarray(indices, dtype=np.int64).reshape(-1)
    if not len(chosen):
        raise DataError(f"{split.dataset}: no images of the split `{split.name}` were chosen")
    if chosen.min() < 0 or chosen.max() >= len(split):
        raise DataError(
            f"{split.dataset}: indices run from {chosen.min()} to {chosen.max()}, but the split "
            f"`{split.name}` has images 0 to {len(split) - 1}"
        )
    if len(np.unique(chosen)) < len(chosen):
        raise DataError(f"{split.dataset}: an image of the split `{split.name}` is chosen twice")
    return chosen
