"""A vision tower as one side of a comparison: put into a copy of BASE, every tensor accounted for."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from attndrift.compare.differences import tower_differences
from attndrift.compare.errors import CompareError
from attndrift.compare.resolved import ResolvedModel
from attndrift.models.backbone import TowerFormat, backbone_of, spec_of
from attndrift.models.tower_weights import copy_tensors
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
    kind = tower_of(base.model)
    if kind is None or kind.model_type != config.model_type:
        raise CompareError(
            f"{where}: a vision tower of type {config.model_type!r}, and BASE is a {type(base.model).__name__}; as BASE give "
            "the whole model that it was fine-tuned from"
        )
    model: Any = copy.deepcopy(base.model)
    for one in tower_differences(base.config.vision_config, config):
        name = one.setting.rpartition(".")[2]
        if one.counts:
            raise CompareError(
                f"{where}: a vision tower with {name} {one.adapted}; BASE has {one.base}, so it was fine-tuned from another model"
            )
        setattr(model.config.vision_config, name, getattr(config, name))
    stored = list(tensors)
    own = [(kind.place(name), value) for name, value in stored if not name.startswith(_CLASSIFIER)]
    inside = {id(value) for value in backbone_of(model).tower.parameters()}
    places = {n: p for n, p in model.named_parameters() if id(p) in inside or n == kind.projection}
    copied = copy_tensors(places, own, where, optional={kind.projection})
    side = ResolvedModel(where, "vision tower", model.eval(), base.image_processor, base.tokenizer)
    parts = "text tower" if kind.projection in copied else "text tower and projection"
    side.notes.append(f"a vision tower put into a copy of BASE: {parts}, tokenizer and image processor are BASE's")
    if len(own) < len(stored):
        side.notes.append(
            "its classifier is left out: the vision towers are compared, and the embeddings go through BASE's projection"
        )
    return side


def tower_of(model: nn.Module) -> TowerFormat | None:
    """How the image tower of models of this class is saved on its own; None where it never is."""
    spec = spec_of(model)
    return None if spec is None or spec.folder is None else spec.folder.tower
