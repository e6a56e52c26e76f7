"""The images of a comparison: every image file of a folder, at any depth, as a model's image processor makes it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attndrift.compare.errors import CompareError
from attndrift.data.decoding import decode_image, quiet_decoding
from attndrift.data.errors import DataError, UnreadableImageError, some
from attndrift.data.readers import IMAGE_SUFFIXES, describe_left_out, image_files, refuse_reached_twice
from attndrift.sanitize import printable

MAP_IMAGES = 4


@dataclass(frozen=True)
class ImageFolder:
    """Readable images of a folder, decoded when they are asked for.

    Attributes:
        folder: its path, in printable characters.
        paths, names: of the images, in order; names are paths below the folder, in printable characters.
        skipped: name and reason of those that cannot be read.
        left_out: how many files, of which kinds, are no image by their suffix, in words; empty where there are none.
    """

    folder: str
    paths: list[Path]
    names: list[str]
    skipped: list[tuple[str, str]]
    left_out: str

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def in_maps(self) -> list[int]:
        """Positions of the few images of which maps are shown, spread over all of them."""
        last, count = len(self) - 1, min(MAP_IMAGES, len(self))
        return sorted({round(place * last / (count - 1)) for place in range(count)})

    def pixels(self, processor: Any, positions: Sequence[int]) -> Tensor:
        """Some of the images, normalised: float32 (images, 3, height, width)."""
        return torch.from_numpy(self._processed(processor, positions)).float()

    def batches(self, processor: Any, size: int) -> Iterator[Tensor]:
        """All of the images, normalised, ``size`` at a time: float32 (images, 3, height, width)."""
        for start in range(0, len(self), size):
            yield self.pixels(processor, range(start, min(start + size, len(self))))

    def pictures(self, processor: Any) -> NDArray[np.uint8]:
        """The images of the maps as the model sees them, before normalising: (images, height, width, 3)."""
        found = self._processed(processor, self.in_maps, do_rescale=False, do_normalize=False)
        return found.astype(np.uint8).transpose(0, 2, 3, 1)

    def _processed(self, processor: Any, positions: Sequence[int], **options: Any) -> NDArray[Any]:
        with quiet_decoding():
            images = [decode_image(self.paths[place], f"{self.folder}/{self.names[place]}") for place in positions]
        return np.stack([np.asarray(processor(image, **options)["pixel_values"][0]) for image in images])

    def to_json(self) -> dict[str, Any]:
        """Plain values for a record."""
        skipped = [{"name": name, "reason": reason} for name, reason in self.skipped]
        in_maps = [self.names[place] for place in self.in_maps]
        return {
            "folder": self.folder,
            "n": len(self),
            "skipped": skipped,
            "left_out": self.left_out or None,
            "in_maps": in_maps,
        }


def open_images(folder: str | Path, *, skip_unreadable: bool = False) -> ImageFolder:
    """The images of ``folder`` and of the folders below, as a dataset finds them; hidden ones are left out.

    Raises :class:`CompareError` for a folder that is not there, for an image that would count twice through a link, for
    unreadable images unless ``skip_unreadable``, naming them, and for fewer than two readable ones.
    """
    root, where = Path(folder), f"--images {printable(folder)}"
    if not root.is_dir():
        raise CompareError(f"{where}: not a folder")
    others: list[Path] = []
    linked: list[Path] = []
    try:
        paths = image_files(root, root, left_out=others, linked=linked)
        refuse_reached_twice(linked, {}, where)
    except DataError as error:
        raise CompareError(printable(error)) from error
    left_out = printable(describe_left_out(others)) if others else ""
    found = [(path, printable(path.relative_to(root).as_posix())) for path in paths]
    if len(found) < 2:
        raise CompareError(
            f"{where}: holds {len(found)} image file(s); a comparison needs at least 2 ({', '.join(sorted(IMAGE_SUFFIXES))})"
            + (f". {left_out}" if left_out else "")
        )
    reasons = [_why_unreadable(path) for path, _ in found]
    skipped = [(name, reason) for (_, name), reason in zip(found, reasons, strict=True) if reason is not None]
    if skipped and not skip_unreadable:
        raise CompareError(
            f"{where}: {len(skipped)} of {len(found)} images cannot be read: "
            f"{some(f'{name} ({reason})' for name, reason in skipped)}. Remove them, or pass --skip-unreadable"
        )
    readable = [one for one, reason in zip(found, reasons, strict=True) if reason is None]
    if len(readable) < 2:
        raise CompareError(
            f"{where}: {len(readable)} readable image(s) and {len(skipped)} unreadable; a comparison needs at least 2 "
            "readable ones"
        )
    return ImageFolder(
        printable(folder), [path for path, _ in readable], [name for _, name in readable], skipped, left_out
    )


def refuse_output_among_images(output: Path, images: Path) -> None:
    """Raise :class:`CompareError` where the pictures that are written would be images of the next call."""
    if output.resolve().is_relative_to(images.resolve()):
        raise CompareError(
            f"--output {printable(output)}: lies in --images {printable(images)}, where the pictures written now would be "
            "measured the next time. Name a folder elsewhere"
        )


def _why_unreadable(path: Path) -> str | None:
    try:
        with quiet_decoding():
            decode_image(path, path.name)
    except UnreadableImageError as error:
        return printable(error.reason)
    return None
