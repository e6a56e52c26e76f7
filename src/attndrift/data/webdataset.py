"""Sets in tar files as ``clip-benchmark/wds_*`` has them: ``test/0.tar``, with class names and templates in text files.

A tar holds, for each image, ``KEY.webp`` (or png, jpg) and ``KEY.cls``, its label as a number. Images stay in the tar and
are read when they are asked for.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from attndrift.data.decoding import RawImage
from attndrift.data.errors import DataError, DatasetUnavailable, UnreadableImageError, some
from attndrift.data.readers import IMAGE_SUFFIXES, ends_of

CLASS_NAMES, TEMPLATES = "classnames.txt", "zeroshot_classification_templates.txt"
"""Text files beside the splits: a class name a line, in label order; a template a line, ``{c}`` for the name."""

_SHARD = re.compile(r"([^/]+)/(\d+)\.tar")


def tar_splits(files: Sequence[str]) -> dict[str, tuple[str, ...]] | None:
    """The tar files of each split, in order; None where ``files`` are no such set."""
    found: dict[str, list[str]] = {}
    for file in files:
        if match := _SHARD.fullmatch(file):
            found.setdefault(match[1], []).append(file)
    ordered = {split: sorted(shards, key=lambda one: int(Path(one).stem)) for split, shards in found.items()}
    return {split: tuple(shards) for split, shards in ordered.items()} or None


def about_files(files: Sequence[str], splits: Sequence[str]) -> list[str]:
    """The text files of a set that say what is in it."""
    wanted = {CLASS_NAMES, TEMPLATES, *(f"{split}/nshards.txt" for split in splits)}
    return [file for file in files if file in wanted]


class TarReader:
    """Images inside tar files: of each the file, where it begins, and its length."""

    def __init__(self, members: Sequence[tuple[Path, int, int]]) -> None:
        self._members = list(members)

    def __len__(self) -> int:
        return len(self._members)

    def raw(self, index: int, image_id: str) -> RawImage:
        """The encoded bytes."""
        path, start, size = self._members[index]
        try:
            with path.open("rb") as file:
                file.seek(start)
                return file.read(size)
        except OSError as error:
            raise UnreadableImageError(image_id, f"{path}: {error.strerror or error}") from error

    def digest(self) -> str:
        """SHA-256 over the encoded images."""
        total = hashlib.sha256()
        for index in range(len(self)):
            content = self.raw(index, str(index))
            assert isinstance(content, bytes)
            total.update(len(content).to_bytes(8, "little"))
            for part in ends_of(content):
                total.update(part)
        return total.hexdigest()


@dataclass(frozen=True)
class TarSet:
    """What the text files of a set say.

    Attributes:
        class_names: in label order; empty where there are none.
        templates: with ``{class}``; None where there are none.
    """

    class_names: tuple[str, ...]
    templates: tuple[str, ...] | None

    @classmethod
    def read(cls, files: Mapping[str, Path], where: str) -> TarSet:
        """Read those of ``files`` (by their names) that are there. Raises :class:`DataError` for a template without ``{c}``."""
        names = _lines(files.get(CLASS_NAMES))
        templates = _lines(files.get(TEMPLATES))
        for number, line in enumerate(templates, 1):
            if line.count("{c}") != 1:
                raise DataError(f"{where}: {TEMPLATES}, line {number}: {line!r} must hold {{c}} exactly once")
        return cls(tuple(names), tuple(line.replace("{c}", "{class}") for line in templates) or None)


def _lines(path: Path | None) -> list[str]:
    text = path.read_text(encoding="utf-8") if path is not None and path.is_file() else ""
    return [line for line in text.splitlines() if line.strip()]


def check_shards(split: str, tars: Sequence[Path], counted: Path | None, where: str) -> None:
    """Raise :class:`DatasetUnavailable` where a split has fewer tar files than its ``nshards.txt`` says."""
    stated = _lines(counted)
    if stated and stated[0].strip().isdigit() and int(stated[0]) != len(tars):
        raise DatasetUnavailable(f"{where}: the split `{split}` has {len(tars)} of {stated[0].strip()} tar files here")


def _check_end(path: Path) -> None:
    """Raise ``ValueError`` for a tar that was cut: it ends with a block of zeros, and its reader does not ask for it."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - tarfile.BLOCKSIZE))
        if file.read().strip(b"\0"):
            raise ValueError("it has no end; was it cut?")


def read_tars(tars: Sequence[Path], classes: int, where: str) -> tuple[TarReader, NDArray[np.int64], list[str]]:
    """Reader, labels and ids (``0/s0000001``: tar and key) of a split.

    Raises :class:`DataError` for a file that is no tar, an image without a label, and a label without a class name.
    """
    members: list[tuple[Path, int, int]] = []
    labels: list[int] = []
    ids: list[str] = []
    for path in tars:
        images: dict[str, tuple[Path, int, int]] = {}
        own: dict[str, int] = {}
        try:
            _check_end(path)
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    key, _, suffix = member.name.rpartition(".")
                    if f".{suffix.lower()}" in IMAGE_SUFFIXES:
                        images[key] = (path, member.offset_data, member.size)
                    elif suffix == "cls":
                        file = tar.extractfile(member)
                        own[key] = int(file.read()) if file is not None else -1
        except (tarfile.TarError, OSError, ValueError) as error:
            raise DataError(f"{where}: {path} cannot be read as a tar of images and labels: {error}") from error
        bare = [key for key in images if key not in own]
        if bare:
            raise DataError(f"{where}: {path}: images without a label (`.cls`): {some(bare)}")
        members += images.values()
        labels += [own[key] for key in images]
        ids += [f"{path.stem}/{key}" for key in images]
    found = np.asarray(labels, dtype=np.int64)
    if len(found) and (found.min() < 0 or found.max() >= classes):
        raise DataError(
            f"{where}: its labels run from {found.min()} to {found.max()}, but {CLASS_NAMES} has {classes} class names "
            f"(0 to {classes - 1})"
        )
    return TarReader(members), found, ids
