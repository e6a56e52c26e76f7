"""Prompts to text embeddings: tokenizers and text encoders of transformers and open_clip, in any combination."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attndrift.data.prompts import clean_class_name, fill
from attndrift.models.evaluation import preserve_state
from attndrift.models.module_utils import is_a, named_modules

_ENCODERS = ("get_text_features", "encode_text")


def names_of(argument: str, names: Sequence[str]) -> tuple[str, ...]:
    """A list of texts, as given for ``argument``. Raises ValueError for anything else; a text is a list of letters."""
    found = () if isinstance(names, str) else tuple(names)
    if not found and not isinstance(names, str):
        raise ValueError(f"{argument}: must not be empty")
    for one in found or (names,):
        if not isinstance(one, str) or isinstance(names, str):
            raise ValueError(f"{argument}: expected a list of texts, got {'the text ' if one is names else ''}{one!r}")
    return found


def check_texts(class_names: Sequence[str], templates: Sequence[str]) -> None:
    """Raise ``ValueError`` for class names or templates that are no lists of texts, an empty name, and a template without ``{class}``."""
    for template in names_of("templates", templates):
        if template.count("{class}") != 1:
            raise ValueError(
                f"templates: {template!r} must hold {{class}} exactly once, which stands for the class name: "
                "'a photo of a {class}.'"
            )
    for number, name in enumerate(names_of("class_names", class_names)):
        if not clean_class_name(name):
            raise ValueError(f"class_names: number {number} is empty; name it")


def text_encoder(model: nn.Module) -> nn.Module:
    """The part of ``model`` that encodes texts: the outermost with ``get_text_features`` or ``encode_text``.

    Raises ValueError where there is none.
    """
    for part in named_modules(model):
        if any(callable(getattr(part, name, None)) for name in _ENCODERS):
            return part
    raise ValueError(
        f"{type(model).__name__} has no text encoder (`get_text_features` of transformers, `encode_text` of open_clip), so "
        "class names cannot be encoded: give text_features"
    )


def encode_prompts(encoder: nn.Module, tokenizer: Any, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Tokens (texts, tokens), int64, and embeddings (texts, dimensions), float32, not normalised.

    Args:
        encoder: as :func:`text_encoder` finds it.
        tokenizer: of transformers (or a processor with one), of open_clip, or a function from texts to tokens.

    Raises:
        ValueError: a prompt that is longer than the model takes, or a tokenizer that is not the model's.
        TypeError: something that yields no tokens.
    """
    device = next(encoder.parameters()).device
    inputs = _tokens(encoder, tokenizer, list(texts))
    _check_tokens(encoder, tokenizer, inputs["input_ids"], texts)
    inputs = {name: value.to(device) for name, value in inputs.items()}
    module: Any = encoder
    if callable(getattr(module, "get_text_features", None)):
        output = module.get_text_features(**inputs)
        output = output if isinstance(output, Tensor) else output.pooler_output
    else:
        output = module.encode_text(inputs["input_ids"])
    return inputs["input_ids"].cpu(), output.float()


def class_tokens(model: nn.Module, tokenizer: Any, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Token ids of every class name in every template: int64 (classes, templates, tokens), on the CPU.

    Raises as :func:`encode_prompts` does for a prompt that is too long, and a tokenizer that is not the model's.
    """
    encoder = text_encoder(model)
    texts = [fill(template, name) for name in class_names for template in templates]
    tokens = _tokens(encoder, tokenizer, texts)["input_ids"]
    _check_tokens(encoder, tokenizer, tokens, texts)
    return tokens.cpu().long().unflatten(0, (len(class_names), len(templates)))


def trained_text_parameters(model: nn.Module, tokenizer: Any) -> dict[str, nn.Parameter]:
    """The trained parameters of ``model`` that the embedding of a text depends on, by name."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    with preserve_state(model), torch.enable_grad():
        _, embedded = encode_prompts(text_encoder(model), tokenizer, ["a photo"])
        if not embedded.requires_grad:
            return {}
        gradients = torch.autograd.grad(embedded.sum(), list(trained.values()), allow_unused=True)
    return {name: trained[name] for name, found in zip(trained, gradients, strict=True) if found is not None}


def _tokens(encoder: nn.Module, tokenizer: Any, texts: list[str]) -> dict[str, Tensor]:
    if is_a(tokenizer, "ProcessorMixin"):
        tokenizer = tokenizer.tokenizer
    options: dict[str, Any] = {"padding": True, "return_tensors": "pt"}
    # open_clip's models take prompts of one length, as SigLIP was trained.
    length = text_length(encoder)
    siglip = _model_type(encoder).startswith("siglip")
    if length is not None and (siglip or not hasattr(encoder, "get_text_features")):
        options |= {"padding": "max_length", "max_length": length}
    # So it was trained. SigLIP 2 of a fixed size comes with Gemma's tokenizer, which keeps capitals.
    texts = [text.lower() for text in texts] if siglip else texts
    try:
        inspect.signature(tokenizer).bind(texts, **options)
    except TypeError:
        options = {}  # open_clip's tokenizers pad by themselves
    try:
        found = tokenizer(texts, **options)
    except ValueError:
        if options.get("padding") != "max_length":
            raise
        # Prompts of more than that length make no tensor: as long as the longest, it is said below which one is too long.
        found = tokenizer(texts, **(options | {"padding": True}))
    if isinstance(found, Tensor):
        found = {"input_ids": found}
    if not isinstance(found, Mapping) or not isinstance(found.get("input_ids"), Tensor):
        raise TypeError(
            f"tokenizer: a {type(tokenizer).__name__} yields a {type(found).__name__}; expected one of transformers or of "
            "open_clip, which yield token ids (texts, tokens)"
        )
    # SigLIP was trained to see its padding: without a mask.
    names = ("input_ids",) if siglip else ("input_ids", "attention_mask")
    inputs = {name: found[name] for name in names if name in found}
    # CoCa tells padding by a token of its own, which is not that of every tokenizer.
    coca = getattr(encoder, "text", None)
    if getattr(coca, "cls_emb", None) is not None and "attention_mask" in inputs:
        inputs["input_ids"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, coca.pad_id)  # type: ignore[union-attr]
    return inputs


def _config(encoder: nn.Module) -> Any:
    return getattr(getattr(encoder, "config", None), "text_config", None)


def _model_type(encoder: nn.Module) -> str:
    return str(getattr(_config(encoder), "model_type", ""))


def text_length(encoder: nn.Module) -> int | None:
    """How many tokens the encoder takes; None where it does not say."""
    found = getattr(_config(encoder), "max_position_embeddings", None) or getattr(encoder, "context_length", None)
    return None if found is None else int(found)


def _untruncated(tokenizer: Any, text: str) -> int:
    """The length of a prompt of a tokenizer of open_clip, which cuts what is too long; 0 where it does not say."""
    inner = getattr(tokenizer, "tokenizer", None)
    if callable(inner):
        return len(inner(text)["input_ids"])
    encode = getattr(tokenizer, "encode", None)
    return len(encode(text)) + 2 if callable(encode) else 0


def _check_tokens(encoder: nn.Module, tokenizer: Any, tokens: Tensor, texts: Sequence[str]) -> None:
    length = text_length(encoder)
    wide = tokens.shape[1]
    lengths = [_untruncated(tokenizer, text) for text in texts] if hasattr(tokenizer, "context_length") else []
    longest = max(lengths, default=0)
    if length is not None and max(wide, longest) > length:
        text = texts[lengths.index(longest)] if longest > length else max(texts, key=len)
        raise ValueError(
            f"templates: the prompt {text!r} is too long: {max(wide, longest)} tokens, and the text encoder takes {length}. "
            "Shorten the template or the class name"
        )
    config = _config(encoder)
    known = getattr(config, "vocab_size", None) or getattr(encoder, "vocab_size", None)
    if known is not None and int(tokens.max()) >= known:
        raise ValueError(
            f"tokenizer: yields token {int(tokens.max())}, and the model knows {known} tokens; it belongs to another model"
        )
    # CLIP takes the feature at the end token. Without one it takes the first token's, the same for every text.
    end = 2 if config is None or _model_type(encoder).startswith("siglip") else config.eos_token_id
    if end != 2 and not bool((tokens == end).any(dim=1).all()):
        raise ValueError(
            f"tokenizer: does not end texts with the model's end token ({end}); it belongs to another model"
        )
