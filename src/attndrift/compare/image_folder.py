"""The images of a comparison: every image file of a folder, at any depth, as each model's processor makes it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from attndrift.compare.errors import CompareError
from attndrift.data.dataset import ImageSplit
from attndrift.data.errors import some
from attndrift.data.pixels import PixelStore
from attndrift.data.readers import IMAGE_SUFFIXES, FileReader
from attndrift.sanitize import printable

MAP_IMAGES = 4


@dataclass(frozen=True)
class ImageFolder:
    """Readable images of a folder.

    Attributes:
        split: all of its image files; ids are paths below the folder, in printable characters.
        indices: those that can be read.
        skipped: name and reason of those that cannot.
    """

    split: ImageSplit
    indices: list[int]
    skipped: dict[str, str]

    @property
    def names(self) -> list[str]:
        """Names of the readable images, in order."""
        return [self.split.ids[i] for i in self.indices]

    def to_json(self, shown: list[str]) -> dict[str, Any]:
        """Plain values for a record; ``shown`` are the names of the images in the maps."""
        return {
            "folder": self.split.dataset,
            "n": len(self.indices),
            "skipped": [{"name": name, "reason": reason} for name, reason in self.skipped.items()],
            "in_maps": shown,
        }

    def store(self, processor: Any, cache: Path) -> PixelStore:
        """Pixels of the readable images as ``processor`` makes them; ``cache`` is a folder of the caller's."""
        return PixelStore.open(self.split, processor, indices=self.indices, cache_dir=cache)


def open_images(
    folder: Path, *, skip_unreadable: bool = False, progress: Callable[[int, int], None] | None = None
) -> ImageFolder:
    """The images of ``folder`` and of the folders below; hidden ones, and links to folders, are left out.

    Raises :class:`CompareError` for a folder that is not there, for unreadable images unless
    ``skip_unreadable``, naming them, and for fewer than two readable ones.
    """
    if not folder.is_dir():
        raise CompareError(f"--images {printable(folder)}: not a folder")
    paths = list(_files(folder))
    names = [printable(path.relative_to(folder).as_posix()) for path in paths]
    if len(paths) < 2:
        raise CompareError(
            f"--images {printable(folder)}: holds {len(paths)} image file(s); a comparison needs at least 2 "
            f"({', '.join(sorted(IMAGE_SUFFIXES))})"
        )
    labels = np.zeros(len(paths), dtype=np.int64)
    split = ImageSplit(printable(folder), "images", FileReader(paths), labels, names, ("image",))
    unreadable = split.unreadable(progress)
    skipped = {names[index]: printable(reason) for index, reason in unreadable.items()}
    if skipped and not skip_unreadable:
        raise CompareError(
            f"--images {printable(folder)}: {len(skipped)} of {len(paths)} images cannot be read: "
            f"{some(f'{name} ({reason})' for name, reason in skipped.items())}. Remove them, or pass --skip-unreadable"
        )
    indices = [index for index in range(len(paths)) if index not in unreadable]
    if len(indices) < 2:
        raise CompareError(
            f"--images {printable(folder)}: {len(indices)} readable image(s) and {len(skipped)} unreadable; a comparison "
            "needs at least 2 readable ones"
        )
    return ImageFolder(split, indices, skipped)


def _files(folder: Path) -> Iterator[Path]:
    for where, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(where) / name
            if not name.startswith(".") and path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
                yield path


def some_pictures(images: int) -> NDArray[np.int64]:
    """Positions of the few images of which maps are shown, spread over all of them."""
    return np.unique(np.linspace(0, images - 1, min(MAP_IMAGES, images)).round().astype(np.int64))


def pictures(store: PixelStore, chosen: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Images of a store as the model sees them, before normalising: (images, height, width, 3)."""
    return store.fetch_uint8(chosen).numpy().transpose(0, 2, 3, 1)


def batches(store: PixelStore, size: int) -> Iterator[Tensor]:
    """Normalised images (images, 3, height, width) of a store, ``size`` at a time."""
    for start in range(0, len(store), size):
        yield store.fetch(range(start, min(start + size, len(store))))
