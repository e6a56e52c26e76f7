"""Loading the vision transformers of timm. What a ``REST`` may be: :mod:`attndrift.models.library_source`."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attndrift.extras import importing
from attndrift.models.backbone import VisionShape
from attndrift.models.errors import ModelError
from attndrift.models.eval_processor import eval_processor
from attndrift.models.hub import CONFIG, resolve_model
from attndrift.models.library_source import (
    LibrarySource,
    find_weights,
    forms,
    put_weights,
    read_config,
    read_weights,
    same_weights_every_time,
)
from attndrift.models.module_utils import is_a
from attndrift.models.weight_files import WEIGHTS
from attndrift.registry import near_match

CLASSES = ("timm.VisionTransformer", "timm.Eva")
_POSSIBLE = (
    "a study trains VisionTransformer and Eva of timm: vit_*, deit_*, eva02_*, vit_pe_core_*, *dinov2*, *dinov3*, "
    "*siglip*, *clip*"
)


def load(rest: str) -> nn.Module:
    """The model without classifier, float32. Raises :class:`ModelError`."""
    source = LibrarySource.parse("timm", rest)
    architecture, arguments, weights = _found(source)
    with same_weights_every_time():
        model = _made(source, architecture, arguments)
    if weights is not None:
        put_weights(source.text, model, _of_the_tower(model, read_weights(source.text, weights)))
    return model.eval()


def build(rest: str) -> nn.Module:
    """The model with any weights."""
    source = LibrarySource.parse("timm", rest)
    architecture, arguments, _ = _found(source)
    return _made(source, architecture, arguments)


def shape(rest: str) -> VisionShape:
    """The sizes of the tower."""
    return shape_of(_on_meta(rest))


def shape_of(model: Any) -> VisionShape:
    """The sizes of a tower of timm."""
    patch = model.patch_embed.patch_size
    mlp = model.blocks[0].mlp
    return VisionShape(
        image_size=model.patch_embed.img_size[0],
        patch_size=patch[0],
        width=model.embed_dim,
        depth=len(model.blocks),
        mlp_width=next(part.out_features for part in mlp.modules() if hasattr(part, "out_features")),
        dimensions=model.num_features,
        prefix_tokens=model.num_prefix_tokens,
    )


def processor(rest: str) -> tuple[None, Any]:
    """No tokenizer, and timm's own evaluation transform as an image processor."""
    from timm.data import resolve_model_data_config  # its import is checked by what makes the model

    model = _on_meta(rest)
    data, text = resolve_model_data_config(model), f"timm:{rest}"
    if data.get("crop_mode") == "border":
        raise ModelError(f"{text}: pads images at their borders (crop_mode), which a study cannot; name another model")
    size = model.patch_embed.img_size[0]
    return None, eval_processor(
        text,
        crop=size,
        resize=math.floor(size / data["crop_pct"]),
        squash=data.get("crop_mode") == "squash",
        mean=data["mean"],
        std=data["std"],
        interpolation=data["interpolation"],
    )


def repository(rest: str) -> str | None:
    """The repository and revision on a hub that the model comes from; None for a model that is here."""
    source = LibrarySource.parse("timm", rest)
    if source.kind == "repository":
        return source.on_hub(source.name)
    return source.on_hub(_repository_of(source)) if source.kind == "name" else None


def _repository_of(source: LibrarySource) -> str:
    timm = _timm()
    try:
        known = timm.get_pretrained_cfg(source.name) if timm.is_model(source.name) else None
    except RuntimeError:  # a tag that it does not have
        known = None
    if known is None and timm.is_model(source.name.partition(".")[0]):
        names = [name.partition(".")[2] for name in timm.list_pretrained(f"{source.name.partition('.')[0]}.*")]
        raise ModelError(f"{source.text}: timm knows no weights of that name; it has {', '.join(names[:6]) or 'none'}")
    if known is None:
        raise _unknown(source, source.name)
    if not known.hf_hub_id:
        raise ModelError(f"{source.text}: timm names no repository with its weights; {forms('timm')}")
    tag = known.tag if "." not in source.name and known.tag else None
    whole = source.name if tag is None else f"{source.name}.{tag}"
    name = str(known.hf_hub_id)
    found = f"{name}{whole}" if name.endswith("/") else name
    return found if source.detail is None else f"{found}@{source.detail}"


def _timm() -> Any:
    with importing("timm", "a model of timm"):
        import timm
    return timm


def _unknown(source: LibrarySource, name: str) -> ModelError:
    near = near_match(name, _timm().list_models())
    return ModelError(f"{source.text}: timm has no architecture `{name}`{near or f'; {_POSSIBLE}'}")


def _found(source: LibrarySource) -> tuple[str, dict[str, Any], Path | None]:
    """Architecture, arguments for it, and the file of weights (None for random ones)."""
    if source.kind == "file":
        return source.name, {}, Path(str(source.detail))
    if source.kind == "config":
        path = Path(source.name)
        return (*_of_config(source, path), None) if path.is_file() else (source.name, {}, None)
    if source.kind == "folder":
        folder = Path(source.name)
        return *_of_config(source, folder / CONFIG), find_weights(source.text, folder, WEIGHTS)
    model = resolve_model(source.text)
    if CONFIG not in model.files or not model.weights:
        raise ModelError(
            f"{source.text}: the repository {model.location} holds no {CONFIG} with {WEIGHTS}; pickled weights can run code "
            f"when they are read, so they are refused; {forms('timm')}"
        )
    folder = model.fetch([CONFIG, *model.weights])
    return *_of_config(source, folder / CONFIG), find_weights(source.text, folder, WEIGHTS)


def _of_config(source: LibrarySource, path: Path) -> tuple[str, dict[str, Any]]:
    content = read_config(source.text, path, "architecture")
    # The form in which timm publishes: what differs from the architecture, and how images are prepared.
    arguments = dict(content.get("model_args") or {})
    if isinstance(content.get("pretrained_cfg"), dict):
        known = ("input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std")
        arguments["pretrained_cfg_overlay"] = {
            name: content["pretrained_cfg"][name] for name in known if name in content["pretrained_cfg"]
        }
    return str(content["architecture"]), arguments


def _made(source: LibrarySource, architecture: str, arguments: dict[str, Any]) -> Any:
    timm = _timm()
    if not timm.is_model(architecture):
        raise _unknown(source, architecture)
    try:
        model = timm.create_model(architecture, pretrained=False, **{**arguments, "num_classes": 0})
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:
        raise ModelError(f"{source.text}: timm cannot make `{architecture}`: {error}") from error
    why = refused(model)
    if why is not None:
        raise ModelError(f"{source.text}: {why}; {_POSSIBLE}")
    call_every_layer(model)
    return model


def call_every_layer(model: nn.Module) -> None:
    """Let Eva call the layer of queries, keys and values: else it multiplies with the weight itself, past any adapter.

    What it computes is the same up to rounding.
    """
    for part in model.modules():
        if is_a(part, "timm.EvaAttention"):
            part.qkv_bias_separate = True  # type: ignore[assignment]


def refused(model: Any) -> str | None:
    """Why a study cannot train a model; None for one that it can."""
    name = type(model).__name__
    if not is_a(model, *CLASSES):
        return f"`{name}` of timm is no vision transformer of a known kind"
    if getattr(model, "attn_pool", None) is None and not model.global_pool:
        return f"this `{name}` pools nothing (global_pool), so no part of it has the name of an image embedding"
    block = model.blocks[0]
    if not is_a(getattr(block, "attn", None), "timm.Attention", "timm.EvaAttention", "timm.AttentionRope"):
        return f"the blocks of this `{name}` ({type(block).__name__}) hold no attention that can be observed"
    height, width = model.patch_embed.img_size
    return None if height == width else f"its images are {height} x {width} pixels, and a study takes square ones"


def _of_the_tower(model: Any, stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without a classifier, under the names of the tower, as timm itself renames those that were published."""
    held = {name for name in stored if name in model.state_dict()}
    if not held:
        convert = getattr(importlib.import_module(type(model).__module__), "checkpoint_filter_fn", None)
        try:
            stored = stored if convert is None else convert(stored, model)
        except (KeyError, RuntimeError, AttributeError):  # of nothing that timm knows, which is said of the names
            return stored
    heads = ("head.", "head_dist.")
    return {name: value for name, value in stored.items() if not name.startswith(heads)}


def _on_meta(rest: str) -> Any:
    with torch.device("meta"):
        return build(rest)
