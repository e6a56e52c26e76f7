"""A vision tower as one side of a comparison: put into a copy of BASE, every tensor accounted for."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from attndrift.compare.differences import tower_differences
from attndrift.compare.errors import CompareError
from attndrift.compare.resolved import ResolvedModel
from attndrift.models.backbone import TowerFormat, backbone_of, spec_of
from attndrift.models.errors import CheckpointError
from attndrift.models.shapes import misfit
from attndrift.sanitize import printable

_CLASSIFIER = "classifier."


def tower_on(
    base: ResolvedModel | None, tensors: Iterable[tuple[str, Tensor]], config: Any, source: str
) -> ResolvedModel:
    """A vision tower's weights in a copy of ``base``; its text tower, and mostly its projection, are BASE's.

    Args:
        tensors: of the tower, in any layout that its :class:`~attndrift.models.backbone.TowerFormat` knows, with or without
            its projection; those of a classifier behind it are left out.
        config: the tower's own; what differs from BASE's is an error, as the weights were trained for another function.
        source: the tower's name in messages.
    """
    where = printable(source)
    if base is None:
        raise CompareError(
            f"{where}: a vision tower without text tower and projection; as BASE give the whole model that "
            "it was fine-tuned from. In Python, DriftMonitor(adapted, pixels, reference=base).measure() compares two towers"
        )
    kind = tower_of(base.clip)
    if kind is None or kind.model_type != config.model_type:
        raise CompareError(
            f"{where}: a vision tower of type {config.model_type!r}, and BASE is a {type(base.clip).__name__}; as BASE give "
            "the whole model that it was fine-tuned from"
        )
    clip: Any = copy.deepcopy(base.clip)
    for one in tower_differences(base.config.vision_config, config):
        name = one.setting.rpartition(".")[2]
        if one.counts:
            raise CompareError(
                f"{where}: a vision tower with {name} {one.adapted}; BASE has {one.base}, so it was fine-tuned from another model"
            )
        setattr(clip.config.vision_config, name, getattr(config, name))
    stored: dict[str, Tensor] = {}
    left_out = False
    for name, value in tensors:
        if name.startswith(_CLASSIFIER):
            left_out = True
            continue
        place = kind.place(name)
        if place in stored:
            raise CheckpointError(f"{where}: two tensors have one place, {printable(place)}")
        stored[place] = value
    _put(clip, stored, kind.projection, where)
    side = ResolvedModel(where, "vision tower", clip.eval(), base.image_processor, base.tokenizer)
    parts = "text tower" if kind.projection in stored else "text tower and projection"
    side.notes.append(f"a vision tower put into a copy of BASE: {parts}, tokenizer and image processor are BASE's")
    if left_out:
        side.notes.append(
            "its classifier is left out: the vision towers are compared, and the embeddings go through BASE's projection"
        )
    return side


def tower_of(model: nn.Module) -> TowerFormat | None:
    """How the image tower of models of this class is saved on its own; None where it never is."""
    spec = spec_of(model)
    return None if spec is None or spec.folder is None else spec.folder.tower


def _put(clip: nn.Module, stored: Mapping[str, Tensor], projection: str, where: str) -> None:
    """Copy ``stored`` over the vision parameters of ``clip``, every tensor accounted for, or raise."""
    stored = dict(stored)
    inside = {id(value) for value in backbone_of(clip).tower.parameters()}
    places = {n: p for n, p in clip.named_parameters() if id(p) in inside or n == projection}
    for name in [name for name in stored if name.endswith("position_ids")]:
        positions = stored.pop(name).reshape(-1).long()
        if not torch.equal(positions, torch.arange(len(positions))):
            raise CheckpointError(f"{where}: its position_ids do not count up; the positions would be mixed up")
    missing = sorted(set(places) - set(stored) - {projection})
    strangers = sorted(set(stored) - set(places))
    if missing or strangers:
        examples = [f"missing {missing[0]}"] if missing else []
        examples += [f"without a place {printable(strangers[0])}"] if strangers else []
        raise CheckpointError(
            f"{where}: {len(missing)} tensors of the vision tower are missing and {len(strangers)} have no place in it "
            f"({', '.join(examples)})"
        )
    wrong = misfit(stored, places)
    if wrong is not None:
        raise CheckpointError(f"{where}: {wrong}; the tower was fine-tuned from another model than BASE")
    with torch.no_grad():
        for name, value in stored.items():
            places[name].copy_(value)
