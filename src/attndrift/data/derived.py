"""Sets that are made of another one when they are opened: class halves and corruptions."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from attndrift.data.corruptions import corrupt
from attndrift.data.dataset import Content, ImageDataset, ImageSplit
from attndrift.data.decoding import RawImage
from attndrift.data.derived_names import corruption_of
from attndrift.data.errors import DataError
from attndrift.data.registry import DatasetSpec

_LAYOUT = 1
"""Raised when the way that images are corrupted changes: their pixels are then made again."""


class SubsetReader:
    """Some images of another split, as they are. ``rows``: (images,), which ones."""

    def __init__(self, split: ImageSplit, rows: NDArray[np.int64]) -> None:
        self.split, self.rows = split, rows

    def __len__(self) -> int:
        return len(self.rows)

    def raw(self, index: int, image_id: str) -> RawImage:
        """As the split has it."""
        return self.split.reader.raw(int(self.rows[index]), image_id)

    def digest(self) -> str:
        """SHA-256 over that of the whole split and the choice."""
        chosen = np.ascontiguousarray(self.rows, dtype="<i8").tobytes()
        return hashlib.sha256(self.split.digest.encode() + chosen).hexdigest()


class CorruptedReader:
    """The images of another split under a corruption. ``rows``: all of them, in their order."""

    def __init__(self, split: ImageSplit, name: str, severity: int) -> None:
        self.split, self.name, self.severity = split, name, severity
        self.rows = np.arange(len(split), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.split)

    def raw(self, index: int, image_id: str) -> RawImage:
        """Pixels (height, width, 3), uint8."""
        return corrupt(self.split.decode(index), self.name, self.severity, f"{self.split.name}/{self.split.ids[index]}")

    def digest(self) -> str:
        """SHA-256 over that of the images and the corruption."""
        return hashlib.sha256(f"{self.split.digest}\0{self.name}-{self.severity}\0{_LAYOUT}".encode()).hexdigest()


def whole_of(spec: DatasetSpec) -> DatasetSpec:
    """The description of the set that ``spec`` is made of."""
    return dataclasses.replace(spec, name=spec.name.removesuffix("+".join(["", *spec.derive])), derive=())


def derive(base: ImageDataset, spec: DatasetSpec) -> ImageDataset:
    """The set ``spec.name`` of ``base``, by the steps of ``spec.derive``. Raises :class:`DataError` for halves of one class."""
    found = base
    for number, step in enumerate(spec.derive, 1):
        name = "+".join([base.name, *spec.derive[:number]])
        own = dataclasses.replace(
            spec, name=name, derive=spec.derive[:number], class_names=None, spoken={},
            train_split=found.train_split, test_split=found.test_split,
        )  # fmt: skip
        found = _half(found, own, step) if corruption_of(step) is None else _corrupted(found, own, step)
    return found


def _half(base: ImageDataset, spec: DatasetSpec, step: str) -> ImageDataset:
    first, last = half_of(len(base.class_names), step, spec.name)

    def opener(name: str) -> Content:
        whole = base.split(name)
        rows = np.flatnonzero((whole.labels >= first) & (whole.labels < last))
        return SubsetReader(whole, rows), whole.labels[rows] - first, [whole.ids[row] for row in rows.tolist()]

    return _made(base, spec, base.class_names[first:last], opener)


def half_of(classes: int, step: str, name: str) -> tuple[int, int]:
    """The first class of a half, and the first after it, as CoOp divides them; :class:`DataError` for a single class."""
    if classes < 2:
        raise DataError(f"{name}: its base set has {classes} class, which has no halves")
    middle = -(-classes // 2)
    return (0, middle) if step == "base" else (middle, classes)


def _corrupted(base: ImageDataset, spec: DatasetSpec, step: str) -> ImageDataset:
    asked = corruption_of(step)
    assert asked is not None

    def opener(name: str) -> Content:
        whole = base.split(name)
        return CorruptedReader(whole, *asked), whole.labels, whole.ids

    return _made(base, spec, base.class_names, opener)


def _made(
    base: ImageDataset, spec: DatasetSpec, classes: tuple[str, ...], opener: Callable[[str], Content]
) -> ImageDataset:
    own = {"name": spec.name, "class_names": list(classes), "derived": list(spec.derive)}
    openers = {name: partial(opener, name) for name in base.splits}
    return ImageDataset(spec, classes, openers, {**base.source, **own}, templates=base.templates, base=base)


def shared_pixels(split: ImageSplit) -> tuple[ImageSplit, NDArray[np.int64]]:
    """The largest split that has the very images of ``split``, and which of its images they are, (images,)."""
    if not isinstance(split.reader, SubsetReader):
        return split, np.arange(len(split), dtype=np.int64)
    whole, rows = shared_pixels(split.reader.split)
    return whole, rows[split.reader.rows]


def originals(split: ImageSplit) -> tuple[ImageSplit, NDArray[np.int64]]:
    """The split that ``split`` was made of in the end, before all corruption, and which of its images, (images,)."""
    if not isinstance(split.reader, (SubsetReader, CorruptedReader)):
        return split, np.arange(len(split), dtype=np.int64)
    whole, rows = originals(split.reader.split)
    return whole, rows[split.reader.rows]
