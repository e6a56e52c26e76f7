"""The order of training images and their flips: functions of (seed, epoch, position), nothing else.

A resumed training therefore sees the batches that an uninterrupted one would have seen, whatever was
drawn from the global generators in between. The random bits are the raw stream of the counter-based
Philox generator (Salmon et al. 2011), which numpy keeps fixed across versions; ``Generator``'s methods
(``permutation``, ``random``) are not fixed and are not used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from attndrift.models.to_device import to_device

_ORDER, _FLIP = 0, 1


def _bits(n: int, seed: int, epoch: int, purpose: int) -> NDArray[np.uint64]:
    """The first ``n`` 64-bit words of the stream of (seed, epoch, purpose)."""
    if not 0 <= seed < 2**64:
        raise ValueError(f"`seed` is {seed}; it must lie between 0 and 2**64 - 1")
    if not 0 <= epoch < 2**32:
        raise ValueError(f"`epoch` is {epoch}; it must lie between 0 and 2**32 - 1")
    key = np.asarray([seed, epoch * 16 + purpose], dtype=np.uint64)
    return np.random.Philox(key=key).random_raw(n)


def epoch_order(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order in which an epoch visits ``n`` images: (n,), int64, a permutation of 0..n-1."""
    if n < 1:
        raise ValueError(f"`n` is {n}; there must be at least one image")
    return np.argsort(_bits(n, seed, epoch, _ORDER), kind="stable").astype(np.int64)


def flips(positions: int | ArrayLike, seed: int, epoch: int) -> NDArray[np.bool_]:
    """Whether the image at each position is mirrored in this epoch, each with probability one half.

    ``positions`` are places in the training set, not in the epoch's order; a number n stands for all of
    0..n-1. The value of a position depends on no other position.
    """
    if isinstance(positions, (int, np.integer)):
        positions = np.arange(positions)
    wanted = np.asarray(positions, dtype=np.int64)
    if wanted.size == 0:
        return np.zeros(wanted.shape, dtype=bool)
    if wanted.min() < 0:
        raise ValueError(f"`positions` holds {wanted.min()}; positions start at 0")
    bits = _bits(int(wanted.max()) + 1, seed, epoch, _FLIP)
    return (bits[wanted] >> np.uint64(63)).astype(bool)


class EpochBatchSampler(Sampler[list[int]]):
    """Batches of positions for one epoch, in the order of :func:`epoch_order`.

    Every iteration starts at batch ``start`` of the current epoch (see :meth:`set_epoch`); the last batch
    is smaller where ``batch_size`` does not divide ``n``, unless ``drop_last``.
    """

    def __init__(self, n: int, batch_size: int, seed: int, *, drop_last: bool = False) -> None:
        if batch_size < 1:
            raise ValueError(f"`batch_size` is {batch_size}; it must be at least 1")
        if n < 1 or (drop_last and n < batch_size):
            raise ValueError(f"{n} images make no batch of {batch_size}")
        self.n, self.batch_size, self.seed, self.drop_last = n, batch_size, seed, drop_last
        self.epoch, self.start = 0, 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Go to ``epoch`` (from 0); ``start`` is the first batch of the next iteration."""
        whole = self.n // self.batch_size if self.drop_last else math.ceil(self.n / self.batch_size)
        if not 0 <= start <= whole:
            raise ValueError(f"`start` is {start}; an epoch has {whole} batches")
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        """Batches of the next iteration."""
        whole = self.n // self.batch_size if self.drop_last else math.ceil(self.n / self.batch_size)
        return whole - self.start

    def __iter__(self) -> Iterator[list[int]]:
        order = epoch_order(self.n, self.seed, self.epoch)
        last = self.start + len(self)
        for batch in range(self.start, last):
            yield order[batch * self.batch_size : (batch + 1) * self.batch_size].tolist()


class Pixels(Protocol):
    """What a training set needs of a pixel store."""

    def fetch(self, positions: Any, flip: Any = None) -> Tensor:
        """Images (len(positions), 3, height, width), float32, on any device; those with ``flip`` are mirrored."""


Share = Callable[[Tensor], tuple[Tensor, int]]
"""A process's part of a batch's positions, filled up with copies; and how many of them are its own, the first ones."""


class TrainingImages(Dataset[dict[str, Any]]):
    """Whole batches by position: ``pixel_values``, ``labels``, ``positions`` and ``flipped``.

    Pixels and labels are tensors, on the device that the pixels come on. Positions and flips are numpy arrays:
    what they are looked up in is on the host, and reading them back from a device would make it wait.

    Where several processes ``share`` each batch, a batch is this process's part of it, filled up so that all
    parts have one size; ``own`` says how many of its images count, the first ones, and ``total`` how many the
    whole batch has. Set the epoch with :meth:`set_epoch` before each epoch's iteration, as for the sampler.
    """

    def __init__(
        self, pixels: Pixels, labels: ArrayLike, seed: int, *, flip: bool = True, share: Share | None = None
    ) -> None:
        self.pixels, self.seed, self.flip, self._share = pixels, seed, flip, share
        self.labels = torch.as_tensor(np.asarray(labels, dtype=np.int64))
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.labels)

    def set_epoch(self, epoch: int) -> None:
        """The epoch (from 0) whose flips are applied."""
        self.epoch = epoch

    def __getitems__(self, positions: Sequence[int]) -> dict[str, Any]:
        """One batch; the loader calls this once a batch."""
        own = total = len(positions)
        where = np.asarray(positions, dtype=np.int64)
        if self._share is not None:
            part, own = self._share(torch.from_numpy(where))
            where = part.numpy()
        if self.flip:
            mirrored = flips(where, self.seed, self.epoch)
        else:
            mirrored = np.zeros(len(where), dtype=bool)
        pixels = self.pixels.fetch(where, flip=mirrored)
        return {
            "pixel_values": pixels,
            "labels": to_device(self.labels[torch.from_numpy(where)], pixels.device),
            "positions": where,
            "flipped": mirrored,
            "own": own,
            "total": total,
        }

    def __getitem__(self, position: int) -> dict[str, Any]:
        """One image, as a batch of one."""
        return self.__getitems__([position])


def _as_it_is(batch: Any) -> Any:
    return batch


def training_loader(images: TrainingImages, batch_size: int) -> DataLoader[dict[str, Any]]:
    """A loader of whole batches; call ``set_epoch`` on its ``dataset`` and ``batch_sampler`` every epoch.

    It loads in this process: a store's batch is a copy out of a memory map, which no worker would speed up.
    """
    # Without a generator of its own a loader draws from the global one whenever it is iterated.
    return DataLoader(
        images,
        batch_sampler=EpochBatchSampler(len(images), batch_size, images.seed),
        collate_fn=_as_it_is,
        generator=torch.Generator().manual_seed(0),
    )
