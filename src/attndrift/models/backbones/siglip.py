"""SigLIP of ``transformers``, and SigLIP 2 of a fixed size: two towers that were pretrained with a sigmoid loss.

The image embedding is what the pooling head puts out, which is part of the image tower; the text tower holds its own head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from attndrift.models.backbone import BACKBONES, Backbone, BackboneSpec, FolderFormat, VisionShape
from attndrift.models.backbones._transformers import adapter_pattern, blocks_of
from attndrift.models.backbones.clip import text_shape, tiny_towers

if TYPE_CHECKING:
    from torch import Tensor, nn

# Imports inside functions: a list of backbones needs no torch.


class SigLIPBackbone(Backbone):
    """A ``SiglipModel``."""

    @property
    def tower(self) -> nn.Module:
        tower: nn.Module = self.model.vision_model
        return tower

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return blocks_of(self.tower)

    @property
    def dimensions(self) -> int:
        return int(self.model.config.vision_config.hidden_size)

    @property
    def final_norm(self) -> nn.Module:
        norm: nn.Module = self.model.vision_model.post_layernorm
        return norm

    @property
    def logit_scale(self) -> Tensor:
        scale: Tensor = self.model.logit_scale.detach().reshape(())
        return scale

    @property
    def logit_bias(self) -> Tensor:
        bias: Tensor = self.model.logit_bias.detach().reshape(())
        return bias

    @property
    def temperature(self) -> nn.Parameter:
        parameter: nn.Parameter = self.model.logit_scale
        return parameter

    @property
    def text(self) -> SigLIPTextTower:
        return SigLIPTextTower(self.model)

    @property
    def text_encoder(self) -> nn.Module:
        encoder: nn.Module = self.model
        return encoder

    def embed(self, pixel_values: Tensor) -> Tensor:
        embeddings: Tensor = self.tower(pixel_values=pixel_values).pooler_output
        return embeddings

    def adapter_pattern(self, names: Sequence[str]) -> str:
        return adapter_pattern("vision_model", self.tower, names)


class SigLIPTextTower(Backbone):
    """The text tower of a ``SiglipModel``, which takes token ids that are padded to its full length."""

    of_texts = True

    @property
    def tower(self) -> nn.Module:
        tower: nn.Module = self.model.text_model
        return tower

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return blocks_of(self.tower)

    @property
    def dimensions(self) -> int:
        return int(self.model.config.text_config.projection_size)

    @property
    def final_norm(self) -> nn.Module:
        norm: nn.Module = self.model.text_model.final_layer_norm
        return norm

    def embed(self, pixel_values: Tensor) -> Tensor:
        embeddings: Tensor = self.tower(input_ids=pixel_values).pooler_output
        return embeddings

    def adapter_pattern(self, names: Sequence[str]) -> str:
        return adapter_pattern("text_model", self.tower, names)


def _shape(config: Any, _: int) -> VisionShape:
    vision = config.vision_config
    return VisionShape(
        vision.image_size, vision.patch_size, vision.hidden_size, vision.num_hidden_layers, vision.intermediate_size,
        vision.hidden_size, prefix_tokens=0,
    )  # fmt: skip


def _make_processor(config: Any) -> tuple[Any, Any]:
    from attndrift.models.from_config import character_tokenizer, image_processor

    size = config.vision_config.image_size
    return character_tokenizer(config.text_config), image_processor("SiglipImageProcessorPil", size)


def _tiny() -> Any:
    from transformers import SiglipConfig

    towers = tiny_towers(layers=2)
    towers["text_config"]["projection_size"] = towers["vision_config"]["hidden_size"]
    return SiglipConfig(**towers)


def _base() -> Any:
    from transformers import SiglipConfig

    # The ids that its own tokenizer has for the start and end of a text.
    return SiglipConfig(text_config={"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 1}, vision_config={})


def _refused(config: Any) -> str | None:
    vision = getattr(config, "vision_config", None) or {}
    values = vision if isinstance(vision, dict) else vision.to_dict()  # of a file, or of transformers
    if values.get("vision_use_head", True):
        return None
    return "its image tower has no pooling head, so that its embedding has no name. Give a model with `vision_use_head`"


BACKBONES.register(
    BackboneSpec(
        name="siglip",
        label="SigLIP of transformers",
        source="Zhai et al. 2023, Tschannen et al. 2025",
        classes=("transformers.SiglipModel",),
        view=SigLIPBackbone,
        families=("siglip",),
        folder=FolderFormat(
            architectures={"siglip": "SiglipModel"},
            shape=_shape,
            text_shape=text_shape,
            configs={"siglip-tiny": _tiny, "siglip-base": _base},
            make_processor=_make_processor,
            image_processor="SiglipImageProcessorPil",
            refused=_refused,
        ),
    )
)
