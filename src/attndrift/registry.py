"""Registries: what exists of one kind (metrics, methods, losses, ...), by name.

A registry finds its members in two places: the modules of a package of ours, each of which registers what it holds, and
the entry points of installed packages. Both are imported when they are first asked for. Modules that register import
torch inside their functions, so that a list of names and facts needs no torch.

    METHODS: Registry[Method] = Registry("method", "attndrift.methods")
    METHODS.register(Method(name="full", ...))
    METHODS["ful"]          # UnknownNameError: there is no method `ful`; did you mean `full`?
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import pkgutil
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType
from typing import Any, Generic, Protocol, TypeVar


class Named(Protocol):
    """What a registry holds: anything with a ``name``."""

    @property
    def name(self) -> str:
        """The name that settings, tables and commands use."""


T = TypeVar("T", bound=Named)

_LOADED_FROM: ContextVar[str] = ContextVar("loaded_from", default="")
"""The package whose modules are being loaded: one module may add to several registries."""


@contextmanager
def _loading_from(origin: str) -> Iterator[None]:
    token = _LOADED_FROM.set(origin)
    try:
        yield
    finally:
        _LOADED_FROM.reset(token)


class UnknownNameError(ValueError):
    """A name that no member of a registry has; the message gives at most one near match."""


class RegistrationError(ValueError):
    """A member that cannot be registered: its name is taken, or no name."""


REGISTRIES = {
    "method": "attndrift.methods.registry:METHODS",
    "head": "attndrift.methods.registry:HEADS",
    "loss": "attndrift.losses.registry:LOSSES",
    "outcome": "attndrift.study.outcomes.registry:OUTCOMES",
    "measure": "attndrift.results.measures:MEASURES",
}
"""The registries whose members bring settings of their own, by kind. Import paths as text: the code of tables must not
import these higher packages."""


def members_of(kind: str) -> list[Any]:
    """All members of a registry of :data:`REGISTRIES`."""
    module, _, name = REGISTRIES[kind].partition(":")
    return list(getattr(importlib.import_module(module), name))


def near_match(name: str, known: Iterable[str]) -> str:
    """``"; did you mean `lora`?"`` for the known name that is most like ``name``; empty where none is near.

    >>> near_match("Lora", ["lora", "full"])
    '; did you mean `lora`?'
    >>> near_match("cka", ["weight_drift", "cka_mean"])
    '; did you mean `cka_mean`?'
    >>> near_match("xyz", ["lora", "full"])
    ''
    """
    spellings = {one.lower().replace("-", "_"): one for one in known}
    asked = name.lower().replace("-", "_")
    found = difflib.get_close_matches(asked, list(spellings), n=1, cutoff=0.6)
    found = found or [one for one in spellings if len(asked) > 2 and one.startswith(asked)]
    return f"; did you mean `{spellings[found[0]]}`?" if found else ""


def unknown_name(kind: str, name: object, known: Iterable[str], otherwise: str) -> str:
    """What every unknown name is answered with: one near match, else ``otherwise``, which says where all names are.

    >>> unknown_name("method", "lroa", ["lora", "full"], "`attndrift list methods` shows every method")
    'there is no method `lroa`; did you mean `lora`?'
    """
    return f"there is no {kind} `{name}`{near_match(str(name), known) or f'; {otherwise}'}"


class Registry(Generic[T]):
    """The members of one kind, in the order of registration: built-in ones first, by module name, then entry points.

    Args:
        kind: what one member is called in messages, such as ``metric``.
        package: the package whose modules register the built-in members, such as ``attndrift.metrics``.
        group: the group of entry points; by default the name of the package.

    An entry point of the group names a module, which registers its members when it is imported, or a member. One that
    cannot be imported, or that takes a name that exists, is left out with a warning. Entry points run the code of the
    package that declares them.
    """

    def __init__(self, kind: str, package: str, group: str | None = None) -> None:
        self.kind, self.package, self.group = kind, package, group or package
        self._members: dict[str, T] = {}
        self._origins: dict[str, str] = {}
        self._loaded = self._loading = False

    def register(self, member: T) -> T:
        """Add ``member`` under its name, and return it, so that this serves as a decorator too.

        Raises:
            RegistrationError: the name is taken, or is none.
        """
        name = member.name
        if not (isinstance(name, str) and re.fullmatch(r"[a-z][a-z0-9_-]*", name)):
            raise RegistrationError(
                f"{self.kind}: {name!r} is no valid name; start with a lower-case letter, then use lower-case letters, digits, _ and -"
            )
        if self._members.get(name, member) is not member:
            raise RegistrationError(
                f"{self.kind} `{name}` is registered already, by {self.origin(name)}; choose another name"
            )
        self._members[name] = member
        self._origins[name] = _LOADED_FROM.get() or ("attndrift" if self._is_imported_early() else "this process")
        return member

    def _is_imported_early(self) -> bool:
        """Whether a module of the package registers while somebody else imports it, before the registry was asked."""
        frame: FrameType | None = sys._getframe(2)
        while frame is not None:
            if (
                str(frame.f_globals.get("__name__")).startswith(f"{self.package}.")
                and frame.f_code.co_name == "<module>"
            ):
                return True
            frame = frame.f_back
        return False

    def names(self) -> list[str]:
        """All names, in the order of registration."""
        self._load()
        return list(self._members)

    def origin(self, name: str) -> str:
        """Where a member comes from: ``attndrift``, the name of an installed package, or ``this process``."""
        self._load()
        return self._origins[name]

    def __getitem__(self, name: str) -> T:
        """The member called ``name``; :class:`UnknownNameError` with one near match where there is none."""
        self._load()
        try:
            return self._members[name]
        except KeyError:
            text = unknown_name(self.kind, name, self._members, f"`attndrift list` shows every {self.kind}")
            raise UnknownNameError(text) from None

    def __contains__(self, name: object) -> bool:
        self._load()
        return isinstance(name, str) and name in self._members

    def __iter__(self) -> Iterator[T]:
        self._load()
        return iter(list(self._members.values()))

    def __len__(self) -> int:
        self._load()
        return len(self._members)

    def _load(self) -> None:
        # A member's module may ask this registry for another member while it is being imported.
        if self._loaded or self._loading:
            return
        self._loading = True
        try:
            with _loading_from("attndrift"):
                package = importlib.import_module(self.package)
                for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda found: found.name):
                    if not module.name.startswith("_"):
                        importlib.import_module(f"{self.package}.{module.name}")
            for point in importlib.metadata.entry_points(group=self.group):
                self._load_entry_point(point)
            self._loaded = True
        finally:
            self._loading = False

    def _load_entry_point(self, point: importlib.metadata.EntryPoint) -> None:
        origin = point.dist.name if point.dist is not None else point.value
        try:
            with _loading_from(origin):
                found: Any = point.load()
                # A class whose object has registered itself when the module was imported is there already.
                if hasattr(found, "name") and not any(found in (one, type(one)) for one in self._members.values()):
                    self.register(found)
        except Exception as error:  # whatever a package of somebody else raises
            warnings.warn(
                f"{self.kind} `{point.name}` of the package {origin} is left out: {type(error).__name__}: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
