"""How a model is named: ``embedded``, ``config:NAME``, ``BACKBONE:REST``, a folder, or
``NAME`` and ``NAME@REVISION`` on a hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from attndrift.models.backbone import scheme_of
from attndrift.models.errors import ModelError

CONFIG_PREFIX = "config:"
"""What a model's name begins with that is made from a config, with random weights."""
_AT_COMMIT = re.compile(r"@[0-9a-f]{40}$")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class ModelReference:
    """A model of a hub as a person names it: ``NAME`` or ``NAME@REVISION``."""

    name: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises :class:`ModelError` for what cannot be the name of a model on a hub."""
        name, at, revision = text.partition("@")
        if not _REPOSITORY.fullmatch(name):
            raise ModelError(
                f"{text}: not a folder here, and no hub name has this form; "
                "a model is NAME, NAME@REVISION or a folder that is there"
            )
        if at and not re.fullmatch(r"[\w./-]+", revision):
            raise ModelError(f"{text}: after the @ there must be a revision: a commit, branch or tag")
        return cls(name, revision or None)

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name}@{self.revision}"


def is_on_hub(source: str | Path) -> bool:
    """Whether ``source`` names a model of a hub, and not a folder, ``embedded``, a config or what a backbone makes.

    Raises :class:`ModelError` for a library's name of a model that the library does not know.
    """
    text = str(source)
    if text == "embedded" or text.startswith(CONFIG_PREFIX):
        return False
    scheme = scheme_of(text)
    if scheme is not None:
        return scheme[0].repository is not None and scheme[0].repository(scheme[1]) is not None
    return not Path(text).exists()


def at_commit(source: str, commit: str | None) -> str:
    """``source`` with ``commit`` as its revision; unchanged without one."""
    return source if commit is None else f"{without_commit(source)}@{commit}"


def without_commit(source: str) -> str:
    """``source`` without the revision that it may name; of a library's model without a commit, which stands last."""
    return ModelReference.parse(source).name if scheme_of(source) is None else _AT_COMMIT.sub("", source)
