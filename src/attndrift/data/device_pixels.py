"""The images of a store on an accelerator: 8-bit pixels lie there or travel there, floats are made there.

A batch of float images takes four times the bytes of its 8-bit pixels, and an epoch of them would cross the bus
in every epoch and every evaluation.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from attndrift.data.pixels import PixelStore
from attndrift.models.to_device import to_device

SHARE = 1 / 8
"""Of the device's free memory: more than this no store may take for its pixels.

A study holds half a dozen stores, several studies may share a device, and what training needs is not taken yet. A
batch on its way costs little: 64 images of 224 x 224 pixels are 10 MB, a millisecond of a bus that nobody waits for.
"""

PART = 1 << 28
"""Bytes of pinned memory that filling the device takes at once."""


def pixels_on(store: PixelStore, device: torch.device) -> PixelStore:
    """The images of ``store`` for a model on ``device``: what ``fetch`` returns lies there. On a CPU ``store`` itself."""
    return store if device.type == "cpu" else DevicePixels(store, device)


class DevicePixels(PixelStore):
    """A :class:`PixelStore` whose :meth:`fetch` returns images on ``device``; made by :func:`pixels_on`.

    When first asked for images it takes all its pixels there, if they fit into :data:`SHARE` of the memory that is
    free then; otherwise each batch's pixels are sent. Neither waits for the device. ``fetch_uint8`` stays on the host.
    """

    def __init__(self, store: PixelStore, device: torch.device) -> None:
        super().__init__(store.pixels, store._table, store.indices, store.labels, store.ids)
        self.device, self._store = device, store
        self._resident: Tensor | None = None
        self._undecided = True

    def _rows(self, positions: NDArray[np.int64]) -> NDArray[np.uint8]:
        return self._store._rows(positions)

    def fetch(self, positions: ArrayLike, flip: ArrayLike | None = None) -> Tensor:
        """As that of the store, bit for bit, on the device: (images, 3, height, width), float32. Raises as that does."""
        where, mirrored = self._asked(positions, flip)
        if self._undecided:
            self._resident, self._undecided = self._whole_if_it_fits(), False
        if self._resident is None:
            images = to_device(np.asarray(self._rows(where)), self.device)
        else:
            images = self._resident.index_select(0, to_device(where, self.device))
        if mirrored is not None and mirrored.any():
            images = torch.where(to_device(mirrored, self.device)[:, None, None, None], images.flip(-1), images)
        return self._looked_up(images)

    def _whole_if_it_fits(self) -> Tensor | None:
        count = len(self)
        size = count * int(np.prod(self.pixels.shape[1:]))
        if size > SHARE * _free_memory(self.device):
            return None
        images = torch.empty((count, *self.pixels.shape[1:]), dtype=torch.uint8, device=self.device)
        step = max(1, PART * count // max(1, size))
        for start in range(0, count, step):
            part = np.arange(start, min(start + step, count))
            images[start : start + len(part)] = to_device(np.asarray(self._rows(part)), self.device)
        return images


def _free_memory(device: torch.device) -> int:
    """Bytes; 0 where torch cannot tell."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else 0
