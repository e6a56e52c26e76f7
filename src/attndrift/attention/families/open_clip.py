"""The image towers of ``open_clip``; those that it takes from timm are timm's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from attndrift.attention.families.family import FAMILIES, Block, Family, MeanOfPatches, Parts, Pool, Query, Tap
from attndrift.attention.families.taps import multihead_scale, multihead_taps, scale, whole
from attndrift.models.module_utils import is_a


def _blocks(tower: Any) -> list[Block]:
    return [
        Block(f"transformer.resblocks.{index}", f"transformer.resblocks.{index}.attn")
        for index in range(len(tower.transformer.resblocks))
    ]


def _read_mask(attention: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Parts:
    mask = kwargs.get("attn_mask", args[1] if len(args) > 1 else None)
    if mask is not None:
        if mask.dim() == 3:
            mask = mask.unflatten(0, (-1, int(attention.num_heads)))  # type: ignore[arg-type]
        mask = mask[(None,) * (4 - mask.dim())]
        mask = ~mask if not mask.is_floating_point() else mask
    return {"bias": mask, "causal": False}


def _taps(attention: nn.Module) -> tuple[Tap, ...]:
    if is_a(attention, "open_clip.Attention"):
        return (Tap("", _read_mask, at="input"), Tap("ln_q", whole("query")), Tap("ln_k", whole("key")))
    return multihead_taps(attention)


def _scale(attention: nn.Module) -> float:
    return scale(attention) if is_a(attention, "open_clip.Attention") else multihead_scale(attention)


def _queries(tower: Any) -> dict[str, Query]:
    queries: dict[str, Query] = {}
    if tower.attn_pool is not None and getattr(tower, "attn_pool_contrastive", None) is None:
        # The tower's first pooling query becomes the image embedding; it sees the class token and the patches.
        queries["probe"] = Pool("attn_pool.attn", multihead_taps(tower.attn_pool.attn), multihead_scale, 1)
    return {**queries, "cls": 0, "patches": MeanOfPatches()}


def _refuses(tower: Any) -> str | None:
    for index, block in enumerate(tower.transformer.resblocks):
        attention = getattr(block.attn, "base_layer", block.attn)
        if getattr(attention, "scaled_cosine", False):
            return f"its block {index} attends by scaled cosine, whose logits are no plain products of queries and keys"
        if not is_a(attention, "MultiheadAttention", "open_clip.Attention"):
            return f"its block {index} attends by `{type(attention).__name__}`, which is not known here"
    return None


OPEN_CLIP = Family(
    name="open_clip",
    models="VisionTransformer of open_clip (CLIP, CoCa), and its towers from timm",
    classes=("open_clip.VisionTransformer",),
    blocks=_blocks,
    taps=_taps,
    scale=_scale,
    prefix_tokens=lambda tower: 1,
    queries=_queries,
    refuses=_refuses,
    batch_first=lambda tower: bool(tower.transformer.batch_first),  # type: ignore[union-attr]
)

FAMILIES.register(OPEN_CLIP)
