"""Whether adapters are where they should be, and do what their file says.

``peft`` warns where the keys of a file do not match and goes on with adapters that do nothing
(keys of transformers 4, of a bare image tower, of a wrapped model); here each is an error.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from attndrift.models.backbone import find_backbone
from attndrift.models.errors import CheckpointError
from attndrift.models.shapes import misfit

ADAPTER_WEIGHTS = "adapter_model.safetensors"


def _adapted_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The layers of ``model`` that ``peft`` has put adapters of any kind around, by name."""
    if "peft" not in sys.modules:  # without it there is none, and importing it takes a second
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in model.named_modules():
        if isinstance(layer, BaseTunerLayer):
            yield name, layer


def _parts(layer: Any) -> dict[str, Any]:
    """What holds the adapters of a layer, by the name of its attribute; each is a mapping from adapters' names."""
    parts = {name: getattr(layer, name, None) for name in layer.adapter_layer_names}
    return {name: part for name, part in parts.items() if isinstance(part, (nn.ModuleDict, nn.ParameterDict))}


def adapter_names(model: nn.Module) -> list[str]:
    """Names of the parameters of all adapters in ``model``."""
    return [
        f"{where}.{part}.{name}"
        for where, layer in _adapted_layers(model)
        for part, held in _parts(layer).items()
        for name, _ in held.named_parameters()
    ]


def check_adapter_places(model: nn.Module, *, text_tower: bool | None = False) -> None:
    """Raise ``ValueError`` unless adapters sit in the image tower or its projection, and nowhere else.

    ``text_tower``: they may sit in the text tower and its projection too; None: in either, and nothing is checked.
    """
    if text_tower is None:
        return
    backbone = find_backbone(model)
    # Of no registered backbone: an image tower on its own.
    halves = [model] if backbone is None else [backbone.tower, backbone.projection]
    inside = {part for half in halves if half is not None for part in half.modules()}
    layers = list(_adapted_layers(model))
    outside = [name for name, layer in layers if layer not in inside]
    if len(outside) == len(layers) and (text_tower or not layers):
        raise ValueError("no adapter was placed in the image tower: none of its modules matches the targets")
    if outside and not text_tower:
        assert backbone is not None
        places = {part: name for name, part in backbone.model.named_modules()}
        raise ValueError(
            f"{len(outside)} layers with adapters sit outside the image tower and its projection, for instance "
            f"{outside[0]}; give target modules as a pattern that names {places[backbone.tower]}"
        )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``safetensors`` file. Raises :class:`CheckpointError` naming the file."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error


def same_names(stored: set[str], wanted: set[str], where: Path) -> None:
    """Raise :class:`CheckpointError` unless a file holds exactly the tensors that a model wants."""
    if stored == wanted:
        return
    missing, unexpected = sorted(wanted - stored), sorted(stored - wanted)
    parts = [f"missing {missing[0]}"] if missing else []
    parts += [f"unexpected {unexpected[0]}"] if unexpected else []
    raise CheckpointError(
        f"{where}: {len(missing)} tensors are missing and {len(unexpected)} have no place in the model "
        f"({', '.join(parts)})"
    )


def _stored(path: Path, names: Mapping[str, str] | None) -> dict[str, Tensor]:
    """The tensors of an adapter's file, under the names that the model has for them."""
    stored = read_tensors(path)
    if names is None:
        return stored
    renamed = {names.get(name, name): value for name, value in stored.items()}
    if len(renamed) != len(stored):
        raise CheckpointError(f"{path}: two of its tensors have one place in the model")
    return renamed


def load_adapter(
    peft_model: nn.Module,
    folder: Path,
    *,
    names: Mapping[str, str] | None = None,
    text_tower: bool | None = False,
    allow_zero: bool = True,
) -> None:
    """Put the adapter in ``folder`` into ``peft_model``, every tensor or none.

    Args:
        names: the file's name of a tensor to the model's, where the file was saved from another layout.
        text_tower: adapters in the text tower are allowed too; None: also there alone.
        allow_zero: an adapter that changes nothing is allowed.

    Raises :class:`CheckpointError` for a missing tensor, one without a place, one of another shape, and
    (unless ``text_tower``) one in the text tower.
    """
    # Who has such a model has peft; whoever has none does not need it.
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    path = Path(folder) / ADAPTER_WEIGHTS
    stored = _stored(path, names)
    wanted = get_peft_model_state_dict(peft_model, save_embedding_layers=False)
    same_names(set(stored), set(wanted), path)
    wrong = misfit(stored, wanted)
    if wrong is not None:
        raise CheckpointError(
            f"{path}: {wrong}. Give the settings, and the base model, that the adapter was saved with"
        )
    set_peft_model_state_dict(peft_model, stored)
    check_adapters_loaded(peft_model, folder, allow_zero=allow_zero, names=names, text_tower=text_tower)


def check_adapters_loaded(
    model: nn.Module,
    folder: str | Path,
    *,
    adapter: str = "default",
    allow_zero: bool = False,
    names: Mapping[str, str] | None = None,
    text_tower: bool | None = False,
) -> None:
    """Raise :class:`CheckpointError` unless the adapter in ``folder`` is in ``model`` and takes part.

    That is: the file and the model hold the same tensors under the same names, value for value; none
    sits in the text tower; the adapter is active, not disabled and (unless ``allow_zero``) not zero.

    Args:
        model: a ``peft`` model, for instance from ``PeftModel.from_pretrained``, not merged.
        folder: holds ``adapter_model.safetensors``.
        adapter: its name in ``model``.
        names, text_tower: see :func:`load_adapter`.
    """
    path = Path(folder) / ADAPTER_WEIGHTS
    stored = _stored(path, names)
    if adapter not in getattr(model, "peft_config", {}):
        raise CheckpointError(
            f"{path}: the model ({type(model).__name__}) carries no adapter {adapter!r}: it is the pretrained one. "
            "Load adapters with PeftModel.from_pretrained, not with load_state_dict(strict=False)"
        )
    try:
        check_adapter_places(model, text_tower=text_tower)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    from peft import get_peft_model_state_dict  # as above

    held = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    same_names(set(stored), set(held), path)
    for name, value in stored.items():
        now = held[name].detach().cpu()
        if value.shape != now.shape or not torch.equal(value.to(now.dtype), now):
            raise CheckpointError(f"{path}: {name} in the model is not the tensor in the file: it did not load")
    for name, layer in _adapted_layers(model):
        holds = any(adapter in part for part in _parts(layer).values())
        if holds and (layer.disable_adapters or adapter not in layer.active_adapters):
            raise CheckpointError(f"{path}: the adapter {adapter!r} in {name} is not active")
    low_rank = [value for name, value in stored.items() if "lora_B" in name]
    if not allow_zero and low_rank and not any(bool(value.any()) for value in low_rank):
        raise CheckpointError(f"{path}: every lora_B is zero: the adapter changes nothing")
