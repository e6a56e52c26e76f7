"""``VisionTransformer`` and ``Eva`` of timm: ViT, DeiT, DINOv2, EVA-02, Perception Encoder, DINOv3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from attndrift.models.backbone import BACKBONES, Backbone, BackboneSpec, imported

if TYPE_CHECKING:
    from torch import Tensor, nn

_ROLES = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "proj"}


class TimmBackbone(Backbone):
    """A vision transformer of timm. A classifier that it may have is no part of what studies see."""

    @property
    def tower(self) -> nn.Module:
        tower: nn.Module = self.model
        return tower

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(self.model.blocks)

    @property
    def dimensions(self) -> int:
        return int(self.model.num_features)

    @property
    def final_norm(self) -> nn.Module | None:
        return final_norm_of(self.model)

    def embed(self, pixel_values: Tensor) -> Tensor:
        if getattr(self.model, "num_classes", None) == 0:
            embeddings: Tensor = self.model(pixel_values)
            return embeddings
        # Imported here: a list of backbones needs no torch.
        from attndrift.models.embedding import before_logits

        return before_logits(self.model, pixel_values)

    def adapter_pattern(self, names: Sequence[str]) -> str:
        return trunk_pattern(self.model, "", names)


def final_norm_of(trunk: Any) -> nn.Module | None:
    """The norm behind the last block of a tower of timm: before or behind its pooling."""
    norms = (getattr(trunk, name, None) for name in ("norm", "fc_norm"))
    found: nn.Module | None = next((norm for norm in norms if any(True for _ in norm.parameters())), None)  # type: ignore[union-attr]
    return found


def trunk_pattern(trunk: Any, prefix: str, names: Sequence[str]) -> str:
    """:meth:`Backbone.adapter_pattern` of a tower of timm whose names begin with ``prefix``."""
    attention = trunk.blocks[0].attn
    fused = getattr(attention, "qkv", None) is not None
    for name in names:
        if fused and name in ("q", "k", "v"):
            raise ValueError(
                f"there is no layer {name!r}: queries, keys and values are one layer, `qkv`; adapt qkv, proj, fc1, fc2"
            )
        # Its attention then multiplies with the weight of the layer, and no adapter on it is ever asked.
        past = getattr(attention, "q_bias", None) is not None and not getattr(attention, "qkv_bias_separate", False)
        if name == "qkv" and past:
            raise ValueError(
                "an adapter on 'qkv' would take no part, as this Eva multiplies with the weight itself; set "
                "`qkv_bias_separate = True` on its attention modules, or adapt proj, fc1, fc2"
            )
    layers = "|".join(_ROLES.get(name, name) for name in names)
    return rf"{prefix}blocks\.\d+\.(?:attn|mlp)\.(?:{layers})"


_MODULE = "attndrift.models.timm_models"

BACKBONES.register(
    BackboneSpec(
        name="timm",
        label="vision transformer of timm",
        source="Wightman 2019",
        classes=("timm.VisionTransformer", "timm.Eva"),
        view=TimmBackbone,
        families=("timm", "eva"),
        text_tower=False,
        load=imported(_MODULE, "load"),
        build=imported(_MODULE, "build"),
        shape=imported(_MODULE, "shape"),
        processor=imported(_MODULE, "processor"),
        repository=imported(_MODULE, "repository"),
    )
)
