"""The weights of an image tower that was saved on its own, put into a model: every tensor accounted for."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from attndrift.files import read_json
from attndrift.models.errors import CheckpointError
from attndrift.models.hub import CONFIG, convert_hint, resolve_model
from attndrift.models.shapes import misfit
from attndrift.models.weight_files import WEIGHTS
from attndrift.sanitize import printable

_FUNCTION = ("hidden_act", "layer_norm_eps", "num_attention_heads", "patch_size", "image_size")
"""What a tower computes with besides its weights, as its config states it."""
_OUTER = ("vision_model.",)
"""Under which a tower lies in older files, once or twice."""
_BESIDE = ("classifier.", "visual_projection.", "text_model.", "text_projection.", "logit_scale")
"""What a file may hold beside the tower; it is left out."""


def put_tower(tower: nn.Module, source: str) -> str | None:
    """Put the weights of the image tower called ``source`` into ``tower``, in place; the commit that they are from.

    Raises :class:`~attndrift.models.errors.ModelError` where there is none, and :class:`CheckpointError` where a tensor
    is missing, has no place or another shape, or where the config says that it is another function.
    """
    found, where = resolve_model(source), printable(source)
    if found.weights != [WEIGHTS] or CONFIG not in found.files:
        raise CheckpointError(f"{where}: holds no {WEIGHTS} with its {CONFIG}. {convert_hint(where)}")
    folder = found.fetch([CONFIG, WEIGHTS])
    _check_function(tower, read_json(folder / CONFIG), where)
    copy_tensors(dict(tower.named_parameters()), _tensors(folder / WEIGHTS), where)
    return found.commit


def copy_tensors(
    wanted: Mapping[str, nn.Parameter],
    stored: Iterable[tuple[str, Tensor]],
    where: str,
    *,
    optional: Collection[str] = (),
) -> set[str]:
    """Copy tensors by their places over the parameters of a tower, in place, every tensor accounted for; the places copied.

    Args:
        wanted: the parameters by their places; those in ``optional`` may stay as they are.
        stored: places and tensors. Of ``position_ids`` it is checked that they count up.
        where: the name of the tower in messages.

    Raises :class:`CheckpointError` where a tensor is missing, there twice, has no place or another shape; then nothing is copied.
    """
    found: dict[str, Tensor] = {}
    for place, value in stored:
        if place.endswith("position_ids"):
            if not torch.equal(value.reshape(-1).long(), torch.arange(value.numel())):
                raise CheckpointError(f"{where}: its position_ids do not count up; the positions would be mixed up")
            continue
        if place in found:
            raise CheckpointError(f"{where}: two tensors have one place, {printable(place)}")
        found[place] = value
    missing, strangers = sorted(set(wanted) - set(found) - set(optional)), sorted(set(found) - set(wanted))
    if missing or strangers:
        examples = [f"missing {missing[0]}"] if missing else []
        examples += [f"without a place {printable(strangers[0])}"] if strangers else []
        raise CheckpointError(
            f"{where}: {len(missing)} tensors of the image tower are missing and {len(strangers)} have no place in it "
            f"({', '.join(examples)}); it was fine-tuned from another model"
        )
    wrong = misfit(found, wanted)
    if wrong is not None:
        raise CheckpointError(f"{where}: {wrong}; it was fine-tuned from another model")
    with torch.no_grad():
        for place, value in found.items():
            wanted[place].copy_(value)
    return set(found)


def _tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Those of the tower, by their names in it."""
    try:
        stored = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{printable(path)}: cannot be read: {error}") from error
    for name, value in stored.items():
        place = name
        for prefix in _OUTER * 2:
            place = place.removeprefix(prefix)
        if not place.startswith(_BESIDE):
            yield place, value


def _check_function(tower: nn.Module, config: Any, where: str) -> None:
    own = getattr(tower, "config", None)
    stated = config.get("vision_config", config) if isinstance(config, dict) else {}
    for name in _FUNCTION:
        if own is not None and name in stated and hasattr(own, name) and stated[name] != getattr(own, name):
            raise CheckpointError(
                f"{where}: an image tower with {name} {printable(stated[name])}; `model` has {getattr(own, name)}, so it was "
                "fine-tuned from another model"
            )
