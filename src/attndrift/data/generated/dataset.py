"""Datasets whose images are made on demand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from attndrift.data.dataset import Content, ImageDataset
from attndrift.data.errors import DataError
from attndrift.data.generated import GENERATED
from attndrift.data.readers import GeneratedReader
from attndrift.data.registry import DatasetSpec
from attndrift.extras import importing

_TRAIN_SEED, _TEST_SEED = 1, 2


def load_generated(spec: DatasetSpec) -> ImageDataset:
    """A generated set of ``train_size`` and ``test_size`` images."""
    generated = GENERATED[spec.name]
    for key, size in (("train_size", spec.train_size), ("test_size", spec.test_size)):
        if size < len(generated.class_names):
            raise DataError(
                f"{spec.name}: `{key}` is {size}; its {len(generated.class_names)} classes need at least as many"
            )

    def opener(name: str, seed: int, size: int) -> Callable[[], Content]:
        def open_split() -> Content:
            labels = np.asarray([generated.label(seed, index) for index in range(size)], dtype=np.int64)
            reader = GeneratedReader(size, lambda index: generated.draw(seed, index))
            return reader, labels, [f"{name}:{index}" for index in range(size)]

        return open_split

    splits = {
        "train": opener("train", _TRAIN_SEED, spec.train_size),
        "test": opener("test", _TEST_SEED, spec.test_size),
    }
    return ImageDataset(spec, generated.class_names, splits, {"kind": "generated", "seeds": [_TRAIN_SEED, _TEST_SEED]})


def load_digits(spec: DatasetSpec) -> ImageDataset:
    """The digits of scikit-learn; every fifth image of each class is held out."""
    # Here, as importing it takes a second.
    with importing("study", "the dataset `digits`"):
        from sklearn import datasets

    loaded = datasets.load_digits()
    labels = np.asarray(loaded.target, dtype=np.int64)
    grey = np.round(np.asarray(loaded.images) * (255.0 / 16.0)).astype(np.uint8)
    rank = np.zeros(len(labels), dtype=np.int64)
    for label in range(10):
        rank[labels == label] = np.arange((labels == label).sum())
    held_out = rank % 5 == 4

    def opener(rows: NDArray[np.int64]) -> Callable[[], Content]:
        reader = GeneratedReader(len(rows), lambda index: np.repeat(grey[rows[index], :, :, None], 3, axis=2))
        return lambda: (reader, labels[rows], [f"digit:{row}" for row in rows])

    splits = {"train": opener(np.flatnonzero(~held_out)), "test": opener(np.flatnonzero(held_out))}
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    return ImageDataset(spec, names, splits, {"kind": "scikit-learn"})
