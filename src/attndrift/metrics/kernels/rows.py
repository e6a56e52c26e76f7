"""The query row of a layer's attention, its gradients, and what is read from it."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, unused-ignore"
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_TOKENS = 64
"""Tokens that a program looks at at once."""


@triton.jit
def _logits(
    query, keys, out, scale, heads, tokens,
    query_image, query_head, query_dim, key_image, key_head, key_token, key_dim,
    width: tl.constexpr, padded: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    pair = tl.program_id(0)
    image = (pair // heads).to(tl.int64)
    head = pair % heads
    dim = tl.arange(0, padded)
    token = tl.program_id(1) * block + tl.arange(0, block)
    own = tl.load(query + image * query_image + head * query_head + dim * query_dim, mask=dim < width, other=0.0)
    places = keys + image * key_image + head * key_head + token[:, None] * key_token + dim[None, :] * key_dim
    inside = (token[:, None] < tokens) & (dim[None, :] < width)
    them = tl.load(places, mask=inside, other=0.0)
    row = tl.sum(them.to(tl.float32) * own.to(tl.float32)[None, :], axis=1) * scale
    tl.store(out + pair.to(tl.int64) * tokens + token, row, mask=token < tokens)


@triton.jit
def _gradients(
    query, keys, grad, for_query, for_keys, scale, heads, tokens,
    query_image, query_head, query_dim, key_image, key_head, key_token, key_dim,
    grad_image, grad_head, grad_token, out_image, out_head, out_token,
    width: tl.constexpr, padded: tl.constexpr, block: tl.constexpr, of_query: tl.constexpr, of_keys: tl.constexpr,
):  # fmt: skip
    pair = tl.program_id(0)
    image = (pair // heads).to(tl.int64)
    head = pair % heads
    dim = tl.arange(0, padded)
    own = tl.load(query + image * query_image + head * query_head + dim * query_dim, mask=dim < width, other=0.0)
    own = own.to(tl.float32)
    total = tl.zeros((padded,), dtype=tl.float32)
    for start in range(0, tokens, block):
        token = start + tl.arange(0, block)
        here = token < tokens
        inside = here[:, None] & (dim[None, :] < width)
        slope = tl.load(grad + image * grad_image + head * grad_head + token * grad_token, mask=here, other=0.0)
        slope = slope.to(tl.float32) * scale
        if of_query:
            places = keys + image * key_image + head * key_head + token[:, None] * key_token + dim[None, :] * key_dim
            them = tl.load(places, mask=inside, other=0.0)
            total += tl.sum(them.to(tl.float32) * slope[:, None], axis=0)
        if of_keys:
            places = for_keys + image * out_image + head * out_head + token[:, None] * out_token + dim[None, :]
            tl.store(places, (slope[:, None] * own[None, :]).to(for_keys.dtype.element_ty), mask=inside)
    if of_query:
        tl.store(for_query + pair.to(tl.int64) * width + dim, total.to(for_query.dtype.element_ty), mask=dim < width)


@triton.jit
def _read(logits, logs, attention, mass, tokens, prefix, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    token = tl.arange(0, block)
    inside = token < tokens
    patch = inside & (token >= prefix)
    values = tl.load(logits + row * tokens + token, mask=inside, other=-float("inf"))
    # NaN must come out as NaN: the largest is of the finite ones, and the sums have the others.
    top = tl.max(tl.where(patch, values, -float("inf")), axis=0)
    among = tl.where(patch, tl.exp(values - top), 0.0)
    log = values - top - tl.log(tl.sum(among, axis=0))
    place = row * (tokens - prefix) + token - prefix
    tl.store(logs + place, log, mask=patch)
    tl.store(attention + place, tl.exp(log), mask=patch)
    first = tl.max(values, axis=0)
    all_of_them = tl.where(inside, tl.exp(values - first), 0.0)
    dropped = tl.sum(tl.where(token < prefix, all_of_them, 0.0), axis=0)
    tl.store(mass + row, dropped / tl.sum(all_of_them, axis=0))


def row_logits(query: Tensor, keys: Tensor, scale: float) -> Tensor:
    """Logits (images, heads, T), float32, of ``query`` (images, heads, head_dim) and ``keys`` (images, heads, T, head_dim).

    Half precision or float32, in any strides. The keys are read once, as they are.
    """
    images, heads, tokens, width = keys.shape
    out = torch.empty(images, heads, tokens, dtype=torch.float32, device=keys.device)
    grid = (images * heads, triton.cdiv(tokens, _TOKENS))
    with _on(keys):
        _logits[grid](
            query, keys, out, scale, heads, tokens, *query.stride(), *keys.stride(),
            width=width, padded=triton.next_power_of_2(width), block=_TOKENS,
        )  # fmt: skip
    return out


def row_gradients(
    query: Tensor, keys: Tensor, grad: Tensor, scale: float, *, of_query: bool, of_keys: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of :func:`row_logits` for ``grad`` (images, heads, T), of the types of ``query`` and ``keys``."""
    images, heads, tokens, width = keys.shape
    for_query = torch.empty_like(query, memory_format=torch.contiguous_format) if of_query else None
    # In the order of a projection's output, whose gradient it becomes a part of.
    for_keys = keys.new_empty(images, tokens, heads, width).transpose(1, 2) if of_keys else None
    strides = (0, 0, 0) if for_keys is None else for_keys.stride()[:3]
    with _on(keys):
        _gradients[(images * heads,)](
            query, keys, grad, query if for_query is None else for_query, keys if for_keys is None else for_keys,
            scale, heads, tokens, *query.stride(), *keys.stride(), *grad.stride(), *strides,
            width=width, padded=triton.next_power_of_2(width), block=_TOKENS, of_query=of_query, of_keys=of_keys,
        )  # fmt: skip
    return for_query, for_keys


def read_rows(logits: Tensor, prefix: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log-attention and attention (..., N) to what follows the ``prefix``, and what the prefix got (...), of float32 ``logits``."""
    tokens = logits.shape[-1]
    logits = logits.contiguous()
    logs = logits.new_empty(*logits.shape[:-1], tokens - prefix)
    attention, mass = torch.empty_like(logs), logits.new_empty(logits.shape[:-1])
    with _on(logits):
        _read[(mass.numel(),)](
            logits, logs, attention, mass, tokens, prefix, block=triton.next_power_of_2(tokens)
        )  # fmt: skip
    return logs, attention, mass


def _on(tensor: Tensor) -> Any:
    """Triton launches on the current device, whatever the tensors are on."""
    return torch.cuda.device_of(tensor)
