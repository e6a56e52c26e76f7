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
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, Generic, Protocol, TypeVar


class Named(Protocol):
    """What a registry holds: anything with a ``name``."""

    @property
    def name(self) -> str:
        """The name that settings, tables and commands use."""


T = TypeVar("T", bound=Named)


class UnknownNameError(ValueError):
    """A name that no member of a registry has; the message gives at most one near match."""


class RegistrationError(ValueError):
    """A member that cannot be registered: its name is taken, or no name."""


def near_match(name: str, known: Iterable[str]) -> str:
    """``"; did you mean `lora`?"`` for the known name that is most like ``name``; empty where none is near.

    >>> near_match("Lora", ["lora", "full"])
    '; did you mean `lora`?'
    >>> near_match("xyz", ["lora", "full"])
    ''
    """
    spellings = {one.lower().replace("-", "_"): one for one in known}
    found = difflib.get_close_matches(name.lower().replace("-", "_"), list(spellings), n=1, cutoff=0.6)
    return f"; did you mean `{spellings[found[0]]}`?" if found else ""


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
        self._origin = ""

    def register(self, member: T) -> T:
        """Add ``member`` under its name, and return it, so that this serves as a decorator too.

        Raises:
            RegistrationError: the name is taken, or is no identifier.
        """
        name = member.name
        if not (isinstance(name, str) and name.isidentifier() and name == name.lower()):
            raise RegistrationError(f"{self.kind}: {name!r} is no name; use lower-case letters, digits and underscores")
        if self._members.get(name, member) is not member:
            raise RegistrationError(
                f"{self.kind} `{name}` is registered already, by {self.origin(name)}; choose another name"
            )
        self._members[name] = member
        self._origins[name] = self._origin or "this process"
        return member

    def names(self) -> list[str]:
        """All names, in the order of registration."""
        self._load()
        return list(self._members)

    def origin(self, name: str) -> str:
        """Where a member comes from: ``attndrift``, the name of an installed package, or ``this process``."""
        return self._origins[name]

    def __getitem__(self, name: str) -> T:
        """The member called ``name``; :class:`UnknownNameError` with one near match where there is none."""
        self._load()
        try:
            return self._members[name]
        except KeyError:
            hint = near_match(name, self._members)
            raise UnknownNameError(
                f"there is no {self.kind} `{name}`{hint or f'; `attndrift list` shows every {self.kind}'}"
            ) from None

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._members

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
            self._origin = "attndrift"
            package = importlib.import_module(self.package)
            for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda found: found.name):
                if not module.name.startswith("_"):
                    importlib.import_module(f"{self.package}.{module.name}")
            for point in importlib.metadata.entry_points(group=self.group):
                self._load_entry_point(point)
            self._loaded = True
        finally:
            self._loading, self._origin = False, ""

    def _load_entry_point(self, point: importlib.metadata.EntryPoint) -> None:
        self._origin = point.dist.name if point.dist is not None else point.value
        try:
            found: Any = point.load()
            if hasattr(found, "name"):
                self.register(found)
        except Exception as error:  # whatever a package of somebody else raises
            warnings.warn(
                f"{self.kind} `{point.name}` of the package {self._origin} is left out: {type(error).__name__}: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
