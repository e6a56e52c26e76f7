"""CLIP and SigLIP of open_clip, with towers of its own or of timm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from attndrift.models.backbone import BACKBONES, Backbone, BackboneSpec, imported
from attndrift.models.backbones.timm import final_norm_of, trunk_pattern

if TYPE_CHECKING:
    from torch import Tensor, nn

_ROLES = {"out": "out_proj", "fc1": "c_fc", "fc2": "c_proj"}


def _is_a(module: Any, name: str) -> bool:
    from attndrift.models.module_utils import is_a  # a list of backbones needs no torch

    return is_a(module, name)


class OpenCLIPBackbone(Backbone):
    """A ``CLIP`` or ``CustomTextCLIP`` of open_clip."""

    @property
    def tower(self) -> nn.Module:
        visual = self.model.visual
        tower: nn.Module = visual.trunk if self._of_timm else visual
        return tower

    @property
    def _of_timm(self) -> bool:
        return _is_a(self.model.visual, "open_clip.TimmModel")

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(self.model.visual.trunk.blocks if self._of_timm else self.model.visual.transformer.resblocks)

    @property
    def dimensions(self) -> int:
        visual = self.model.visual
        if not self._of_timm:
            return int(visual.output_dim)
        layers = [part.out_features for part in visual.head.modules() if hasattr(part, "out_features")]
        return int(layers[-1] if layers else visual.trunk.num_classes or visual.trunk.num_features)

    @property
    def final_norm(self) -> nn.Module | None:
        return final_norm_of(self.model.visual.trunk) if self._of_timm else self.model.visual.ln_post

    @property
    def projection(self) -> nn.Module | None:
        head: nn.Module | None = self.model.visual.head if self._of_timm else None
        return None if head is None or not any(True for _ in head.parameters()) else head

    @property
    def projection_in_tower(self) -> Sequence[str]:
        if self._of_timm:
            # A classifier of timm, which open_clip uses as its projection.
            return [f"head.{name}" for name, _ in self.model.visual.trunk.head.named_parameters()]
        return [] if self.model.visual.proj is None else ["proj"]

    @property
    def logit_scale(self) -> Tensor:
        scale: Tensor = self.model.logit_scale.detach().reshape(())
        return scale

    @property
    def logit_bias(self) -> Tensor | None:
        bias = getattr(self.model, "logit_bias", None)
        return None if bias is None else bias.detach().reshape(())

    @property
    def temperature(self) -> nn.Parameter:
        parameter: nn.Parameter = self.model.logit_scale
        return parameter

    @property
    def text(self) -> OpenCLIPText | None:
        return (
            OpenCLIPText(self.model) if _is_a(getattr(self.model, "text", None), "open_clip.TextTransformer") else None
        )

    def embed(self, pixel_values: Tensor) -> Tensor:
        found = self.model.encode_image(pixel_values)
        # A tower that also puts out its tokens puts the embedding first.
        embeddings: Tensor = found[0] if isinstance(found, tuple) else found
        return embeddings

    @property
    def text_encoder(self) -> nn.Module:
        encoder: nn.Module = self.model
        return encoder

    def adapter_pattern(self, names: Sequence[str]) -> str:
        if self._of_timm:
            return trunk_pattern(self.model.visual.trunk, r"visual\.trunk\.", names)
        return _pattern(self.model.visual.transformer, r"visual\.", names)


class OpenCLIPText(Backbone):
    """The text tower of a ``CustomTextCLIP``, in which form studies load every model."""

    of_texts = True

    @property
    def tower(self) -> nn.Module:
        tower: nn.Module = self.model.text
        return tower

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(self.model.text.transformer.resblocks)

    @property
    def dimensions(self) -> int:
        return int(self.model.text.output_dim)

    @property
    def final_norm(self) -> nn.Module:
        norm: nn.Module = self.model.text.ln_final
        return norm

    @property
    def projection_in_tower(self) -> Sequence[str]:
        return [name for name, _ in self.model.text.named_parameters() if name.startswith("text_projection")]

    def embed(self, pixel_values: Tensor) -> Tensor:
        embeddings: Tensor = self.model.encode_text(pixel_values)
        return embeddings

    def adapter_pattern(self, names: Sequence[str]) -> str:
        return _pattern(self.model.text.transformer, r"text\.", names)


def _pattern(transformer: Any, prefix: str, names: Sequence[str]) -> str:
    fused = _is_a(transformer.resblocks[0].attn, "MultiheadAttention")
    for name in names:
        layer = _ROLES.get(name, name)
        if layer in ("q", "k", "v", "attn", "in_proj") or (layer == "out_proj" and fused):
            why = (
                "its attention is torch's MultiheadAttention, which reads its weights past any adapter"
                if fused
                else "queries, keys and values are one parameter, which no adapter goes into"
            )
            possible = "fc1 and fc2" if fused else "out, fc1 and fc2"
            raise ValueError(f"there is no place for an adapter in {name!r}: {why}; adapt {possible}")
    layers = "|".join(_ROLES.get(name, name) for name in names)
    return rf"{prefix}transformer\.resblocks\.\d+\.(?:attn|mlp)\.(?:{layers})"


_MODULE = "attndrift.models.open_clip_models"

BACKBONES.register(
    BackboneSpec(
        name="open_clip",
        label="CLIP of open_clip",
        source="Ilharco et al. 2021",
        classes=("open_clip.CLIP", "open_clip.CustomTextCLIP"),
        view=OpenCLIPBackbone,
        families=("open_clip", "timm", "eva"),
        load=imported(_MODULE, "load"),
        build=imported(_MODULE, "build"),
        shape=imported(_MODULE, "shape"),
        processor=imported(_MODULE, "processor"),
        repository=imported(_MODULE, "repository"),
    )
)
