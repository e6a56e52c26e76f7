"""The objects below a URL that ``fsspec`` opens: reading, writing, listing. Nothing here knows of studies."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import fsspec
from fsspec.spec import AbstractFileSystem

from attndrift.extras import install_line


def _open(url: str) -> tuple[AbstractFileSystem, str]:
    if urlsplit(url).password:
        raise ValueError(
            "the URL of the study holds a password, which would be in records and logs; give credentials in "
            "the environment or in a file, as the package for the scheme describes"
        )
    scheme = url.partition("::")[0].partition("://")[0]
    try:
        # What another process has written must be seen: no listing is kept.
        fs, path = fsspec.core.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
    except ImportError as error:
        hint = install_line("s3") if scheme in ("s3", "s3a") else str(error)
        raise ValueError(f"{url}: the package for {scheme}:// is not installed ({hint})") from error
    except ValueError as error:
        raise ValueError(f"{url}: {error}") from error
    return fs, str(path).rstrip("/")


class ObjectStore:
    """The objects below a URL. Paths are those of its file system; :meth:`path` makes them."""

    def __init__(self, url: str) -> None:
        self.fs, self.root = _open(url)

    def path(self, *parts: str) -> str:
        """The path of an object."""
        return "/".join((self.root, *parts))

    def read(self, path: str) -> bytes | None:
        """An object; None where there is none."""
        try:
            return bytes(self.fs.cat_file(path))
        except FileNotFoundError:
            return None

    def fetch(self, paths: dict[str, Path]) -> None:
        """Write the objects that are there to their local paths."""
        found = self.fs.cat(list(paths), on_error="return") if paths else {}
        for path, content in found.items():
            if isinstance(content, FileNotFoundError):
                continue
            if isinstance(content, Exception):
                raise content
            paths[path].parent.mkdir(parents=True, exist_ok=True)
            paths[path].write_bytes(content)

    def _into(self, path: str, write: Callable[[], Any]) -> None:
        """Do ``write``, to ``path``; where folders are more than names, in a folder that is there."""
        try:
            write()
        except FileNotFoundError:
            self.fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            write()

    def write(self, path: str, value: bytes) -> None:
        """Write an object, over one that is there."""
        self._into(path, lambda: self.fs.pipe_file(path, value))

    def create(self, path: str, value: bytes) -> bool:
        """Write an object unless there is one; whether it was written. One step in a store that creates on condition."""
        try:
            self._into(path, lambda: self.fs.pipe_file(path, value, mode="create"))
        except FileExistsError:
            return False
        except OSError as error:
            # So S3 answers where two do it at the very same time.
            if error.errno == errno.EBUSY:
                return False
            raise
        except (NotImplementedError, TypeError, ValueError):  # knows no condition
            if self.fs.exists(path):
                return False
            self.write(path, value)
        return True

    def send(self, file: Path, path: str) -> None:
        """Write a local file as an object."""
        self._into(path, lambda: self.fs.put_file(str(file), path))

    def files(self, folder: str) -> list[str]:
        """All objects below ``folder``, relative to it, sorted."""
        try:
            found = self.fs.find(folder)
        except FileNotFoundError:
            return []
        # Some file systems begin their paths with a slash only when they list them.
        base = PurePosixPath("/" + folder.lstrip("/"))
        return sorted(str(PurePosixPath("/" + path.lstrip("/")).relative_to(base)) for path in found)

    def versions(self, folder: str) -> Iterator[tuple[str, tuple[Any, ...], float]]:
        """All objects below ``folder``: name relative to it, what changes when it does, and when it did (Unix time, or 0)."""
        try:
            found = self.fs.find(self.path(folder), detail=True)
        except FileNotFoundError:
            return
        base = PurePosixPath("/" + self.path(folder).lstrip("/"))
        for path, facts in found.items():
            when = (
                facts.get("LastModified")
                or facts.get("mtime")
                or facts.get("last_modified")
                or facts.get("created")
                or 0
            )
            seconds = when.timestamp() if hasattr(when, "timestamp") else float(when)
            version = (facts.get("ETag"), facts.get("size"), seconds)
            yield str(PurePosixPath("/" + path.lstrip("/")).relative_to(base)), version, seconds

    def remove(self, path: str) -> None:
        """Remove an object, if there is one."""
        with suppress(FileNotFoundError):
            self.fs.rm_file(path)
