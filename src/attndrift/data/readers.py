"""One split's images by index, wherever they are: table rows, files, generated on demand.

A reader knows how many images there are, and hands out the raw form of each: encoded bytes, a file's
path, or pixels. Labels and ids are read with the split, images when asked for.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from attndrift.data.decoding import RawImage
from attndrift.data.errors import DataError, UnreadableImageError, some

# Imports inside functions: these packages take time to load, which only who needs them pays.

_HASHED_END = 32_768


_COMPRESSED = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF")
"""How JPEG, PNG, GIF and WebP begin. Another picture in them has another length or another end."""


def ends_of(content: bytes | memoryview) -> Iterable[bytes | memoryview]:
    """What a fingerprint reads of an image: all of it, or both ends where it is large and compressed."""
    if len(content) <= 2 * _HASHED_END or not bytes(content[:4]).startswith(_COMPRESSED):
        return (content,)
    return (content[:_HASHED_END], content[-_HASHED_END:])


class Reader(Protocol):
    """Raw images of one split."""

    def __len__(self) -> int:
        """Number of images."""

    def raw(self, index: int, image_id: str) -> RawImage:
        """The image at ``index`` as it is stored; ``image_id`` is for errors."""

    def digest(self) -> str:
        """SHA-256 over all images: all of each, of a large compressed one its length and both ends (32 KB each)."""


class TableReader:
    """Images in a column of a ``datasets.Dataset``, not decoded by it."""

    def __init__(self, table: Any, column: str) -> None:
        import datasets

        if isinstance(table.features[column], datasets.Image):
            table = table.cast_column(column, datasets.Image(decode=False))
        self._column = column
        self._table = table.select_columns([column])

    def __len__(self) -> int:
        return len(self._table)

    def raw(self, index: int, image_id: str) -> RawImage:
        """The encoded bytes, or the path of a local file; never fetched from elsewhere."""
        value = self._table[index][self._column]
        if isinstance(value, bytes):
            return value
        if isinstance(value, dict):
            if value.get("bytes") is not None:
                return bytes(value["bytes"])
            path = value.get("path")
            if path and "://" not in path:
                return Path(path)
            if path:
                raise UnreadableImageError(image_id, f"its row holds only the address {path}")
        raise UnreadableImageError(image_id, f"column `{self._column}` holds no image in this row")

    def digest(self) -> str:
        """SHA-256 over the encoded images."""
        total = hashlib.sha256()
        for value in self._buffers():
            total.update(len(value).to_bytes(8, "little"))
            for part in ends_of(value):
                total.update(part)
        return total.hexdigest()

    def _buffers(self) -> Iterator[memoryview | bytes]:
        import pyarrow as pa

        for batch in self._table.with_format("arrow").iter(1000):
            column = batch.column(0)
            if isinstance(column, pa.ChunkedArray):
                column = column.combine_chunks()
            paths: Sequence[Any] = [None] * len(column)
            if pa.types.is_struct(column.type):
                if column.type.get_field_index("path") >= 0:
                    paths = column.field("path").to_pylist()
                column = column.field("bytes")
            for scalar, path in zip(column, paths, strict=True):
                if scalar.is_valid:
                    yield memoryview(scalar.as_buffer())
                else:
                    yield _file_ends(Path(path)) if path and "://" not in path else str(path).encode()


def _file_ends(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(_HASHED_END)
            if head.startswith(_COMPRESSED):
                file.seek(max(_HASHED_END, size - _HASHED_END))
            return size.to_bytes(8, "little") + head + file.read()
    except OSError:
        return b"missing"


class FileReader:
    """Images in files."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = list(paths)

    def __len__(self) -> int:
        return len(self._paths)

    def raw(self, index: int, image_id: str) -> RawImage:
        """The path of the file."""
        return self._paths[index]

    def digest(self) -> str:
        """SHA-256 over the files' sizes and contents."""
        total = hashlib.sha256()
        for path in self._paths:
            total.update(_file_ends(path))
        return total.hexdigest()


class GeneratedReader:
    """Images drawn by a pure function of the index."""

    def __init__(self, size: int, draw: Callable[[int], NDArray[np.uint8]]) -> None:
        self._size, self._draw = size, draw

    def __len__(self) -> int:
        return self._size

    def raw(self, index: int, image_id: str) -> RawImage:
        """Pixels (height, width, 3), uint8."""
        return self._draw(index)

    def digest(self) -> str:
        """SHA-256 over a sample of 32 drawings: it changes when the way they are drawn does."""
        total = hashlib.sha256()
        for index in np.unique(np.linspace(0, self._size - 1, min(32, self._size)).astype(int)):
            total.update(np.ascontiguousarray(self._draw(int(index))).tobytes())
        return total.hexdigest()


IMAGE_SUFFIXES = frozenset(
    (
        *(".apng", ".avif", ".bmp", ".dib", ".gif", ".ico", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe"),
        *(".jpeg", ".jpf", ".jpg", ".jpx", ".mpo", ".pbm", ".pcx", ".pgm", ".png", ".pnm", ".ppm", ".qoi"),
        *(".sgi", ".tga", ".tif", ".tiff", ".webp"),
    )
)


def _counts_twice(entry: Path, where: str) -> DataError:
    return DataError(
        f"{entry} is a link to {entry.resolve()}, whose images are in {where} already: they would count twice. "
        "Remove the link"
    )


def _visible(folder: Path, root: Path, above: Collection[Path] = ()) -> list[Path]:
    """What is in ``folder``, in order. Raises :class:`DataError` for a link to images that count elsewhere.

    ``above``: real folders that were walked through to reach it.
    """
    found = sorted((p for p in folder.iterdir() if not p.name.startswith(".")), key=lambda p: p.name)
    for entry in found:
        if entry.is_symlink() and entry.exists():
            target, top = entry.resolve(), root.resolve()
            climbs = target in (top, *top.parents, *above) or target in folder.resolve().parents
            if climbs or target.is_relative_to(top):
                raise _counts_twice(entry, str(root))
    return found


def image_files(
    folder: Path,
    root: Path,
    *,
    deep: bool = True,
    left_out: list[Path] | None = None,
    linked: list[Path] | None = None,
    above: tuple[Path, ...] = (),
) -> list[Path]:
    """Image files in ``folder`` (and below, if ``deep``), by their suffix, hidden ones left out, in order.

    ``root``: the dataset's folder, into which no link may lead. ``left_out`` takes the other files, ``linked`` those that
    are reached through a link. ``above``: real folders that led here, once a link was followed. Raises
    :class:`DataError` for a link that climbs.
    """
    found: list[Path] = []
    # A stack and no recursion: a path may hold more folders than Python has frames.
    waiting = [(folder, above)]
    while waiting:
        entry, way = waiting.pop()
        if entry is folder or entry.is_dir():
            if entry is not folder and not deep:
                continue
            inner = (*way, entry.resolve()) if way or entry.is_symlink() else ()
            waiting += [(one, inner) for one in reversed(_visible(entry, root, inner))]
        elif entry.suffix.lower() in IMAGE_SUFFIXES and entry.is_file():
            found.append(entry)
            if linked is not None and (way or entry.is_symlink()):
                linked.append(entry)
        elif left_out is not None:
            left_out.append(entry)
    return found


def refuse_reached_twice(linked: Iterable[Path], reached: dict[Path, Path], where: str) -> None:
    """Raise :class:`DataError` for an image that two links lead to.

    ``linked``: as of :func:`image_files`. ``reached``: by its real path, every image found through a link so far; takes these.
    """
    for path in linked:
        other = reached.setdefault(path.resolve(), path)
        if other != path:
            raise DataError(
                f"{where}: {path} and {other} are links to one image, {path.resolve()}: it would count twice. Remove one"
            )


def class_folders(folder: Path, root: Path) -> list[Path]:
    """Folders right below ``folder`` that hold anything: the classes."""
    return [entry for entry in _visible(folder, root) if entry.is_dir() and any(_visible(entry, root))]


def empty_folders(folder: Path, root: Path) -> list[Path]:
    """Folders right below ``folder`` that hold nothing, and so are no classes."""
    return [entry for entry in _visible(folder, root) if entry.is_dir() and not any(_visible(entry, root))]


def describe_left_out(paths: Sequence[Path]) -> str:
    """How many files, of which kinds, are no image to this program."""
    kinds = Counter(path.suffix.lower() or "no suffix" if path.exists() else "broken link" for path in paths)
    shown = some(f"{count} {kind}" for kind, count in kinds.most_common())
    return f"{len(paths)} files are left out, as no image that can be read by its suffix: {shown} ({some((path.name for path in paths), 3)})"


def read_class_folders(
    folder: Path, classes: Sequence[str], where: str, root: Path, reached: dict[Path, Path]
) -> tuple[FileReader, NDArray[np.int64], list[str]]:
    """Reader, labels and ids (``class/file.jpg``) of a folder with one folder a class.

    ``reached``: by its real path, every image that the dataset has through a link; those of this folder are added.
    Raises :class:`DataError` for a folder that is no class, for a class without images, and for an image that is reached
    through two links.
    """
    names = [entry.name for entry in class_folders(folder, root)]
    strange = sorted(set(names) - set(classes))
    if strange:
        raise DataError(f"{where}: {folder} has folders that are no class of the training split: {some(strange)}")
    paths: list[Path] = []
    labels: list[int] = []
    empty: list[str] = []
    left_out: list[Path] = []
    linked: list[Path] = []
    above = (folder.resolve(),) if folder.is_symlink() else ()
    for label, name in enumerate(classes):
        files = []
        if name in names:
            files = image_files(folder / name, root, left_out=left_out, linked=linked, above=above)
        if not files:
            empty.append(name)
        paths += files
        labels += [label] * len(files)
    if empty:
        why = f". {describe_left_out(left_out)}" if left_out else ""
        remedy = "Move what is no class out of the dataset"
        raise DataError(f"{where}: classes without images in {folder}: {some(empty)}{why}. {remedy}")
    refuse_reached_twice(linked, reached, where)
    if left_out:
        warnings.warn(f"{where}: {describe_left_out(left_out)}. Convert images among them to PNG", stacklevel=2)
    ids = [path.relative_to(folder).as_posix() for path in paths]
    return FileReader(paths), np.asarray(labels, dtype=np.int64), ids
