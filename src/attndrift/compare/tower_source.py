"""A vision tower as one side of a comparison: put into a copy of BASE, every tensor accounted for."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from transformers import CLIPModel, CLIPVisionConfig

from attndrift.compare.differences import tower_differences
from attndrift.compare.errors import CompareError
from attndrift.compare.resolved import ResolvedModel
from attndrift.models.errors import CheckpointError
from attndrift.models.shapes import misfit
from attndrift.sanitize import printable

_TOWER_PARTS = ("embeddings.", "encoder.", "post_layernorm.", "pre_layrnorm.")
_CLASSIFIER = "classifier."
_PROJECTION = "visual_projection.weight"


def tower_on(
    base: ResolvedModel | None, tensors: Iterable[tuple[str, Tensor]], config: CLIPVisionConfig, source: str
) -> ResolvedModel:
    """A vision tower's weights in a copy of ``base``; its text tower, and mostly its projection, are BASE's.

    Args:
        tensors: of the tower, in either layout of ``CLIPVisionModel``, with or without its projection; those of a
            classifier behind it are left out.
        config: the tower's own; what differs from BASE's is an error, as the weights were trained for another function.
        source: the tower's name in messages.
    """
    where = printable(source)
    if base is None:
        raise CompareError(
            f"{where}: a vision tower without text tower and projection; as BASE give the whole CLIPModel that "
            "it was fine-tuned from. In Python, DriftMonitor(adapted, pixels, reference=base).measure() compares two towers"
        )
    clip = copy.deepcopy(base.clip)
    for one in tower_differences(base.clip.config.vision_config, config):
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
        place = tower_place(name)
        if place in stored:
            raise CheckpointError(f"{where}: two tensors have one place, {printable(place)}")
        stored[place] = value
    _put(clip, stored, where)
    side = ResolvedModel(where, "vision tower", clip.eval(), base.image_processor, base.tokenizer)
    parts = "text tower" if _PROJECTION in stored else "text tower and projection"
    side.notes.append(f"a vision tower put into a copy of BASE: {parts}, tokenizer and image processor are BASE's")
    if left_out:
        side.notes.append(
            "its classifier is left out: the vision towers are compared, and the embeddings go through BASE's projection"
        )
    return side


def tower_place(name: str) -> str:
    """Where a tower's tensor belongs in a CLIPModel, from either layout of ``CLIPVisionModel``.

    Up to version 4 of ``transformers`` the tower lay under ``vision_model.``; since 5 it is flattened.
    """
    if name.startswith(_TOWER_PARTS):
        return f"vision_model.{name}"
    return name.removeprefix("vision_model.") if name.startswith("vision_model.vision_model.") else name


def _put(clip: CLIPModel, stored: Mapping[str, Tensor], where: str) -> None:
    """Copy ``stored`` over the vision parameters of ``clip``, every tensor accounted for, or raise."""
    stored = dict(stored)
    places = {n: p for n, p in clip.named_parameters() if n.startswith("vision_model.") or n == _PROJECTION}
    positions = stored.pop("vision_model.embeddings.position_ids", None)
    held = clip.vision_model.embeddings.position_ids
    if positions is not None and not torch.equal(positions.reshape(-1).long(), held.reshape(-1).long()):
        raise CheckpointError(f"{where}: its position_ids do not count up; the positions would be mixed up")
    missing = sorted(set(places) - set(stored) - {_PROJECTION})
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
