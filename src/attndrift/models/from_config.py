"""Models made from a config: random weights from a fixed seed, and a tokenizer and processor that fit them.

For size, speed and tests, where no trained weights can be had. Nothing is downloaded.
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers import models as tokenizer_models
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from attndrift.models.errors import ModelError
from attndrift.models.reference import CONFIG_PREFIX

_CHARACTERS = (*string.ascii_lowercase, *string.digits, *" .,-'()/&")
_RANDOM_SEED = 0


def _tiny(image_size: int = 28, patch_size: int = 7, width: int = 32, layers: int = 3, heads: int = 4) -> CLIPConfig:
    return CLIPConfig(
        text_config={
            "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "num_attention_heads": heads,
            "vocab_size": len(_CHARACTERS) + 4, "max_position_embeddings": 77, "bos_token_id": 1, "eos_token_id": 3,
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
"""The shapes that ``config:NAME`` knows by name; any other is given as the path of its ``config.json``."""


def config_of(source: str) -> CLIPConfig | None:
    """The configuration behind ``config:NAME`` or ``config:PATH``; None for a source of another form."""
    if not source.startswith(CONFIG_PREFIX):
        return None
    name = source.removeprefix(CONFIG_PREFIX)
    if name in CONFIGS:
        return CONFIGS[name]()
    path = Path(name) / "config.json" if Path(name).is_dir() else Path(name)
    if not path.is_file():
        raise ModelError(
            f"{source}: no config is called {name!r}; choose from {', '.join(CONFIGS)}, "
            "or give the path of a config.json"
        )
    try:
        values, _ = CLIPConfig.get_config_dict(str(path))
    except (OSError, ValueError) as error:
        raise ModelError(f"{source}: not a readable configuration: {error}") from error
    if values.get("model_type") != "clip":
        raise ModelError(f"{source}: describes a model of type {values.get('model_type')!r}, not `clip`")
    return CLIPConfig.from_dict(values)


def random_clip(config: CLIPConfig, dtype: torch.dtype) -> CLIPModel:
    """A model with random weights, the same ones every time; the global generator is not touched."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(_RANDOM_SEED)
        return CLIPModel._from_config(config, dtype=dtype, attn_implementation="sdpa").eval()


def processor_for(config: CLIPConfig) -> tuple[PreTrainedTokenizerFast, CLIPImageProcessorPil]:
    """A tokenizer of single characters and CLIP's image processor, for a model made from ``config``."""
    return _character_tokenizer(config), image_processor_for(config)


def image_processor_for(config: CLIPConfig) -> CLIPImageProcessorPil:
    """CLIP's image processor, for the image size of ``config``."""
    size = config.vision_config.image_size
    return CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})


def _character_tokenizer(config: CLIPConfig) -> PreTrainedTokenizerFast:
    text = config.text_config
    # CLIP takes a text's feature at its end token: under another id every text would have the same feature.
    # The id 2 of old configs stands for "the largest id in the text".
    end = text.vocab_size - 1 if text.eos_token_id == 2 else text.eos_token_id
    vocabulary: dict[str, int] = {"<eos>": end}
    for token, wanted in (("<bos>", text.bos_token_id), ("<pad>", text.pad_token_id)):
        if wanted is not None and wanted not in vocabulary.values():
            vocabulary[token] = wanted
    for field, token in (("eos_token_id", "<eos>"), ("bos_token_id", "<bos>"), ("pad_token_id", "<pad>")):
        if not 0 <= vocabulary.get(token, 0) < text.vocab_size:
            raise ModelError(
                f"text_config.{field} is {vocabulary[token]}; with vocab_size {text.vocab_size} it must be below that"
            )
    # A special token without an id of its own shares that of the end token (CLIP pads with it too).
    wanted_tokens = ["<unk>", *_CHARACTERS] + [token for token in ("<bos>",) if token not in vocabulary]
    free = [i for i in range(min(text.vocab_size, 2 * len(wanted_tokens) + 8)) if i not in vocabulary.values()]
    if len(free) < len(wanted_tokens):
        raise ModelError(f"text_config.vocab_size is {text.vocab_size}; the character tokenizer needs more tokens")
    vocabulary |= dict(zip(wanted_tokens, free, strict=False))
    tokenizer = Tokenizer(tokenizer_models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[(token, vocabulary[token]) for token in ("<bos>", "<eos>")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>",
        pad_token="<pad>" if "<pad>" in vocabulary else "<eos>", model_max_length=text.max_position_embeddings,
    )  # fmt: skip
