"""Where files that can be made again are kept."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.resources
import json
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from attndrift.version import __version__


def cache_folder(given: str | Path | None = None) -> Path:
    """``given``, else ``$ATTNDRIFT_CACHE``, else ``attndrift`` in the user's cache folder. Not created."""
    if given is not None:
        return Path(given).expanduser()
    if os.environ.get("ATTNDRIFT_CACHE"):
        return Path(os.environ["ATTNDRIFT_CACHE"]).expanduser()
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "attndrift"


@cache
def code_key(*packages: str) -> str:
    """Changes with this package, with the packages whose entry points add to it, and with the versions of ``packages``; found once a process."""
    added = sorted(
        f"{package.name} {package.version} {point.group} {point.name} {point.value}"
        for package in importlib.metadata.distributions()
        for point in package.entry_points
        if point.group.startswith("attndrift.")
    )
    versions = [_version(name) for name in packages]
    return hashlib.sha256(json.dumps([__version__, *_package_files(), *added, *versions]).encode()).hexdigest()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _package_files() -> Iterable[tuple[str, int]]:
    root = Path(str(importlib.resources.files("attndrift")))
    # Code and YAML; not bytecode, which the first use of a module writes.
    paths = sorted(path for path in root.rglob("*.[py][ya]*") if path.suffix != ".pyc")
    return ((str(path.relative_to(root)), path.stat().st_mtime_ns) for path in paths)
