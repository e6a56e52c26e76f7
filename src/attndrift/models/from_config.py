"""Models made from a config: random weights from a fixed seed, and a tokenizer and processor that fit them.

For size, speed and tests, where no trained weights can be had. Nothing is downloaded.
"""

from __future__ import annotations

import copy
import string
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers import models as tokenizer_models
from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerFast
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from attndrift.models.backbone import folder_formats, not_trained, of_model_type
from attndrift.models.errors import ModelError
from attndrift.models.reference import CONFIG_PREFIX

CHARACTERS = (*string.ascii_lowercase, *string.digits, *" .,-'()/&")
_RANDOM_SEED = 0


def named_configs() -> dict[str, Callable[[], Any]]:
    """The configs that ``config:NAME`` knows by name, of every backbone; any other is given as the path of its ``config.json``."""
    return {name: make for _, folder in folder_formats() for name, make in folder.configs.items()}


def config_of(source: str) -> Any | None:
    """The configuration behind ``config:NAME`` or ``config:PATH``; None for a source of another form."""
    if not source.startswith(CONFIG_PREFIX):
        return None
    name, named = source.removeprefix(CONFIG_PREFIX), named_configs()
    if name in named:
        return copy.deepcopy(_made(named[name]))
    path = Path(name) / "config.json" if Path(name).is_dir() else Path(name)
    if not path.is_file():
        raise ModelError(
            f"{source}: no config is called {name!r}; choose from {', '.join(named)}, or give the path of a config.json"
        )
    try:
        values, _ = PreTrainedConfig.get_config_dict(str(path))
    except (OSError, ValueError) as error:
        raise ModelError(f"{source}: not a readable configuration: {error}") from error
    kind = values.get("model_type")
    if of_model_type(kind) is None:
        raise ModelError(f"{source}: {not_trained(kind)}")
    return AutoConfig.for_model(kind).from_dict(values)


@cache
def _made(make: Callable[[], Any]) -> Any:
    """What ``make`` makes, once: ``transformers`` validates every value of a config anew, which a copy does not."""
    return make()


def random_model(config: Any, dtype: torch.dtype) -> Any:
    """A model with random weights, the same ones every time; the global generator is not touched."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(_RANDOM_SEED)
        architecture, options = architecture_of(config)
        return architecture._from_config(config, dtype=dtype, attn_implementation="sdpa", **options).eval()


def architecture_of(config: Any) -> tuple[Any, Mapping[str, Any]]:
    """The class of ``transformers`` that a study takes for models of this configuration, and its arguments beside it."""
    found = of_model_type(config.model_type)
    assert found is not None
    return getattr(transformers, found[1].architectures[config.model_type]), found[1].options


def image_processor(kind: str, size: int, *, mean: str = "") -> Any:
    """The PIL image processor ``kind`` of ``transformers`` for square images of ``size`` pixels.

    ``mean``: ``imagenet`` for ImageNet's mean and standard deviation; by default the processor's own.
    """
    made: dict[str, Any] = {"size": {"height": size, "width": size}}
    if kind in ("CLIPImageProcessorPil", "BitImageProcessorPil"):
        made = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
    if mean == "imagenet":
        made |= {"image_mean": list(IMAGENET_DEFAULT_MEAN), "image_std": list(IMAGENET_DEFAULT_STD)}
    return getattr(transformers, kind)(**made)


def character_tokenizer(text: Any) -> PreTrainedTokenizerFast:
    """A tokenizer of single lower-case characters for a text tower of the configuration ``text``."""
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
    wanted_tokens = ["<unk>", *CHARACTERS] + [token for token in ("<bos>",) if token not in vocabulary]
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
