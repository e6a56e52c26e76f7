"""A model in memory as one side of a comparison: a plain copy of the backbone inside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch.nn.utils import parametrize

from attndrift.attention.errors import ObservationError
from attndrift.attention.families import find_vision_tower
from attndrift.compare.errors import CompareError
from attndrift.compare.resolved import ResolvedModel
from attndrift.compare.tower_source import tower_on
from attndrift.models.backbone import BACKBONES, OBSERVED, folder_formats, of_model_type, spec_of
from attndrift.models.computed import copy_without_hooks
from attndrift.models.evaluation import unwrapped
from attndrift.models.load import side_of
from attndrift.models.module_utils import is_a
from attndrift.models.own_layers import Affine, own_layer
from attndrift.models.parameters import adapter_types

M = TypeVar("M", bound=nn.Module)


def from_object(
    model: object, base: ResolvedModel | None, image_processor: Any = None, tokenizer: Any = None
) -> ResolvedModel:
    """The backbone inside ``model``, copied in float32 on the CPU, adapters, parametrizations and layers of one's own merged, hooks left out.

    Args:
        model: a model of a registered backbone, or anything that holds one: a ``peft`` model, a classifier,
            ``DistributedDataParallel``. With ``base``, also what holds CLIP's image tower alone, which is put into a copy of
            ``base``.
        image_processor, tokenizer: its own; by default those of ``base``, else the backbone's own image processor and no
            tokenizer.

    Raises :class:`CompareError` for what holds no backbone, or more than one, and says what can be done with it.
    """
    side = "BASE" if base is None else "ADAPTED"
    if not isinstance(model, nn.Module):
        hint = "give a folder, a name or a torch.nn.Module"
        if isinstance(model, Mapping):
            hint = "load the state dict into its model, and give that"
        raise CompareError(f"{side}: {type(model).__name__} is no model; {hint}")
    source = type(model).__name__
    model = unwrapped(model)
    clips = _backbones(model)
    if len(clips) > 1:
        kinds = " and ".join(dict.fromkeys(f"{type(one).__name__}s" for one in clips))
        raise CompareError(f"{side} ({source}): holds {len(clips)} {kinds}; give the one that is meant")
    if clips:
        found = ResolvedModel(source, "object", _plain(clips[0]), image_processor, tokenizer)
    else:
        tower = _tower(model, side)
        found = tower_on(base, tower.named_parameters(), tower.config, source)
        found.kind, found.image_processor, found.tokenizer = "object", image_processor, tokenizer
    _own_processors(found, base)
    if any(part._forward_hooks or part._forward_pre_hooks for part in model.modules()):
        found.notes.append("forward hooks of the model are left out")
    return found


def _backbones(model: nn.Module) -> list[nn.Module]:
    """The outermost models of registered backbones inside ``model``."""
    found: dict[str, nn.Module] = {}
    for name, part in model.named_modules():
        if spec_of(part) is not None and not any(name.startswith(f"{outer}.") or not outer for outer in found):
            found[name] = part
    return list(found.values())


def _tower(model: nn.Module, side: str) -> nn.Module:
    """The image tower of a model with two inside ``model``, with its projection where it has one; a plain copy."""
    towers = [folder.tower for _, folder in folder_formats() if folder.tower is not None]
    whole = [part for part in model.modules() if is_a(part, *(tower.with_projection for tower in towers))]
    labels = ", ".join(spec.label for spec in BACKBONES)
    refused = f"{side} ({type(model).__name__}): holds no {labels}. {OBSERVED}"
    try:
        _, tower, _ = find_vision_tower(model)
    except ObservationError as error:
        raise CompareError(refused if "more than one" not in str(error) else f"{side}: {error}") from error
    kind = getattr(getattr(tower, "config", None), "model_type", None)
    if kind not in [one.model_type for one in towers]:
        raise CompareError(refused)
    return _plain(whole[0] if len(whole) == 1 else tower)


def _plain(module: M) -> M:
    """A copy whose parameters are what ``module`` computes with, under their plain names."""
    plain = cast(M, copy_without_hooks(module).to("cpu", torch.float32).eval())
    tuners, copies = adapter_types()
    for name, part in list(plain.named_modules()):
        layer: Any = part
        if isinstance(part, tuners):
            if not layer.merged and not layer.disable_adapters:
                layer.merge(safe_merge=True)
            _replace(plain, name, layer.get_base_layer())
        elif isinstance(part, copies):
            active = not layer.disable_adapters and layer.active_adapters
            _replace(plain, name, layer.modules_to_save[active[0]] if active else layer.original_module)
    for part in list(plain.modules()):
        for parameter in list(getattr(part, "parametrizations", ())):
            parametrize.remove_parametrizations(part, parameter, leave_parametrized=True)
        if "_original_forward" in vars(part):
            # What accelerate puts over a forward for mixed precision; this copy is float32.
            part.__dict__.pop("forward", None)
    return _merge_own_layers(plain)


def _merge_own_layers(model: M) -> M:
    """``model`` with plain layers in place of layers of one's own that compute the same."""
    merged: list[str] = []
    for name, part in list(model.named_modules()):
        if any(name.startswith(f"{outer}.") for outer in merged):
            continue
        try:
            asked = own_layer(part, name)
        except ValueError as error:
            raise CompareError(
                f"{error}; a comparison needs plain weights: merge them into those of the model"
            ) from error
        if asked is not None:
            merged.append(name)
            _replace(model, name, _plain_layer(part, asked))
    return model


def _plain_layer(part: nn.Module, asked: Affine) -> nn.Module:
    rows, columns, *kernel = asked.weight.shape
    layer: Any
    if kernel:
        inner: Any = next(one for one in part.modules() if isinstance(one, nn.Conv2d))
        layer = nn.Conv2d(columns, rows, (kernel[0], kernel[1]), stride=inner.stride, bias=asked.bias is not None)
    else:
        layer = nn.Linear(columns, rows, bias=asked.bias is not None)
    layer.load_state_dict({name: value for name, value in asked._asdict().items() if value is not None})
    return cast(nn.Module, layer)


def _replace(model: nn.Module, name: str, part: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, part)


def _own_processors(side: ResolvedModel, base: ResolvedModel | None) -> None:
    """Give ``side`` an image processor where it was given none, and BASE's tokenizer."""
    if base is not None:
        if side.image_processor is None:
            side.image_processor = base.image_processor
            side.notes.append("BASE's image processor is used; image_processor= gives another")
        side.tokenizer = side.tokenizer or base.tokenizer
    elif side.image_processor is None:
        found = None if side.config is None else of_model_type(side.config.model_type)
        if found is None:
            raise CompareError(f"BASE ({side.source}): give its image processor, image_processor=")
        side.image_processor = found[1].make_processor(side.config)[1]
        size = side_of(side.image_processor)
        side.notes.append(
            f"the image processor of {found[0].label} is used, at {size} pixels; image_processor= gives another"
        )
