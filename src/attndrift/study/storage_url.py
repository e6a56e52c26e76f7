"""From the path or the URL of a study to its storage."""

from __future__ import annotations

import os
import re
from pathlib import Path

from attndrift.study.storage import LocalStorage, StudyStorage

# Two letters at least: `c:\studies` is a folder.
_URL = re.compile(r"^([a-z][a-z0-9+.-]+)(?:://|::)", re.IGNORECASE)


def is_url(where: str) -> bool:
    """Whether ``where`` names a storage by a scheme (``s3://bucket/study``) and is no path."""
    return _URL.match(where) is not None


def open_storage(where: StudyStorage | str | os.PathLike[str], token: str | None = None) -> StudyStorage:
    """The storage called ``where``: a path, ``file://`` and a path, or any URL that ``fsspec`` knows.

    ``token``: of the driver that this process works for. Raises ``ValueError`` for a URL that holds a password, and
    where the package for its scheme is missing.
    """
    if isinstance(where, StudyStorage):
        return where
    text = os.fspath(where)
    if not is_url(text):
        return LocalStorage(Path(text))
    if text.lower().startswith(("file://", "local://")):
        return LocalStorage(Path(text.partition("://")[2]))
    # fsspec takes half a second to import.
    from attndrift.study.object_storage import ObjectStorage

    return ObjectStorage(text, token)
