"""Loading CLIP: any folder or hub name, the embedded model, or a model made from a config.

Weights come as ``safetensors`` and nothing is ever unpickled; code of a hub repository is never run.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import AutoConfig, AutoTokenizer, CLIPConfig, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.utils import logging as hf_logging
from transformers.utils.hub import extract_commit_hash

from attndrift.files import read_json, sha256
from attndrift.models.errors import ModelError
from attndrift.models.from_config import CONFIG_PREFIX, config_of, processor_for, random_clip

EMBEDDED = Path(__file__).parent / "embedded"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_CONVERT = "CLIPModel.from_pretrained({what}, use_safetensors=False).save_pretrained({folder})"


def _resolve(source: str | Path) -> str:
    if str(source) != "embedded":
        return str(source)
    if not (EMBEDDED / "config.json").is_file():
        raise ModelError(
            "`embedded`: this installation holds no embedded model; use `config:small`, a folder or a hub name"
        )
    return str(EMBEDDED)


def _refuse_what_cannot_be(source: str) -> None:
    """Raise for what is plainly no model, before a hub is asked (and asked again for half a minute)."""
    path = Path(source)
    if path.is_file():
        raise ModelError(f"{source}: a file; give the folder that holds config.json and model.safetensors")
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{source}: not a model folder: it holds no config.json")
        return
    # A hub name is NAME or OWNER/NAME, nothing else.
    parts = source.split("/")
    if path.is_absolute() or len(parts) > 2 or "\\" in source or source[:1] in (".", "~", ""):
        raise ModelError(f"{source}: not a folder here, and no hub name has this form")


def load_config(source: str | Path) -> CLIPConfig:
    """The configuration of a CLIP model, without its weights. Raises :class:`ModelError`."""
    made = config_of(str(source))
    if made is not None:
        return made
    name = _resolve(source)
    _refuse_what_cannot_be(name)
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(_unavailable(str(source), name, error)) from error
    if not isinstance(config, CLIPConfig):
        raise ModelError(
            f"{source}: a {type(config).__name__.removesuffix('Config')} model, not a CLIP model with both towers; "
            "give a folder or hub name that CLIPModel.from_pretrained takes"
        )
    return config


def _unavailable(source: str, name: str, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
    if Path(name).is_dir():
        return f"{source}: not a model folder: {reason}"
    if "valid model identifier" in reason:
        return f"{source}: neither a folder here nor a model on the hub ({reason}). Check the name"
    return (
        f"{source}: not a folder here, and not to be had from the hub ({reason}). Check the name and the network, "
        "or download the model once and give its folder"
    )


def _refuse_pickles(source: str) -> None:
    folder = Path(source)
    if not folder.is_dir():
        return
    if (folder / "model.safetensors").is_file():
        return
    if (folder / "model.safetensors.index.json").is_file():
        _check_shards(folder / "model.safetensors.index.json", source)
        return
    pickles = sorted(p.name for suffix in _PICKLES for p in folder.glob(suffix))
    if pickles:
        raise ModelError(
            f"{source}: holds {pickles[0]} but no .safetensors file with the model's weights. Pickled weights can run "
            "code when they are read, so they are refused. Convert them where you trust them: "
            + _CONVERT.format(what="folder", folder="new_folder")
        )
    raise ModelError(f"{source}: not a model folder: it holds no model.safetensors")


def _check_shards(index: Path, source: str) -> None:
    """Raise :class:`ModelError` unless the files that ``index`` names are ``safetensors`` in its own folder."""
    try:
        content = read_json(index)
        shards = sorted({str(name) for name in content["weight_map"].values()})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"{source}: {index.name} is not an index of weights ({type(error).__name__})") from error
    for name in shards:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelError(
                f"{source}: {index.name} names {name!r}; weights are read from .safetensors files in the model's own "
                "folder alone"
            )


@contextmanager
def _no_conversion() -> Iterator[None]:
    # Without this, `transformers` has the hub convert pickled weights and loads what comes back.
    name = "DISABLE_SAFETENSORS_CONVERSION"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextmanager
def _quiet_where_local(name: str) -> Iterator[None]:
    """No bar for reading a local file, which takes a moment; a download keeps its own."""
    if not Path(name).is_dir() or not hf_logging.is_progress_bar_enabled():
        yield
        return
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.enable_progress_bar()


def load_clip(source: str | Path, *, dtype: torch.dtype = torch.float32) -> CLIPModel:
    """A CLIP model in evaluation mode, with its own fused attention (sdpa).

    Args:
        source: ``embedded``, ``config:NAME`` or ``config:PATH`` (random weights, the same ones every
            time), a local folder, or a hub name.
        dtype: of the weights; a float16 file loads as float32 by default.

    Raises :class:`ModelError` for what is not there, is not CLIP, has no ``safetensors``, or whose file
    does not hold every weight: ``transformers`` would fill in random ones and go on.
    """
    made = config_of(str(source))
    if made is not None:
        return random_clip(made, dtype)
    name = _resolve(source)
    load_config(source)
    _refuse_pickles(name)
    try:
        with _no_conversion(), _quiet_where_local(name):
            model, report = CLIPModel.from_pretrained(
                name,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                attn_implementation="sdpa",
                output_loading_info=True,
            )
    # SafetensorError of a damaged file is an Exception of its own; a wrong shape is a RuntimeError.
    except Exception as error:
        if "safetensors" in str(error) and not Path(name).is_dir():
            raise ModelError(
                f"{source}: has no safetensors weights. Convert them where you trust them: "
                + _CONVERT.format(what="name", folder="folder")
                + ", and give that folder"
            ) from error
        raise ModelError(_unavailable(str(source), name, error)) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"{source}: its weights lack {len(missing)} of the model's tensors, for instance {missing[0]}; they would "
            "be random. Give a folder saved with save_pretrained from the whole CLIPModel"
        )
    return model.eval()


def load_processor(source: str | Path) -> tuple[Any, CLIPImageProcessorPil]:
    """The tokenizer and the image processor of a model. Raises :class:`ModelError`."""
    made = config_of(str(source))
    if made is not None:
        return processor_for(made)
    name = _resolve(source)
    _refuse_what_cannot_be(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        return tokenizer, CLIPImageProcessorPil.from_pretrained(name)
    # Each tokenizer backend has errors of its own.
    except Exception as error:
        raise ModelError(f"{source}: its tokenizer or image processor cannot be loaded: {error}") from error


def state_hash(model: torch.nn.Module) -> str:
    """SHA-256 over names, shapes and values of a model's parameters and buffers."""
    total = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        total.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()


def describe(source: str | Path, model: CLIPModel | None = None) -> dict[str, Any]:
    """What a record says of a backbone: where it came from, and the hashes of its weights.

    Returns ``source``; ``weights_sha256``, of the weights in memory, where ``model`` is given; ``files``,
    SHA-256 by file name, for a local folder; ``revision``, the commit, for a model of a hub.
    Raises :class:`ModelError` for a source that is not there.
    """
    described: dict[str, Any] = {"source": str(source)}
    if model is not None:
        described["weights_sha256"] = state_hash(model)
    if str(source).startswith(CONFIG_PREFIX):
        return described
    folder = Path(_resolve(source))
    if folder.is_dir():
        described["files"] = {path.name: sha256(path) for path in sorted(folder.glob("*.safetensors"))}
        return described
    if model is None:
        load_config(source)
    # Configs no longer carry their commit; the cache that they were loaded from does.
    cached = try_to_load_from_cache(str(source), "config.json")
    revision = extract_commit_hash(cached, None) if isinstance(cached, str) else None
    if revision:
        described["revision"] = revision
    return described
