"""Which splits train and which are held out, by their names: ``train``, ``Training``, ``TEST``, ``dev``, ``test2017``."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Protocol

from attndrift.data.errors import DataError, some

_TRAIN = ("train", "training")
# The first that is there is taken.
_HELD_OUT = (
    *("test", "testing", "validation", "valid", "val", "dev", "development", "eval", "evaluation"),
    *("holdout", "heldout"),
)
_UNUSED = ("unlabeled", "unlabelled", "extra")
_ENDING = re.compile(r"([\W_]*(set|split))?[\W_]*\d*$")


class _Asked(Protocol):
    """As much of a dataset's description as decides its splits."""

    @property
    def name(self) -> str: ...
    @property
    def train_split(self) -> str | None: ...
    @property
    def test_split(self) -> str | None: ...


def _word(name: str) -> str:
    """The usual word in a split's name, without its case, an ending as ``_set`` or ``2017``, and hyphens."""
    return re.sub(r"[\W_]", "", _ENDING.sub("", name.casefold()))


def is_split_name(name: str) -> bool:
    """Whether ``name`` is a usual name of a split, in any case, and so not one of a class."""
    return _word(name) in (*_TRAIN, *_HELD_OUT, *_UNUSED)


def _usual(names: Collection[str], words: Sequence[str], setting: str, where: str) -> str | None:
    for word in words:
        found = [word] if word in names else [name for name in names if _word(name) == word]
        if len(found) > 1:
            raise DataError(f"{where}: {some(found)} may all be meant as `{setting}`. Name one of them")
        if found:
            return found[0]
    return None


def chosen_splits(spec: _Asked, names: Collection[str]) -> tuple[str, str | None]:
    """The splits of ``names`` that train and that are held out (None where there is none): those asked for, else the usual.

    They are one where nothing else is left to take, or where that was asked for; :func:`make_splits` refuses it.
    Raises :class:`DataError` where one that was asked for, or one to train on, is not there, and where several have the
    usual name.
    """
    train = spec.train_split or _usual(names, _TRAIN, "train_split", spec.name)
    # A set to evaluate on has nothing to train on.
    held_out = _usual(names, _HELD_OUT, "test_split", spec.name) if len(names) == 1 else None
    train = train or held_out or "train"
    test = spec.test_split
    for left in ([name for name in names if name != train], [train]):
        test = test or _usual(left, _HELD_OUT, "test_split", spec.name)
    for setting, name in (("train_split", train), ("test_split", test)):
        if name is not None and name not in names:
            raise DataError(f"{spec.name}: no split `{name}` ({setting}). The splits are {', '.join(names)}")
    return train, test
