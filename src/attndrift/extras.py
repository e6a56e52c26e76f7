"""The extras of this package (``pip install "attndrift[study]"``): what of them is missing, and the line that installs it.

What an extra brings stands in ``pyproject.toml`` alone; an installed package keeps it in its metadata.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

PACKAGE = "attndrift"


class MissingExtraError(ImportError):
    """Packages of an extra are not installed; the message has the line that installs them."""


def install_line(*extras: str) -> str:
    """The command that installs ``extras``.

    >>> install_line("study", "report")
    'pip install "attndrift[study,report]"'
    """
    return f'pip install "{PACKAGE}[{",".join(extras)}]"'


def missing(extra: str) -> list[str]:
    """The packages of ``extra`` that are not installed. Empty too where this package runs from plain source files."""
    return [name for name in _distributions(extra) if not _installed(name)]


def require(*extras: str, what: str) -> None:
    """Raise :class:`MissingExtraError` where packages of ``extras`` are missing; ``what`` needs them."""
    absent = {extra: names for extra in extras if (names := missing(extra))}
    if absent:
        names = list(dict.fromkeys(name for some in absent.values() for name in some))
        raise MissingExtraError(_message(what, names, *absent))


@contextmanager
def importing(extra: str, what: str) -> Iterator[None]:
    """Imports of packages that ``extra`` brings: one that is not there raises :class:`MissingExtraError`."""
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or PACKAGE).partition(".")[0]
        if module == PACKAGE:
            raise
        raise MissingExtraError(_message(what, [module], extra), name=error.name) from error


def _message(what: str, names: list[str], *extras: str) -> str:
    some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{what} needs packages that are not installed ({some}): {install_line(*extras)}"


@cache
def _distributions(extra: str) -> dict[str, None]:
    """Names of what ``extra`` brings, in the order of ``pyproject.toml``; extras within it are followed."""
    # Here, for the time that a command takes to start.
    from packaging.requirements import Requirement

    found: dict[str, None] = {}
    try:
        lines = importlib.metadata.requires(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        lines = []
    for wanted in map(Requirement, lines):
        # Without the extra it holds too: a requirement of the plain package.
        if (
            wanted.marker is None
            or wanted.marker.evaluate({"extra": ""})
            or not wanted.marker.evaluate({"extra": extra})
        ):
            continue
        if wanted.name == PACKAGE:
            for inner in sorted(wanted.extras):
                found |= _distributions(inner)
        else:
            found[wanted.name] = None
    return found


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
