"""Which layers adapters go into: names of layers or of their roles, as settings give them, and the modules they mean."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any

from pydantic import AfterValidator

ROLES = ("q", "k", "v", "out", "fc1", "fc2", "projection")
"""The usual order of names; any other layer of a block has its own name, and comes behind these."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _place(name: str) -> tuple[int, str]:
    return (ROLES.index(name) if name in ROLES else len(ROLES)), name


def in_order(names: Iterable[str]) -> str:
    """Names of layers in one spelling.

    >>> in_order(["v", "q", "fc1"])
    'q,v,fc1'
    """
    return ",".join(sorted(set(names), key=_place))


def target_names(text: str) -> list[str]:
    """``q,v`` as its names. Raises ``ValueError`` for text that is no list of names.

    >>> target_names("q, v")
    ['q', 'v']
    """
    names = [name.strip() for name in text.split(",")]
    wrong = next((name for name in names if not _NAME.fullmatch(name)), None)
    if wrong is not None:
        raise ValueError(f"{wrong!r} is no name of a layer; give names such as q,k,v,out,fc1,fc2, joined by commas")
    if len(set(names)) < len(names):
        raise ValueError("names a layer twice")
    return names


def by_layer(text: str) -> dict[str, int]:
    """``out=16,fc1=4`` as numbers by name. Raises ``ValueError`` for any other text.

    >>> by_layer("out=16,fc1=4")
    {'out': 16, 'fc1': 4}
    """
    found: dict[str, int] = {}
    for part in text.split(","):
        name, _, number = (word.strip() for word in part.partition("="))
        if not _NAME.fullmatch(name) or not re.fullmatch(r"[1-9][0-9]{0,3}", number) or name in found:
            raise ValueError(f"{part.strip()!r} is not NAME=NUMBER; give numbers by layer, such as out=16,fc1=4")
        found[name] = int(number)
    return found


def spelled_by_layer(text: str | None) -> str | None:
    """The same text in one spelling."""
    return None if text is None else ",".join(f"{name}={number}" for name, number in sorted(by_layer(text).items()))


Targets = Annotated[str, AfterValidator(lambda text: in_order(target_names(text)))]
"""Of a setting that names layers; in one spelling."""

ByLayer = Annotated[str | None, AfterValidator(spelled_by_layer)]
"""Of a setting with numbers by layer; in one spelling."""


def layers_named(
    backbone: Any, names: Sequence[str], *, setting: str, blocks: int | None = None
) -> dict[str, list[str]]:
    """The full names of the linear layers that each of ``names`` means, in the image tower.

    Args:
        backbone: a :class:`~attndrift.models.backbone.Backbone`.
        names: roles (``q``, ``k``, ``v``, ``out``) or names of layers in a block, or ``projection``.
        setting: the setting that gave them, for messages.
        blocks: only those of the last so many blocks, and the projection; None for all.

    Raises ``ValueError`` naming the setting where the backbone has no such layer, or fewer blocks.
    """
    depth = len(backbone.blocks)
    if blocks is not None and not 1 <= blocks <= depth:
        raise ValueError(f"{setting}: the last {blocks} blocks are asked for; the model has {depth}")
    places = {part: name for name, part in backbone.model.named_modules()}
    chosen = {part: places[part] for block in backbone.blocks[-(blocks or depth) :] for part in block.modules()}
    found: dict[str, list[str]] = {}
    for name in names:
        try:
            found[name] = _places(backbone, name, chosen, places)
        except ValueError as error:
            raise ValueError(f"{setting}: {type(backbone.model).__name__}: {error}") from None
        if not found[name]:
            inside = {place.rpartition(".")[2] for part, place in chosen.items() if _linear(part)}
            raise ValueError(
                f"{setting}: {type(backbone.model).__name__} has no layer {name!r} in its image tower for an adapter; the "
                f"linear layers of its blocks are {', '.join(_possible(backbone, sorted(inside), chosen, places))}"
            )
    return found


def _places(backbone: Any, name: str, chosen: Mapping[Any, str], places: Mapping[Any, str]) -> list[str]:
    """Full names of the layers that ``name`` means. Raises ``ValueError`` for those that no adapter goes into."""
    if name == "projection":
        return [] if backbone.projection is None else [places[p] for p in backbone.projection.modules() if _linear(p)]
    pattern = re.compile(backbone.adapter_pattern([name]))
    return [place for part, place in chosen.items() if _linear(part) and pattern.fullmatch(place)]


def _possible(backbone: Any, inside: list[str], chosen: Mapping[Any, str], places: Mapping[Any, str]) -> list[str]:
    """Of the layers ``inside`` and the roles, those that adapters go into."""
    found = []
    for name in (*inside, *ROLES[:4]):
        with suppress(ValueError):
            found += [name] if _places(backbone, name, chosen, places) else []
    return found


def _linear(part: Any) -> bool:
    return getattr(part, "in_features", None) is not None and getattr(part, "out_features", None) is not None


def exactly(layers: Mapping[str, Sequence[str]]) -> str:
    """A regular expression for ``peft`` that matches these layers' whole names and no others."""
    return "|".join(re.escape(place) for places in layers.values() for place in places)
