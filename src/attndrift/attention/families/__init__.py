"""The transformers that can be observed, one entry a family, and finding one inside a model.

To add a family, describe in one :class:`Family` how its tower is recognised, where its attention modules
are, which of their submodules put out queries and keys, and whose attention counts, and register it
(``FAMILIES.register``; text encoders: ``TEXT_FAMILIES``). Nothing else has to change: the observer works from the entry
alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import nn

from attndrift.attention.errors import ObservationError
from attndrift.attention.families.family import (
    FAMILIES,
    TEXT_FAMILIES,
    Block,
    Family,
    Found,
    MeanOfPatches,
    Pool,
    Query,
    Tap,
)
from attndrift.models.module_utils import is_a, named_modules
from attndrift.registry import Registry

__all__ = [
    "FAMILIES",
    "TEXT_FAMILIES",
    "Block",
    "Family",
    "Found",
    "MeanOfPatches",
    "Pool",
    "Query",
    "Tap",
    "VisionTower",
    "find_tower",
    "find_vision_tower",
]

_REFUSED = {
    "timm.NaFlexVit": "packs images of many sizes, whose attention has no common patches",
    "timm.Beit": "adds a relative position bias inside its attention, where it cannot be seen; BEiT of transformers can be",
    "torchvision.VisionTransformer": "is not one of the families; load the weights into ViT of transformers or timm",
    "SwinTransformer": "attends inside windows, so no token looks at all patches",
    "SwinModel": "attends inside windows, so no token looks at all patches",
    "Swinv2Model": "attends inside windows, so no token looks at all patches",
}
"""Transformers that are met often and cannot be observed, with the reason."""


class VisionTower(NamedTuple):
    """A transformer inside a model: its family, the module, and its path ("" for the model itself)."""

    family: Family
    module: nn.Module
    name: str


def _towers(
    model: nn.Module, families: Registry[Family], modules: Mapping[nn.Module, str] | None = None
) -> list[VisionTower]:
    if not isinstance(model, nn.Module):
        raise ObservationError(f"expected a torch.nn.Module to observe, got {type(model).__name__}")
    found: list[VisionTower] = []
    # By class: every observation asks all modules of a model, which are of a few classes.
    candidates: dict[type, list[Family]] = {}
    for module, name in (named_modules(model) if modules is None else modules).items():
        kind = type(module)
        if kind not in candidates:
            candidates[kind] = [family for family in families if is_a(module, *family.classes)]
        family = next((family for family in candidates[kind] if family.recognises(module)), None)
        if family is not None:
            found.append(VisionTower(family, module, name))
    return found


def _only(model: nn.Module, found: list[VisionTower], kind: str) -> VisionTower:
    if len(found) > 1:
        names = ", ".join(f"`{tower.name}` ({type(tower.module).__name__})" for tower in found)
        raise ObservationError(
            f"{type(model).__name__} holds {len(found)} {kind}s: {names}; pass the submodule that is meant"
        )
    tower = found[0]
    reason = tower.family.refuses(tower.module)
    if reason is not None:
        where = f"`{tower.name}` of {type(model).__name__}" if tower.name else type(model).__name__
        raise ObservationError(f"{where} cannot be observed: {reason}")
    return tower


def find_vision_tower(model: nn.Module, modules: Mapping[nn.Module, str] | None = None) -> VisionTower:
    """The single vision transformer inside ``model``.

    Looks through wrappers (peft, DataParallel-like modules, a classifier of one's own) and passes text
    towers over. Unpacks as ``family, module, name``. ``modules``: the model's, where somebody has them
    (:func:`~attndrift.models.module_utils.named_modules`).

    Raises:
        ObservationError: no vision transformer of a known family, or more than one.
    """
    found = _towers(model, FAMILIES, modules)
    if found:
        return _only(model, found, "vision transformer")
    known = "; ".join(family.models for family in FAMILIES)
    reasons = "".join(
        f". Its `{name or type(module).__name__}` {reason}"
        for name, module in model.named_modules()
        for refused, reason in _REFUSED.items()
        if is_a(module, refused)
    )
    texts = _towers(model, TEXT_FAMILIES)
    if len(texts) == 1:
        queries = ", ".join(f"`{query}`" for query in texts[0].family.queries_of(texts[0].module))
        reasons += f". Its text encoder can be observed where the query is named: {queries}, or the index of a token"
    raise ObservationError(
        f"{type(model).__name__} holds no vision transformer that can be observed; those that can be are: {known}"
        + reasons
    )


def find_tower(model: nn.Module, query: str | int | None) -> VisionTower:
    """The tower that :func:`attndrift.observe` looks at.

    That is the vision transformer inside ``model``; where there is none and a query is named, its only text
    encoder.

    Raises:
        ObservationError: neither of them, or more than one.
    """
    if query is not None and isinstance(model, nn.Module) and not _towers(model, FAMILIES):
        found = _towers(model, TEXT_FAMILIES)
        if found:
            return _only(model, found, "text encoder")
    return find_vision_tower(model)
