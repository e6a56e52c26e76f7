"""The vision transformers of ``timm``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from attndrift.attention.families.family import FAMILIES, Block, Family, MeanOfPatches, Parts, Pool, Query, Tap
from attndrift.attention.families.taps import scale, whole
from attndrift.models.module_utils import is_a


def _read_mask(attention: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Parts:
    mask = kwargs.get("attn_mask", args[1] if len(args) > 1 else None)
    causal = bool(kwargs.get("is_causal", args[2] if len(args) > 2 else False))
    if mask is not None:
        mask = mask[(None,) * (4 - mask.dim())]
    return {"bias": mask, "causal": causal}


def _read_position(attention: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Parts:
    rope = kwargs.get("rope", args[1] if len(args) > 1 else None)
    position = None if rope is None else (rope, bool(getattr(attention, "rotate_half", False)))
    return {**_read_mask(attention, args[1:], kwargs), "position": position}


def _key(attention: nn.Module, _: tuple[Any, ...], output: Tensor) -> Parts:
    # Of grouped queries, several heads look at one key.
    groups = int(getattr(attention, "num_kv_groups", 1))
    return {"key": output if groups == 1 else output.repeat_interleave(groups, 1)}


def _rotate(states: Tensor, position: Any) -> Tensor:
    """timm's ``apply_rot_embed_cat`` on the patches: sines and cosines come side by side."""
    if position is None:
        return states
    rope, half = position
    prefix, (sin, cos) = states.shape[-2] - rope.shape[-2], rope.chunk(2, -1)
    patches = states[..., prefix:, :]
    if half:
        first, second = patches.chunk(2, -1)
        turned = torch.cat((-second, first), -1)
    else:
        turned = torch.stack((-patches[..., 1::2], patches[..., ::2]), -1).flatten(-2)
    turned = (patches * cos + turned * sin).type_as(states)
    return torch.cat((states[..., :prefix, :], turned), -2)


# The norms are there in every module, as nn.Identity where nothing is normalised.
_HEADS = (Tap("q_norm", whole("query")), Tap("k_norm", whole("key")))


def _blocks(tower: Any) -> list[Block]:
    return [Block(f"blocks.{index}", f"blocks.{index}.attn") for index in range(len(tower.blocks))]


def _queries(tower: Any) -> dict[str, Query]:
    queries: dict[str, Query] = {}
    pool = getattr(tower, "attn_pool", None)
    if is_a(pool, "AttentionPoolLatent"):
        # Eva's pooling head sees all tokens.
        prefix = int(tower.num_prefix_tokens) if getattr(tower, "pool_include_prefix", is_a(tower, "timm.Eva")) else 0
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
        own = ("EvaAttention", "AttentionRope") if is_a(tower, "timm.Eva") else ("Attention",)
        if not is_a(attention, *(f"timm.{name}" for name in own)):
            inside = "no single attention" if attention is None else f"`{type(attention).__name__}`"
            needed = " or ".join(f"`{name}`" for name in own)
            return f"its block {index} is a `{type(block).__name__}` with {inside}, where timm's own {needed} is needed"
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

EVA = Family(
    name="eva",
    models="Eva of timm (EVA-02, Perception Encoder, DINOv3, ViT with rotary positions)",
    classes=("timm.Eva",),
    blocks=_blocks,
    taps=(Tap("", _read_position, at="input"), Tap("q_norm", whole("query")), Tap("k_norm", _key)),
    scale=scale,
    prefix_tokens=lambda tower: int(tower.num_prefix_tokens),  # type: ignore[arg-type]
    queries=_queries,
    rotate=_rotate,
    refuses=_refuses,
)

FAMILIES.register(TIMM)
FAMILIES.register(EVA)
