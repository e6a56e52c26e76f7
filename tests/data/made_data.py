"""Pictures and datasets made on the spot."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from attndrift.data.dataset import ImageDataset
from attndrift.data.pixel_cache import kept_pixels
from attndrift.data.readers import GeneratedReader
from attndrift.data.registry import DatasetSpec

Table = Callable[..., Path]


def picture(seed: int, width: int = 12, height: int = 10) -> Image.Image:
    """A random RGB picture; another seed gives another one."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    with io.BytesIO() as stream:
        image.save(stream, kind)
        return stream.getvalue()


def in_memory(
    counts: dict[str, list[int]], *, shuffle: int = 0, name: str = "made", train_split: str = "train"
) -> ImageDataset:
    """``counts[split][class]`` images of random pixels, rows shuffled, ids ``split/class/i``."""

    def opener(split: str):  # type: ignore[no-untyped-def]
        def open_split():  # type: ignore[no-untyped-def]
            rows = [(label, i) for label, n in enumerate(counts[split]) for i in range(n)]
            rows = [rows[i] for i in np.random.default_rng(shuffle).permutation(len(rows))]
            ids = [f"{split}/{label}/{i}" for label, i in rows]
            labels = np.asarray([label for label, _ in rows], dtype=np.int64)
            reader = GeneratedReader(len(rows), lambda i: np.asarray(picture(rows[i][0] * 10_000 + rows[i][1])))
            return reader, labels, ids

        return open_split

    spec = DatasetSpec(name=name, origin=name, train_split=train_split)
    classes = [f"class {c}" for c in range(len(counts["train"]))]
    return ImageDataset(spec, classes, {split: opener(split) for split in counts}, {})


class PlainProcessor:
    """As much of an image processor as keeping pixels needs, without the import of its library."""

    def to_dict(self) -> dict[str, object]:
        return {}

    def __call__(self, image: Image.Image, **options: object) -> dict[str, list[np.ndarray]]:
        time.sleep(0.01)
        return {"pixel_values": [np.asarray(image).transpose(2, 0, 1)]}


def keep_in_process(folder: str) -> tuple[bool, int]:
    """Keep the pixels of a small split below ``folder``: whether they were made here, and their sum."""
    made: list[int] = []
    split = in_memory({"train": [20, 20], "test": [1, 1]}).train
    pixels = kept_pixels(split, PlainProcessor(), np.arange(40), Path(folder), lambda done, total: made.append(done))
    return bool(made), int(pixels.sum())
