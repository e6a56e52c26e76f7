"""The one query row q_cls K^T, and full maps on request, from a layer's own queries and keys."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import torch
from torch import Tensor

_TRANSIENT = 2**22
"""Most elements that the product of one query with all keys may take at once."""


def _precision(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _product(query: Tensor, keys: Tensor, scale: float) -> Tensor:
    # Multiply and sum, not matmul, whose precision settings (TF32, bfloat16 products, autocast) lower.
    dtype = _precision(keys)
    images = max(1, _TRANSIENT // max(1, keys[0].numel()))
    rows = [
        (q.to(dtype).unsqueeze(-2) * k.to(dtype)).sum(-1)
        for q, k in zip(query.split(images), keys.split(images), strict=True)
    ]
    return (rows[0] if len(rows) == 1 else torch.cat(rows)) * scale


class _QueryRow(torch.autograd.Function):
    """Saves q and K as the model made them, not their float32 copies."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, keys: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(query, keys)
        ctx.scale = scale
        return _product(query, keys, scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        query, keys = ctx.saved_tensors
        grad = (grads[0] * ctx.scale).unsqueeze(-1)
        for_query = for_keys = None
        if ctx.needs_input_grad[0]:
            for_query = (grad * keys.to(grad.dtype)).sum(-2).to(query.dtype)
        if ctx.needs_input_grad[1]:
            for_keys = (grad * query.to(grad.dtype).unsqueeze(-2)).to(keys.dtype)
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
            return _product(query, keys, scale)
    # Inside a checkpointed block these tensors must not be counted among those that recomputation restores:
    # the backward pass may come when the observation, and with it this computation, is gone.
    with torch.autograd.graph.saved_tensors_hooks(_as_is, _as_is):
        return _QueryRow.apply(query, keys, scale)


class FullMaps(Sequence[Tensor]):
    """Full attention maps of one forward, one layer at a time.

    ``maps[i]`` computes layer i's map, (images, heads, T, T), rows (queries) summing to 1, in float32,
    without gradients, from the stored queries and keys; nothing is kept. Iterate (in either direction)
    rather than make a list: the maps of ViT-L/14-336 take 511 MB an image.
    """

    def __init__(self, queries: Sequence[Tensor], keys: Sequence[Tensor], scales: Sequence[float]) -> None:
        self._queries = queries
        self._keys = keys
        self._scales = scales

    def __len__(self) -> int:
        return len(self._queries)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> FullMaps: ...
    def __getitem__(self, index: int | slice) -> Tensor | FullMaps:
        if isinstance(index, slice):
            return FullMaps(self._queries[index], self._keys[index], self._scales[index])
        query, keys = self._queries[index], self._keys[index]
        dtype = _precision(keys)
        with torch.no_grad(), torch.autocast(keys.device.type, enabled=False):
            logits = query.to(dtype) @ keys.to(dtype).transpose(-1, -2)
            return torch.softmax(logits * self._scales[index], -1)

    def chunks(self, images: int | None = None) -> Iterator[FullMaps]:
        """The same maps for a few images at a time (by default, as many as keep one layer near 64 MB)."""
        total, heads, tokens, _ = self._keys[0].shape
        size = images or max(1, 2**24 // (heads * tokens * tokens))
        for start in range(0, total, size):
            part = slice(start, start + size)
            yield FullMaps([q[part] for q in self._queries], [k[part] for k in self._keys], self._scales)
