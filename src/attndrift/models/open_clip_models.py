"""Loading the models of open_clip. What a ``REST`` may be: :mod:`attndrift.models.library_source`."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig

from attndrift.extras import importing
from attndrift.models import timm_models
from attndrift.models.backbone import VisionShape
from attndrift.models.errors import ModelError
from attndrift.models.eval_processor import eval_processor
from attndrift.models.from_config import character_tokenizer
from attndrift.models.hub import ModelLocation, find_files, resolve_model
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
from attndrift.registry import near_match

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")
_TOKENIZER = (".json", ".txt", ".model")
_WORDS = 49408
"""Tokens of CLIP's own vocabulary, which comes with open_clip."""
_PREPROCESSING = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
_POSSIBLE = "a study trains CLIP and SigLIP of open_clip whose image tower is a vision transformer, its own or timm's"


@dataclass(frozen=True)
class _Found:
    """``model`` are the arguments of open_clip's class; ``weights`` and ``tokenizer`` None for random ones and CLIP's own."""

    model: dict[str, Any]
    preprocessing: dict[str, Any]
    weights: Path | None = None
    tokenizer: Path | None = None


def load(rest: str) -> nn.Module:
    """The model, float32, with its text tower as a module of its own. Raises :class:`ModelError`."""
    source = LibrarySource.parse("open_clip", rest)
    found = _found(source, "weights")
    with same_weights_every_time():
        model = _made(source, found.model)
    if found.weights is not None:
        put_weights(source.text, model, _renamed(model, read_weights(source.text, found.weights)))
    return model.eval()


def build(rest: str) -> nn.Module:
    """The model with any weights."""
    source = LibrarySource.parse("open_clip", rest)
    made: nn.Module = _made(source, _found(source, "config").model)
    return made


def shape(rest: str) -> VisionShape:
    """The sizes of the image tower."""
    with torch.device("meta"):
        model: Any = build(rest)
    visual = model.visual
    dimensions = int(model.text.output_dim)
    if is_a(visual, "open_clip.TimmModel"):
        sizes = timm_models.shape_of(visual.trunk)
        return VisionShape(
            sizes.image_size, sizes.patch_size, sizes.width, sizes.depth, sizes.mlp_width, dimensions,
            sizes.prefix_tokens,
        )  # fmt: skip
    blocks = visual.transformer.resblocks
    return VisionShape(
        visual.image_size[0], visual.patch_size[0], visual.conv1.out_channels, len(blocks),
        blocks[0].mlp.c_fc.out_features, dimensions,
    )  # fmt: skip


def processor(rest: str) -> tuple[Any, Any]:
    """open_clip's tokenizer of the model, and its evaluation transform as an image processor."""
    source = LibrarySource.parse("open_clip", rest)
    found = _found(source, "tokenizer")
    used = _PREPROCESSING | {name: value for name, value in found.preprocessing.items() if value is not None}
    if used["resize_mode"] not in ("shortest", "squash"):
        raise ModelError(
            f"{source.text}: pads images at their borders (resize_mode: {used['resize_mode']}), which a study cannot; "
            "name a model with shortest or squash"
        )
    size = found.model["vision_cfg"].get("image_size", 224)
    image_processor = eval_processor(
        source.text,
        crop=size if isinstance(size, int) else size[0],
        squash=used["resize_mode"] == "squash",
        mean=_three(used["mean"]),
        std=_three(used["std"]),
        interpolation=used["interpolation"],
    )
    return _tokenizer(source, found), image_processor


def _three(value: Any) -> list[float]:
    return [value] * 3 if isinstance(value, (int, float)) else list(value)


def repository(rest: str) -> str | None:
    """The repository and revision on a hub that the model comes from; None for a model that is here."""
    source = LibrarySource.parse("open_clip", rest)
    if source.kind == "repository":
        return source.on_hub(source.name)
    return source.on_hub(_repository_of(source)) if source.kind == "name" else None


def _repository_of(source: LibrarySource) -> str:
    open_clip = _open_clip()
    refused = _refused_config(_arguments_of(source, source.name))
    if refused is not None:
        raise ModelError(f"{source.text}: {refused}; {_POSSIBLE}")
    tags = open_clip.list_pretrained_tags_by_model(source.name)
    if source.detail not in tags:
        asked = f"knows no weights `{source.detail}` of it" if source.detail else "is named without weights"
        known = f"open_clip:{source.name}@TAG with one of {', '.join(tags[:6])}; or " if tags else ""
        raise ModelError(f"{source.text}: {asked}; {known}{forms('open_clip')}")
    name = str(open_clip.get_pretrained_cfg(source.name, source.detail).get("hf_hub") or "")
    parts = name.split("/")
    if len(parts) < 2:
        raise ModelError(
            f"{source.text}: these weights are at an address and in no repository, pickled; {forms('open_clip')}"
        )
    return "/".join(parts[:2])


def _open_clip() -> Any:
    with importing("open-clip", "a model of open_clip"):
        import open_clip
    return open_clip


def _found(source: LibrarySource, files: Literal["config", "weights", "tokenizer"]) -> _Found:
    """Config and preprocessing, and the ``files`` that are asked for: no others are downloaded."""
    _open_clip()
    if source.kind == "config":
        path = Path(source.name)
        if path.is_file():
            return _Found(*_of_config(source, path))
        return _Found(_arguments_of(source, source.name), _preprocessing_of(source, source.name))
    if source.kind == "file":
        arguments = _arguments_of(source, source.name)
        named = arguments["text_cfg"].get("hf_tokenizer_name")
        tokenizer = _tokenizer_files(find_files(named)) if named and files == "tokenizer" else None
        return _Found(arguments, _preprocessing_of(source, source.name), Path(str(source.detail)), tokenizer)
    if source.kind == "folder":
        folder = Path(source.name)
    else:
        model = resolve_model(source.text)
        if CONFIG not in model.files:
            raise ModelError(f"{source.text}: the repository {model.location} holds no {CONFIG}; {forms('open_clip')}")
        folder = model.fetch([CONFIG, *(_weights_in(source, model.files) if files == "weights" else ())])
        if files == "tokenizer":
            _tokenizer_files(model)
    arguments, preprocessing = _of_config(source, folder / CONFIG)
    return _Found(
        arguments,
        preprocessing,
        find_weights(source.text, folder, *WEIGHTS) if files == "weights" else None,
        folder if arguments["text_cfg"].get("hf_tokenizer_name") else None,
    )


def _weights_in(source: LibrarySource, files: Mapping[str, Any]) -> list[str]:
    found = [name for name in WEIGHTS if name in files][:1]
    if not found:
        raise ModelError(
            f"{source.text}: the repository holds no {WEIGHTS[0]}. Pickled weights can run code when they are read, so they "
            f"are refused; {forms('open_clip')}"
        )
    return found


def _tokenizer_files(model: ModelLocation) -> Path:
    return model.fetch([name for name in model.files if name.endswith(_TOKENIZER) and "/" not in name])


def _arguments_of(source: LibrarySource, name: str) -> dict[str, Any]:
    open_clip = _open_clip()
    known: dict[str, Any] | None = open_clip.get_model_config(name) if name in open_clip.list_models() else None
    if known is None:
        near = near_match(name, open_clip.list_models())
        raise ModelError(
            f"{source.text}: open_clip has no architecture `{name}`{near or '; open_clip.list_models() has them'}"
        )
    return known


def _preprocessing_of(source: LibrarySource, name: str) -> dict[str, Any]:
    """How the published weights of an architecture take images, where they agree."""
    open_clip = _open_clip()
    tags = open_clip.list_pretrained_tags_by_model(name)
    each = [
        {key: open_clip.get_pretrained_cfg(name, tag).get(key) or value for key, value in _PREPROCESSING.items()}
        for tag in tags
    ]
    if any(one != each[0] for one in each):
        raise ModelError(
            f"{source.text}: published weights of this architecture take images in different ways; give a folder with "
            f"{CONFIG}, whose preprocess_cfg says which, and {WEIGHTS[0]}"
        )
    return each[0] if each else {}


def _of_config(source: LibrarySource, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    content = read_config(source.text, path)
    inner = content.get("model_cfg", content)
    if not isinstance(inner, dict) or not all(name in inner for name in ("embed_dim", "vision_cfg", "text_cfg")):
        raise ModelError(
            f"{source.text}: {path.name} describes no model of open_clip (embed_dim, vision_cfg, text_cfg)"
        )
    return copy.deepcopy(inner), dict(content.get("preprocess_cfg") or {})


def _made(source: LibrarySource, arguments: Mapping[str, Any]) -> Any:
    open_clip = _open_clip()
    given = copy.deepcopy(dict(arguments))
    given.pop("custom_text", None)
    refused = _refused_config(given)
    if refused is not None:
        raise ModelError(f"{source.text}: {refused}; {_POSSIBLE}")
    if "timm_model_name" in given["vision_cfg"]:
        given["vision_cfg"]["timm_model_pretrained"] = False
    try:
        model = open_clip.CustomTextCLIP(**given)
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:
        raise ModelError(f"{source.text}: open_clip cannot make this model: {error}") from error
    if is_a(model.visual, "open_clip.TimmModel"):
        refused = timm_models.refused(model.visual.trunk)
        if refused is not None:
            raise ModelError(f"{source.text}: its image tower: {refused}; {_POSSIBLE}")
        timm_models.call_every_layer(model.visual.trunk)
    return model


def _refused_config(arguments: Mapping[str, Any]) -> str | None:
    """Why a study cannot train a model of these arguments; None for one that it can."""
    vision, text = arguments["vision_cfg"], arguments["text_cfg"]
    if "multimodal_cfg" in arguments:
        return "CoCa writes captions beside its two towers, which a study does not train"
    if isinstance(vision.get("layers"), (list, tuple)):
        return "its image tower is a ResNet"
    if vision.get("attentional_pool") or vision.get("output_tokens"):
        return "its image tower puts out tokens pooled by attention, as that of CoCa does"
    if text.get("hf_model_name"):
        return f"its text tower is `{text['hf_model_name']}` of transformers, which open_clip would download by itself"
    size = vision.get("image_size", 224)
    if not isinstance(size, int) and len(set(size)) > 1:
        return f"its images are {size[0]} x {size[1]} pixels, and a study takes square ones"
    return None


def _renamed(model: Any, stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names of a model with a text tower of its own, as open_clip renames them."""
    # The model is one of open_clip, so it is installed.
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    try:
        stored = convert_state_dict(model, stored)
    except (KeyError, RuntimeError, AttributeError):  # of nothing that open_clip knows, which is said of the names
        return stored
    if "positional_embedding" in stored:
        stored = convert_to_custom_text_state_dict(stored)
    for name in ("logit_scale", "logit_bias"):
        own = getattr(model, name)
        if name in stored and own is not None and own.numel() == stored[name].numel():
            stored[name] = stored[name].reshape(own.shape)
    stored.pop("text.transformer.embeddings.position_ids", None)
    return stored


def _tokenizer(source: LibrarySource, found: _Found) -> Any:
    open_clip, text = _open_clip(), found.model["text_cfg"]
    length = text.get("context_length", 77)
    options = dict(text.get("tokenizer_kwargs") or {})
    if found.tokenizer is not None:
        try:
            return open_clip.HFTokenizer(
                str(found.tokenizer), context_length=length, tokenizer_mode=text.get("tokenizer_mode"), **options
            )
        # Each tokenizer backend has errors of its own.
        except Exception as error:
            raise ModelError(f"{source.text}: its tokenizer cannot be loaded: {error}") from error
    words = text.get("vocab_size", _WORDS)
    if not text.get("hf_tokenizer_name") and words >= _WORDS:
        return open_clip.SimpleTokenizer(context_length=length, **options)
    # Of random weights, a tokenizer of single characters.
    own = {
        "vocab_size": words,
        "max_position_embeddings": length,
        "eos_token_id": 2,
        "bos_token_id": 1,
        "pad_token_id": 0,
    }
    return character_tokenizer(CLIPTextConfig(**own))
