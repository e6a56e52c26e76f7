"""The vision transformers of ``transformers``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from attndrift.attention.families.family import FAMILIES, Block, Family, MeanOfPatches, Pool, Query, Tap
from attndrift.attention.families.taps import multihead_scale, multihead_taps, scale, split_heads, transformers_mask
from attndrift.models.module_utils import is_a

_LISTS = ("encoder.layers", "encoder.layer", "layers", "model.layer")
_PROJECTIONS = (("q_proj", "k_proj"), ("query", "key"))


def block_list(tower: nn.Module) -> str | None:
    """Path of the tower's list of blocks, under one of the names that transformers uses; None for none."""
    for path in _LISTS:
        try:
            if isinstance(tower.get_submodule(path), nn.ModuleList):
                return path
        except AttributeError:
            continue
    return None


def projections(attention: nn.Module) -> tuple[str, str] | None:
    """The names of the query and key projections of an attention module; None for another module."""
    children = dict(attention.named_children())
    return next((pair for pair in _PROJECTIONS if pair[0] in children and pair[1] in children), None)


def blocks(tower: nn.Module) -> list[Block]:
    """The blocks, and in each the first submodule that holds projections for queries and keys."""
    path = block_list(tower)
    if path is None:
        return []
    found = []
    for index, block in enumerate(tower.get_submodule(path).children()):
        inside = next((name for name, module in block.named_modules() if projections(module)), "")
        found.append(Block(f"{path}.{index}", f"{path}.{index}.{inside}"))
    return found


def taps(attention: nn.Module) -> tuple[Tap, ...]:
    """The mask (or bias, or rotary positions) that the module is given, then its queries and keys."""
    query, key = projections(attention) or _PROJECTIONS[0]
    return (transformers_mask(), Tap(query, split_heads("query")), Tap(key, split_heads("key")))


def holds_blocks(module: nn.Module) -> bool:
    """Whether a module is a tower, and not a wrapper of one (as in transformers before 5.6)."""
    return block_list(module) is not None


CLIP = Family(
    name="clip",
    models=(
        "CLIP of transformers (CLIPModel, CLIPVisionModel, CLIPVisionModelWithProjection, "
        "CLIPForImageClassification) and MetaCLIP 2 (MetaClip2Model), with or without peft adapters"
    ),
    # Before it was flattened, CLIPVisionModel held the tower as a CLIPVisionTransformer.
    classes=("CLIPVisionModel", "CLIPVisionTransformer", "MetaClip2VisionModel", "MetaClip2VisionTransformer"),
    recognises=holds_blocks,
    blocks=blocks,
    # No mask: the vision tower of CLIP makes none.
    taps=(Tap("q_proj", split_heads("query")), Tap("k_proj", split_heads("key"))),
    scale=scale,
    prefix_tokens=lambda tower: 1,
    queries={"cls": 0, "patches": MeanOfPatches()},
)


def _valid_patches(tower: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    # Images of SigLIP 2 may be padded; the second argument of SigLIP is another one.
    flexible = is_a(tower, "Siglip2VisionModel", "Siglip2VisionTransformer")
    mask = kwargs.get("pixel_attention_mask", args[1] if flexible and len(args) > 1 else None)
    return mask.bool() if isinstance(mask, Tensor) else None


def _siglip_queries(tower: nn.Module) -> dict[str, Query]:
    queries: dict[str, Query] = {"patches": MeanOfPatches()}
    if isinstance(getattr(tower, "head", None), nn.Module):
        attention = tower.get_submodule("head.attention")
        probe = Pool("head.attention", multihead_taps(attention), multihead_scale)
        queries = {"probe": probe, **queries}
    return queries


SIGLIP = Family(
    name="siglip",
    models="SigLIP and SigLIP 2 (SiglipModel, Siglip2Model, their vision models and classifiers)",
    classes=("SiglipVisionModel", "SiglipVisionTransformer", "Siglip2VisionModel", "Siglip2VisionTransformer"),
    recognises=holds_blocks,
    blocks=blocks,
    taps=taps,
    scale=scale,
    prefix_tokens=lambda tower: 0,
    queries=_siglip_queries,
    valid=_valid_patches,
)

VIT = Family(
    name="vit",
    models="ViT (ViTModel, ViTForImageClassification)",
    classes=("ViTModel",),
    recognises=holds_blocks,
    blocks=blocks,
    taps=taps,
    scale=scale,
    prefix_tokens=lambda tower: 1,
    queries={"cls": 0, "patches": MeanOfPatches()},
)

DEIT = Family(
    name="deit",
    models="DeiT (DeiTModel and its classifiers)",
    classes=("DeiTModel",),
    recognises=holds_blocks,
    blocks=blocks,
    taps=taps,
    scale=scale,
    prefix_tokens=lambda tower: 2,
    queries={"cls": 0, "distillation": 1, "patches": MeanOfPatches()},
)

DINOV2 = Family(
    name="dinov2",
    models="DINOv2 with and without registers (Dinov2Model, Dinov2WithRegistersModel and their classifiers)",
    classes=("Dinov2Model", "Dinov2WithRegistersModel"),
    recognises=holds_blocks,
    blocks=blocks,
    taps=taps,
    scale=scale,
    prefix_tokens=lambda tower: 1 + int(getattr(tower.config, "num_register_tokens", 0)),
    queries={"cls": 0, "patches": MeanOfPatches()},
)


def _rotate_patches(states: Tensor, position: Any) -> Tensor:
    if position is None:
        return states
    cos, sin = position
    prefix = states.shape[-2] - sin.shape[-2]
    patches = states[..., prefix:, :]
    first, second = patches.chunk(2, -1)
    turned = patches * cos + torch.cat((-second, first), -1) * sin
    return torch.cat((states[..., :prefix, :], turned), -2)


DINOV3 = Family(
    name="dinov3",
    models="DINOv3 (DINOv3ViTModel)",
    classes=("DINOv3ViTModel",),
    recognises=holds_blocks,
    blocks=blocks,
    taps=taps,
    scale=scale,
    prefix_tokens=lambda tower: 1 + int(tower.config.num_register_tokens),  # type: ignore[union-attr, arg-type]
    queries={"cls": 0, "patches": MeanOfPatches()},
    rotate=_rotate_patches,
)

BEIT = Family(
    name="beit",
    models="BEiT (BeitModel, BeitForImageClassification)",
    # Its relative position bias reaches the attention as a mask.
    classes=("BeitModel",),
    recognises=holds_blocks,
    blocks=blocks,
    taps=taps,
    scale=scale,
    prefix_tokens=lambda tower: 1,
    queries={"cls": 0, "patches": MeanOfPatches()},
)

for _family in (CLIP, SIGLIP, VIT, DEIT, DINOV2, DINOV3, BEIT):
    FAMILIES.register(_family)
