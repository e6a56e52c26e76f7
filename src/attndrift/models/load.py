"""Loading CLIP: any folder or hub name, the embedded model, or a model made from a config.

Weights come as ``safetensors`` and nothing is ever unpickled; code of a hub repository is never run.
"""

from __future__ import annotations

import hashlib
import string
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers import models as tokenizer_models
from transformers import AutoConfig, AutoTokenizer, CLIPConfig, CLIPModel, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

EMBEDDED = Path(__file__).parent / "embedded"
CONFIG_PREFIX = "config:"
_RANDOM_SEED = 0


class ModelError(ValueError):
    """A model that cannot be loaded; the message says why and what to do."""


def _tiny(image_size: int = 28, patch_size: int = 7, width: int = 32, layers: int = 3, heads: int = 4) -> CLIPConfig:
    characters = len(_alphabet())
    return CLIPConfig(
        text_config={
            "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "num_attention_heads": heads,
            "vocab_size": characters, "max_position_embeddings": 77, "bos_token_id": 1, "eos_token_id": 3,
            "pad_token_id": 0,
        },
        vision_config={
            "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers,
            "num_attention_heads": heads, "image_size": image_size, "patch_size": patch_size,
        },
        projection_dim=width,
    )  # fmt: skip


def _vit(patch: int, size: int = 224, *, large: bool = False) -> CLIPConfig:
    vision: dict[str, Any] = {"patch_size": patch, "image_size": size}
    text: dict[str, Any] = {}
    if large:
        vision |= {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
        }
        text = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
    return CLIPConfig(vision_config=vision, text_config=text, projection_dim=768 if large else 512)


CONFIGS = {
    "tiny": _tiny,
    "small": lambda: _tiny(image_size=56, patch_size=8, width=128, layers=8, heads=4),
    "vit-base-patch32": lambda: _vit(32),
    "vit-base-patch16": lambda: _vit(16),
    "vit-large-patch14": lambda: _vit(14, large=True),
    "vit-large-patch14-336": lambda: _vit(14, 336, large=True),
}
"""Models made from a config, with random weights: for size, speed and tests, where no weights can be had."""


def _alphabet() -> list[str]:
    return ["<pad>", "<bos>", "<unk>", "<eos>", *string.ascii_lowercase, *string.digits, *" .,-'()/&"]


def character_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of single characters, for models made from a config."""
    vocabulary = {token: index for index, token in enumerate(_alphabet())}
    tokenizer = Tokenizer(tokenizer_models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>",
        model_max_length=77,
    )  # fmt: skip


def _resolve(source: str | Path) -> str:
    if str(source) == "embedded":
        if not (EMBEDDED / "config.json").is_file():
            raise ModelError(
                "`embedded`: this installation holds no embedded model; use `config:small`, a folder or a hub name"
            )
        return str(EMBEDDED)
    return str(source)


def _from_config(source: str) -> CLIPConfig | None:
    if not source.startswith(CONFIG_PREFIX):
        return None
    name = source.removeprefix(CONFIG_PREFIX)
    if name not in CONFIGS:
        raise ModelError(f"{source}: no config is called {name!r}; choose from {', '.join(CONFIGS)}")
    return CONFIGS[name]()


def load_config(source: str | Path) -> CLIPConfig:
    """The configuration of a CLIP model, without its weights. Raises :class:`ModelError`."""
    made = _from_config(str(source))
    if made is not None:
        return made
    name = _resolve(source)
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:
        raise ModelError(_unavailable(str(source), error)) from error
    if not isinstance(config, CLIPConfig):
        raise ModelError(
            f"{source}: a {type(config).__name__.removesuffix('Config')} model, not a CLIP model with both towers; "
            "give a folder or hub name that CLIPModel.from_pretrained takes"
        )
    return config


def _unavailable(source: str, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
    if Path(source).is_dir():
        return f"{source}: not a model folder: {reason}"
    return (
        f"{source}: not a folder here, and not to be had from the hub ({reason}). Check the name and the network, "
        "or download the model once and give its folder"
    )


def _refuse_pickles(source: str) -> None:
    folder = Path(source)
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return
    pickles = sorted(p.name for suffix in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in folder.glob(suffix))
    if pickles:
        raise ModelError(
            f"{source}: holds {pickles[0]} but no .safetensors file. Pickled weights can run code when they are read, "
            "so they are refused. Convert them where you trust them: "
            "CLIPModel.from_pretrained(folder, use_safetensors=False).save_pretrained(new_folder)"
        )


def load_clip(source: str | Path, *, dtype: torch.dtype = torch.float32) -> CLIPModel:
    """A CLIP model in evaluation mode, with its own fused attention (sdpa).

    Args:
        source: ``embedded``, ``config:NAME`` (random weights), a local folder, or a hub name.
        dtype: of the weights; a float16 file loads as float32 by default.

    Raises :class:`ModelError` for what is not there, not CLIP, or has no ``safetensors``.
    """
    made = _from_config(str(source))
    if made is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_RANDOM_SEED)
            return CLIPModel._from_config(made, dtype=dtype, attn_implementation="sdpa").eval()
    name = _resolve(source)
    _refuse_pickles(name)
    load_config(source)
    try:
        model = CLIPModel.from_pretrained(
            name, dtype=dtype, use_safetensors=True, trust_remote_code=False, attn_implementation="sdpa"
        )
    except Exception as error:
        if "safetensors" in str(error):
            raise ModelError(
                f"{source}: has no safetensors weights. Convert them where you trust them: CLIPModel.from_pretrained"
                "(name, use_safetensors=False).save_pretrained(folder), and give that folder"
            ) from error
        raise ModelError(_unavailable(str(source), error)) from error
    return model.eval()


def load_processor(source: str | Path) -> tuple[Any, CLIPImageProcessorPil]:
    """The tokenizer and the image processor of a model. Raises :class:`ModelError`."""
    made = _from_config(str(source))
    if made is not None:
        size = made.vision_config.image_size
        processor = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
        return character_tokenizer(), processor
    name = _resolve(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        return tokenizer, CLIPImageProcessorPil.from_pretrained(name)
    except Exception as error:
        raise ModelError(f"{source}: its tokenizer or image processor cannot be loaded: {error}") from error


def state_hash(model: torch.nn.Module) -> str:
    """SHA-256 over names, shapes and values of a model's parameters and buffers."""
    total = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        total.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def describe(source: str | Path, model: CLIPModel) -> dict[str, Any]:
    """What a record says of a backbone: where it came from, and the hash of its weights."""
    described: dict[str, Any] = {"source": str(source), "weights_sha256": state_hash(model)}
    revision = getattr(model.config, "_commit_hash", None)
    if revision:
        described["revision"] = revision
    return described
