"""The one query row q_cls K^T, means of rows, and full maps on request, from a layer's own queries and keys."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from attndrift.metrics import kernels
from attndrift.metrics.attention import working_dtype

# Imports inside functions: these packages take time to load, which only who needs them pays.

_TRANSIENT = 2**22
"""Most elements that maps made on the way to a mean may take at once."""

_PRODUCT = 2**20
"""Most elements that the product of one query with all keys may take at once: little memory, and it stays in cache."""

_PRODUCT_ON_ACCELERATOR = 2**24
"""The same where there is no such cache and each part is three more launches: 64 MB, 28 images of ViT-L/14 at 336."""


_IN_KERNELS = (torch.float32, torch.bfloat16, torch.float16)

_HIDDEN = -1e30
"""Logit of a token that a mask hides: its attention is 0, and 0 times its logarithm is 0 and not NaN."""


def _product(query: Tensor, keys: Tensor, scale: float) -> Tensor:
    # Multiply and sum, not matmul, whose precision settings (TF32, bfloat16 products, autocast) lower.
    dtype = working_dtype(keys)
    query, keys, tokens_first = _along_memory(query, keys)
    most = _PRODUCT if keys.device.type == "cpu" else _PRODUCT_ON_ACCELERATOR
    images = max(1, most // max(1, keys[0].numel()))
    rows = [(q.to(dtype) * k.to(dtype)).sum(-1) for q, k in zip(query.split(images), keys.split(images), strict=True)]
    logits = (rows[0] if len(rows) == 1 else torch.cat(rows)) * scale
    return logits.transpose(1, 2).contiguous() if tokens_first else logits


def _along_memory(query: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, bool]:
    """``query`` and ``keys`` to be multiplied in the order in which the keys lie, and whether tokens come before heads.

    So they do in the output of a projection; multiplied in the other order, it is read in strides, which takes
    more than twice as long.
    """
    if keys.stride(2) > keys.stride(1):
        return query.unsqueeze(1), keys.transpose(1, 2), True
    return query.unsqueeze(2), keys, False


def _row(query: Tensor, keys: Tensor, scale: float) -> Tensor:
    if _has_kernel(query, keys):
        from attndrift.metrics.kernels.rows import row_logits as in_one_launch

        return in_one_launch(query, keys, scale)
    return _product(query, keys, scale)


def _has_kernel(query: Tensor, keys: Tensor) -> bool:
    return keys.dtype in _IN_KERNELS and query.dtype == keys.dtype and kernels.usable(query, keys)


class _QueryRow(torch.autograd.Function):
    """Saves q and K as the model made them, not their float32 copies."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, keys: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(query, keys)
        ctx.scale = scale
        return _row(query, keys, scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        query, keys = ctx.saved_tensors
        # Gradients of gradients, which a kernel has none of, are asked for where this is part of a graph.
        if not torch.is_grad_enabled() and _has_kernel(query, keys):
            from attndrift.metrics.kernels.rows import row_gradients

            of_query, of_keys = ctx.needs_input_grad[:2]
            return *row_gradients(query, keys, grads[0], ctx.scale, of_query=of_query, of_keys=of_keys), None
        grad = grads[0] * ctx.scale
        row, lying, tokens_first = _along_memory(query, keys)
        grad = (grad.transpose(1, 2) if tokens_first else grad).unsqueeze(-1)
        for_query = for_keys = None
        if ctx.needs_input_grad[0]:
            for_query = (grad * lying.to(grad.dtype)).sum(1 if tokens_first else 2).to(query.dtype)
        if ctx.needs_input_grad[1]:
            for_keys = (grad * row.to(grad.dtype)).to(keys.dtype)
            for_keys = for_keys.transpose(1, 2) if tokens_first else for_keys
        return for_query, for_keys, None


def _as_is(tensor: Tensor) -> Tensor:
    return tensor


def row_logits(query: Tensor, keys: Tensor, scale: float, *, gradients: bool) -> Tensor:
    """Attention logits (images, heads, T) of one query a head.

    ``query`` is (images, heads, head_dim), ``keys`` (images, heads, T, head_dim); the logits are in
    float32 (float64 for float64 input) whatever the precision of the input. With ``gradients`` they are
    part of the graph, otherwise computed without one.
    """
    if not gradients:
        with torch.no_grad():
            return _row(query, keys, scale)
    with without_checkpoint():
        return _QueryRow.apply(query, keys, scale)


class Mask(NamedTuple):
    """What is added to the logits of an attention, or hides some of them.

    Attributes:
        bias: numbers to add, or booleans that say what may be attended, (1 or images, 1 or heads, 1 or
            queries, tokens); None for nothing.
        causal: whether tokens behind the query's own are hidden.
    """

    bias: Tensor | None = None
    causal: bool = False

    def images(self, part: slice) -> Mask:
        """The mask of some of the images."""
        return self if self.bias is None or self.bias.shape[0] == 1 else self._replace(bias=self.bias[part])

    def tokens(self, part: slice) -> Mask:
        """The mask of some of the queries; not for a causal one."""
        return self if self.bias is None or self.bias.shape[2] == 1 else self._replace(bias=self.bias[:, :, part])


def pick(states: Tensor, token: int | Tensor) -> Tensor:
    """(images, heads, ...) of one token of (images, heads, tokens, ...): the same, or another for each image."""
    if isinstance(token, int):
        return states[:, :, token]
    return states[torch.arange(len(states), device=states.device), :, token.to(states.device)]


def masked_row(logits: Tensor, mask: Mask, token: int | Tensor) -> Tensor:
    """Logits (images, heads, T) of one query with the mask's row of that query applied."""
    bias = mask.bias
    if bias is not None:
        if bias.shape[2] == 1:
            row = bias[:, :, 0]
        elif isinstance(token, int):
            row = bias[:, :, token]
        else:
            row = pick(bias.expand(len(logits), *bias.shape[1:]), token)
        logits = _applied(logits, row)
    if mask.causal:
        count = logits.shape[-1]
        places = torch.arange(count, device=logits.device)
        own = token % count if isinstance(token, int) else token.to(logits.device)[:, None, None]
        logits = logits.masked_fill(places > own, _HIDDEN)
    return logits


def _applied(logits: Tensor, bias: Tensor) -> Tensor:
    if bias.dtype == torch.bool:
        return logits.masked_fill(~bias, _HIDDEN)
    return (logits + bias.to(logits.dtype)).clamp_min(_HIDDEN)


def _map_logits(queries: Tensor, keys: Tensor, scale: float, mask: Mask) -> Tensor:
    dtype = working_dtype(keys)
    with torch.autocast(keys.device.type, enabled=False):
        logits = (queries.to(dtype) @ keys.to(dtype).transpose(-1, -2)) * scale
    if mask.bias is not None:
        logits = _applied(logits, mask.bias)
    if mask.causal:
        hidden = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).triu(1)
        logits = logits.masked_fill(hidden, _HIDDEN)
    return logits


def _mean(queries: Tensor, keys: Tensor, bias: Tensor | None, weights: Tensor | None, *, scale: float) -> Tensor:
    logs = torch.log_softmax(_map_logits(queries, keys, scale, Mask(bias)), -1)
    # A mean of rows as a logarithm, finite where all of them round to 0.
    if weights is None:
        return torch.logsumexp(logs, -2) - math.log(queries.shape[-2])
    return torch.logsumexp(logs + weights.log().to(logs.dtype)[:, None, :, None], -2)


def _parts(queries: Tensor, keys: Tensor, bias: Tensor | None, weights: Tensor | None) -> Iterator[list[Any]]:
    # A few images at a time, so that what is transient stays small.
    images = max(1, _TRANSIENT // max(1, keys.shape[1] * keys.shape[2] * queries.shape[2]))
    for start in range(0, len(keys), images):
        part = slice(start, start + images)
        own = None if bias is None else Mask(bias).images(part).bias
        yield [queries[part], keys[part], own, None if weights is None else weights[part]]


class _MeanRow(torch.autograd.Function):
    """Computes its maps anew in the backward pass instead of keeping them."""

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, bias: Tensor | None, weights: Tensor | None, scale: float
    ) -> Tensor:
        ctx.save_for_backward(queries, keys, bias, weights)
        ctx.scale = scale
        return torch.cat([_mean(*part, scale=scale) for part in _parts(queries, keys, bias, weights)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, bias, weights = ctx.saved_tensors
        needed = ctx.needs_input_grad[:3]
        found: list[Tensor | None] = [
            torch.zeros_like(tensor) if need else None
            for tensor, need in zip((queries, keys, bias), needed, strict=True)
        ]
        start = 0
        for part in _parts(queries, keys, bias, weights):
            inputs = [
                tensor.detach().requires_grad_() if need else tensor
                for tensor, need in zip(part[:3], needed, strict=True)
            ]
            with torch.enable_grad():
                row = _mean(inputs[0], inputs[1], inputs[2], part[3], scale=ctx.scale)
            end = start + len(row)
            wanted = [tensor for tensor, need in zip(inputs, needed, strict=True) if need]
            values = iter(torch.autograd.grad(row, wanted, grads[0][start:end]))
            for total, need in zip(found, needed, strict=True):
                if need and total is not None:
                    value = next(values)
                    (total if len(total) == 1 and len(keys) > 1 else total[start:end]).add_(value)
            start = end
        return (*found, None, None)


def mean_logits(
    queries: Tensor, keys: Tensor, scale: float, mask: Mask, weights: Tensor | None, *, gradients: bool
) -> Tensor:
    """Logits (images, heads, T) whose softmax is the mean of the attention rows of all ``queries``.

    ``queries`` is (images, heads, queries, head_dim), ``keys`` (images, heads, T, head_dim), ``weights``
    (images, queries), summing to 1, or None for equal ones. The maps are made for a few images at a time
    and not kept. With ``gradients``, once differentiable.
    """
    if mask.causal:
        raise ValueError("a mean over patches of causal attention is not defined here")
    if not gradients:
        with torch.no_grad():
            return torch.cat([_mean(*part, scale=scale) for part in _parts(queries, keys, mask.bias, weights)])
    with without_checkpoint():
        return _MeanRow.apply(queries, keys, mask.bias, weights, scale)


def without_checkpoint() -> AbstractContextManager[Any]:
    """Inside, tensors saved for the backward pass are no business of gradient checkpointing.

    Otherwise they would be counted among those that recomputation restores, and the backward pass may come
    when the observation, and with it this computation, is gone.
    """
    return torch.autograd.graph.saved_tensors_hooks(_as_is, _as_is)


class FullMaps(Sequence[Tensor]):
    """Full attention maps of one forward, one layer at a time.

    ``maps[i]`` computes layer i's map, (images, heads, T, T), rows (queries) summing to 1, in float32,
    without gradients, from the stored queries and keys; nothing is kept. Iterate (in either direction)
    rather than make a list: the maps of ViT-L/14-336 take 511 MB an image.
    """

    def __init__(
        self,
        queries: Sequence[Tensor],
        keys: Sequence[Tensor],
        scales: Sequence[float],
        masks: Sequence[Mask] | None = None,
    ) -> None:
        self._queries = queries
        self._keys = keys
        self._scales = scales
        self._masks = masks if masks is not None else [Mask()] * len(keys)

    def __len__(self) -> int:
        return len(self._queries)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> FullMaps: ...
    def __getitem__(self, index: int | slice) -> Tensor | FullMaps:
        if isinstance(index, slice):
            return FullMaps(self._queries[index], self._keys[index], self._scales[index], self._masks[index])
        with torch.no_grad():
            logits = _map_logits(self._queries[index], self._keys[index], self._scales[index], self._masks[index])
            return torch.softmax(logits, -1)

    def chunks(self, images: int | None = None) -> Iterator[FullMaps]:
        """The same maps for a few images at a time (by default, as many as keep one layer near 64 MB)."""
        total, heads, tokens, _ = self._keys[0].shape
        size = images or max(1, 2**24 // (heads * tokens * tokens))
        for start in range(0, total, size):
            part = slice(start, start + size)
            masks = [mask.images(part) for mask in self._masks]
            yield FullMaps([q[part] for q in self._queries], [k[part] for k in self._keys], self._scales, masks)
