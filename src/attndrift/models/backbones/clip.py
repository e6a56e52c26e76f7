"""CLIP of ``transformers``: OpenAI's, LAION's and MetaCLIP's models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from attndrift.models.backbone import (
    BACKBONES,
    Backbone,
    BackboneSpec,
    FolderFormat,
    TextShape,
    TowerFormat,
    VisionShape,
)
from attndrift.models.backbones._transformers import adapter_pattern, blocks_of

if TYPE_CHECKING:
    from torch import Tensor, nn

# Imports inside functions: a list of backbones needs no torch.


class CLIPBackbone(Backbone):
    """A ``CLIPModel``."""

    @property
    def tower(self) -> nn.Module:
        tower: nn.Module = self.model.vision_model
        return tower

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return blocks_of(self.model.vision_model)

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
        return adapter_pattern("vision_model", self.tower, names)

    def prune(self) -> None:
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
        return blocks_of(self.model.text_model)

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
        return adapter_pattern("text_model", self.tower, names)


def vision_shape(config: Any, _: int) -> VisionShape:
    """The sizes of the image tower of a CLIP."""
    vision = config.vision_config
    return VisionShape(
        vision.image_size, vision.patch_size, vision.hidden_size, vision.num_hidden_layers, vision.intermediate_size,
        config.projection_dim,
    )  # fmt: skip


def text_shape(config: Any) -> TextShape:
    """The sizes of the text tower."""
    text = config.text_config
    return TextShape(text.hidden_size, text.num_hidden_layers, text.intermediate_size)


def make_processor(config: Any) -> tuple[Any, Any]:
    """A tokenizer of single characters and CLIP's image processor, for a model made from ``config``."""
    from attndrift.models.from_config import character_tokenizer, image_processor

    size = config.vision_config.image_size
    return character_tokenizer(config.text_config), image_processor("CLIPImageProcessorPil", size)


def tiny_towers(
    image_size: int = 28, patch_size: int = 7, width: int = 32, layers: int = 3, heads: int = 4
) -> dict[str, dict[str, Any]]:
    """The arguments of a configuration with two small towers, for the tokenizer of :func:`make_processor`."""
    from attndrift.models.from_config import CHARACTERS

    return {
        "text_config": {
            "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "num_attention_heads": heads,
            "vocab_size": len(CHARACTERS) + 4, "max_position_embeddings": 77, "bos_token_id": 1, "eos_token_id": 3,
            "pad_token_id": 0,
        },
        "vision_config": {
            "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers,
            "num_attention_heads": heads, "image_size": image_size, "patch_size": patch_size,
        },
    }  # fmt: skip


def _tiny(width: int = 32, **sizes: int) -> Any:
    from transformers import CLIPConfig

    return CLIPConfig(**tiny_towers(width=width, **sizes), projection_dim=width)


def _vit(patch: int, size: int = 224, *, large: bool = False) -> Any:
    from transformers import CLIPConfig

    vision: dict[str, Any] = {"patch_size": patch, "image_size": size}
    text: dict[str, Any] = {}
    if large:
        vision |= {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
        }
        text = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
    return CLIPConfig(vision_config=vision, text_config=text, projection_dim=768 if large else 512)


CLASSIFIER = "CLIPForImageClassification"
"""What exports a vision tower with a classifier, under the configuration of a whole CLIP."""


_TOWER_PARTS = ("embeddings.", "encoder.", "post_layernorm.", "pre_layrnorm.")


def _place(name: str) -> str:
    # Up to version 4 of transformers a CLIPVisionModel held the tower under `vision_model.`; since 5 it is flattened.
    if name.startswith(_TOWER_PARTS):
        return f"vision_model.{name}"
    return name.removeprefix("vision_model.") if name.startswith("vision_model.vision_model.") else name


TOWER = TowerFormat(
    model_type="clip_vision_model",
    classifier=CLASSIFIER,
    with_projection="transformers.CLIPVisionModelWithProjection",
    place=_place,
    projection="visual_projection.weight",
)


def _refused(config: Any) -> str | None:
    if CLASSIFIER not in (config.architectures or ()):
        return None
    return (
        f"an export of {CLASSIFIER}, a vision tower and a classifier without text tower and projection. "
        "`attndrift compare BASE FOLDER` compares its tower with the CLIP model that it was fine-tuned from. For "
        "anything else, put the tower into that CLIPModel, clip.vision_model.load_state_dict("
        "classifier.vision_model.state_dict()), and save it whole"
    )


CONFIGS = {
    "tiny": _tiny,
    "small": lambda: _tiny(image_size=56, patch_size=8, width=128, layers=8, heads=4),
    "vit-base-patch32": lambda: _vit(32),
    "vit-base-patch16": lambda: _vit(16),
    "vit-large-patch14": lambda: _vit(14, large=True),
    "vit-large-patch14-336": lambda: _vit(14, 336, large=True),
}

BACKBONES.register(
    BackboneSpec(
        name="clip",
        label="CLIP of transformers",
        source="Radford et al. 2021",
        classes=("transformers.CLIPModel",),
        view=CLIPBackbone,
        families=("clip",),
        folder=FolderFormat(
            architectures={"clip": "CLIPModel"},
            shape=vision_shape,
            text_shape=text_shape,
            configs=CONFIGS,
            make_processor=make_processor,
            image_processor="CLIPImageProcessorPil",
            refused=_refused,
            tower=TOWER,
        ),
    )
)
