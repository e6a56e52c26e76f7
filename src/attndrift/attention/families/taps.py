"""Taps that several families share: split projections, attention masks, ``torch.nn.MultiheadAttention``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from attndrift.attention.errors import ObservationError
from attndrift.attention.families.family import Parts, Tap


def split_heads(part: str) -> Callable[[nn.Module, tuple[Any, ...], Any], Parts]:
    """Reads a projection's output (images, tokens, heads * head_dim) as ``part``."""

    def read(attention: nn.Module, _: tuple[Any, ...], output: Tensor) -> Parts:
        heads = output.view(*output.shape[:-1], -1, head_dim(attention))
        return {part: heads.transpose(1, 2)}

    return read


def whole(part: str) -> Callable[[nn.Module, tuple[Any, ...], Any], Parts]:
    """Reads an output that already is (images, heads, tokens, head_dim) as ``part``."""
    return lambda attention, args, output: {part: output}


def head_dim(attention: nn.Module) -> int:
    """Width of a head, under the names that transformers gives it."""
    for name in ("head_dim", "attention_head_size"):
        value = getattr(attention, name, None)
        if value is not None:
            return int(value)
    raise ObservationError(f"{type(attention).__name__} does not say how wide its heads are")


def scale(attention: nn.Module) -> float:
    """Factor of the logits, as the module names it; 1 / sqrt(head_dim) where it names none."""
    for name in ("scaling", "scale"):
        value = getattr(attention, name, None)
        if value is not None:
            return float(value)
    return float(head_dim(attention) ** -0.5)


def transformers_mask(position: int = 1) -> Tap:
    """The mask that an attention module of transformers is given, and its causality.

    Args:
        position: place of ``attention_mask`` among the positional arguments.
    """

    def read(attention: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Parts:
        mask = kwargs.get("attention_mask", args[position] if len(args) > position else None)
        causal = kwargs.get("is_causal")
        causal = bool(getattr(attention, "is_causal", False) if causal is None else causal)
        if mask is None:
            return {"bias": None, "causal": causal, "position": kwargs.get("position_embeddings")}
        if not isinstance(mask, Tensor):
            raise ObservationError(
                f"{type(attention).__name__} is given its mask as {type(mask).__name__}, which cannot be read; "
                "use another attention implementation (model.set_attn_implementation('sdpa'))"
            )
        if mask.dim() == 2:
            # Flash attention is given which tokens are no padding, and causality by itself.
            return {"bias": mask[:, None, None, :].bool(), "causal": causal, "position": None}
        # A whole mask already holds causality.
        return {"bias": mask, "causal": False, "position": kwargs.get("position_embeddings")}

    return Tap("", read, at="input")


def _multihead(attention: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Parts:
    names = ("query", "key", "value", "key_padding_mask", "need_weights", "attn_mask")
    given = dict(zip(names, args, strict=False)) | dict(kwargs)
    query, key = given["query"], given["key"]
    if attention.bias_k is not None or attention.add_zero_attn:
        raise ObservationError("torch.nn.MultiheadAttention with bias_k or add_zero_attn cannot be observed")
    if query.dim() != 3:
        raise ObservationError(f"torch.nn.MultiheadAttention was given {query.dim()}-dimensional input; 3 are needed")
    width, heads = attention.embed_dim, attention.num_heads
    if attention.in_proj_weight is not None:
        weights = attention.in_proj_weight[:width], attention.in_proj_weight[width : 2 * width]
    else:
        weights = attention.q_proj_weight, attention.k_proj_weight
    bias = attention.in_proj_bias
    biases = (None, None) if bias is None else (bias[:width], bias[width : 2 * width])

    if not attention.batch_first:
        query, key = query.transpose(0, 1), key.transpose(0, 1)

    def project(states: Tensor, which: int) -> Tensor:
        projected = functional.linear(states.squeeze(1), weights[which], biases[which])
        return projected.unflatten(-1, (heads, -1)).transpose(1, 2)

    mask = given.get("attn_mask")
    if mask is not None:
        # (queries, tokens), or (images * heads, queries, tokens); a boolean one says what is hidden.
        mask = mask[None, None] if mask.dim() == 2 else mask.unflatten(0, (-1, heads))
        mask = ~mask if mask.dtype == torch.bool else mask
    padding = given.get("key_padding_mask")
    if padding is not None:
        if padding.dtype != torch.bool:
            raise ObservationError("torch.nn.MultiheadAttention with a key_padding_mask of numbers cannot be observed")
        padding = ~padding[:, None, None]
        if mask is None:
            mask = padding
        else:
            mask = mask & padding if mask.dtype == torch.bool else mask.masked_fill(~padding, -torch.inf)
    return {
        # One token of these is projected, not all of them.
        "query": query.unsqueeze(1),
        "project": lambda states: project(states, 0),
        "key": project(key, 1),
        "bias": mask,
        "causal": mask is None and bool(given.get("is_causal")),
    }


def multihead_taps(attention: nn.Module) -> tuple[Tap, ...]:
    """The tap of a ``torch.nn.MultiheadAttention``, or of one that peft has wrapped.

    Its fused projection cannot be hooked, so the keys and the one query are projected once more, which costs
    about a twelfth of an ordinary block. Peft merges its adapters into the wrapped module for the time of a
    call, so that one is tapped.
    """
    path = "base_layer" if isinstance(getattr(attention, "base_layer", None), nn.Module) else ""

    def read(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Parts:
        return _multihead(attention.get_submodule(path), args, kwargs)

    return (Tap(path, read, at="input"),)


def multihead_scale(attention: nn.Module) -> float:
    """1 / sqrt(head_dim) of a ``torch.nn.MultiheadAttention``, wrapped or not."""
    inner: Any = getattr(attention, "base_layer", attention)
    return float((inner.embed_dim // inner.num_heads) ** -0.5)
