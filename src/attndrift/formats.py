"""The format number of everything that is kept, and the one message that refuses another number.

A file of another format is refused before anything of it is used: it is never read by halves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attndrift.version import __version__

FIELD = "format"
"""Where the number stands in a JSON object."""

METADATA = b"attndrift_format"
"""Where the number stands in the metadata of a Parquet schema."""

FORMATS = {
    # what is kept: (its number, what it is called, what to do instead of reading it)
    "study": (2, "a study folder", "run the study anew in another folder (--output)"),
    "run": (2, "the folder of a run", "run its study anew in another folder (--output)"),
    "state": (3, "a resumable state", "run the study anew in another folder (--output)"),
    "checkpoint": (3, "a checkpoint", "train it anew, into another folder"),
    "tables": (
        2,
        "tables",
        "write them anew, into another folder (tables of other programs come in through `attndrift import`)",
    ),
}


class FormatError(ValueError):
    """A study folder, table or checkpoint of another version, in a form that this version does not read."""


def numbered(kind: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """``content``, a JSON object, with the format number of its ``kind`` in front."""
    return {FIELD: FORMATS[kind][0], **content}


def check_format(kind: str, content: object, where: object) -> None:
    """Raise :class:`FormatError` unless ``content``, a JSON object read from ``where``, has the number of its ``kind``."""
    _check(kind, content.get(FIELD) if isinstance(content, Mapping) else None, where)


def table_metadata() -> dict[bytes, bytes]:
    """The format number of a table, for the metadata of its schema."""
    return {METADATA: str(FORMATS["tables"][0]).encode()}


def check_table_metadata(metadata: Mapping[bytes, bytes] | None, where: object) -> None:
    """Raise :class:`FormatError` unless a table read from ``where`` has the number in its schema's ``metadata``."""
    text = (metadata or {}).get(METADATA, b"")
    _check("tables", int(text) if text.isdigit() else None, where)


def _check(kind: str, found: object, where: object) -> None:
    expected, what, instead = FORMATS[kind]
    if found == expected:
        return
    if isinstance(found, int) and found > expected:
        raise FormatError(
            f"{where}: {what} of format {found}, which a later version of attndrift wrote; version {__version__} "
            f"reads format {expected}. Update attndrift"
        )
    number = "without a format number" if found is None else f"of format {found}"
    wrote = "version 0.1" if found in (None, 1) else "an earlier version"
    raise FormatError(
        f"{where}: {what} {number}: {wrote} wrote it, and version {__version__} reads format {expected} alone. "
        f"Either {instead}, or use {wrote} of attndrift"
    )
