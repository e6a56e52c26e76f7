"""The vision transformers of ``timm``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from attndrift.attention.families.family import FAMILIES, Block, Family, MeanOfPatches, Parts, Pool, Query, Tap
from attndrift.attention.families.taps import scale, whole
from attndrift.models.module_utils import is_a


def _read_mask(attention: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Parts:
    mask = kwargs.get("attn_mask", args[1] if len(args) > 1 else None)
    causal = bool(kwargs.get("is_causal", args[2] if len(args) > 2 else False))
    if mask is not None:
        mask = mask[(None,) * (4 - mask.dim())]
    return {"bias": mask, "causal": causal}


# The norms are there in every module, as nn.Identity where nothing is normalised.
_HEADS = (Tap("q_norm", whole("query")), Tap("k_norm", whole("key")))


def _blocks(tower: Any) -> list[Block]:
    return [Block(f"blocks.{index}", f"blocks.{index}.attn") for index in range(len(tower.blocks))]


def _queries(tower: Any) -> dict[str, Query]:
    queries: dict[str, Query] = {}
    pool = getattr(tower, "attn_pool", None)
    if is_a(pool, "AttentionPoolLatent"):
        prefix = int(tower.num_prefix_tokens) if getattr(tower, "pool_include_prefix", False) else 0
        queries["probe"] = Pool("attn_pool", _HEADS, scale, prefix)
    if tower.cls_token is not None:
        queries["cls"] = 0
    if getattr(tower, "dist_token", None) is not None:
        queries["distillation"] = 1
    queries["patches"] = MeanOfPatches()
    return queries


def _refuses(tower: Any) -> str | None:
    for index, block in enumerate(tower.blocks):
        attention = getattr(block, "attn", None)
        if not is_a(attention, "timm.Attention"):
            inside = "no single attention" if attention is None else f"`{type(attention).__name__}`"
            return (
                f"its block {index} is a `{type(block).__name__}` with {inside}, where timm's own `Attention` is needed"
            )
    return None


TIMM = Family(
    name="timm",
    models="VisionTransformer of timm (with class token, registers, pooled by attention or on average)",
    classes=("timm.VisionTransformer",),
    blocks=_blocks,
    taps=(Tap("", _read_mask, at="input"), *_HEADS),
    scale=scale,
    prefix_tokens=lambda tower: int(tower.num_prefix_tokens),  # type: ignore[arg-type]
    queries=_queries,
    refuses=_refuses,
)

FAMILIES.register(TIMM)
