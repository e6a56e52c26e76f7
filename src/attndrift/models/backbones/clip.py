"""CLIP of ``transformers``: OpenAI's, LAION's and MetaCLIP's models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attndrift.models.backbone import BACKBONES, Backbone, BackboneSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

_LAYERS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "out_proj"}


class CLIPBackbone(Backbone):
    """A ``CLIPModel``."""

    @property
    def tower(self) -> nn.Module:
        tower: nn.Module = self.model.vision_model
        return tower

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(self.model.vision_model.encoder.layers)

    @property
    def dimensions(self) -> int:
        return int(self.model.config.projection_dim)

    @property
    def final_norm(self) -> nn.Module:
        norm: nn.Module = self.model.vision_model.post_layernorm
        return norm

    @property
    def projection(self) -> nn.Module:
        projection: nn.Module = self.model.visual_projection
        return projection

    @property
    def logit_scale(self) -> Tensor:
        scale: Tensor = self.model.logit_scale.detach()
        return scale

    @property
    def temperature(self) -> nn.Parameter:
        parameter: nn.Parameter = self.model.logit_scale
        return parameter

    @property
    def text(self) -> CLIPTextTower:
        return CLIPTextTower(self.model)

    def embed(self, pixel_values: Tensor) -> Tensor:
        embeddings: Tensor = self.projection(self.tower(pixel_values=pixel_values).pooler_output)
        return embeddings

    @property
    def text_encoder(self) -> nn.Module:
        encoder: nn.Module = self.model
        return encoder

    def adapter_pattern(self, names: Sequence[str]) -> str:
        return _pattern("vision_model", names)

    def prune(self) -> None:
        # Imported here: a list of backbones needs no torch.
        from attndrift.models.prune import prune_last_block_to_cls

        prune_last_block_to_cls(self.model)


class CLIPTextTower(Backbone):
    """The text tower of a ``CLIPModel``."""

    of_texts = True

    @property
    def tower(self) -> nn.Module:
        tower: nn.Module = self.model.text_model
        return tower

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(self.model.text_model.encoder.layers)

    @property
    def dimensions(self) -> int:
        return int(self.model.config.projection_dim)

    @property
    def final_norm(self) -> nn.Module:
        norm: nn.Module = self.model.text_model.final_layer_norm
        return norm

    @property
    def projection(self) -> nn.Module:
        projection: nn.Module = self.model.text_projection
        return projection

    def embed(self, pixel_values: Tensor) -> Tensor:
        # Nothing masks padding: no token sees those behind it, and the feature is that of the end token.
        embeddings: Tensor = self.projection(self.tower(input_ids=pixel_values).pooler_output)
        return embeddings

    def adapter_pattern(self, names: Sequence[str]) -> str:
        return _pattern("text_model", names)


def _pattern(tower: str, names: Sequence[str]) -> str:
    # A list of names would adapt both towers: their layers have the same names.
    layers = "|".join(_LAYERS.get(name, name) for name in names)
    return rf"{tower}\.encoder\.layers\.\d+\.(?:self_attn|mlp)\.(?:{layers})"


BACKBONES.register(
    BackboneSpec(
        name="clip",
        label="CLIP of transformers",
        source="Radford et al. 2021",
        classes=("transformers.CLIPModel",),
        view=CLIPBackbone,
        families=("clip",),
    )
)
