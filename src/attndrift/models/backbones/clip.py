"""CLIP of ``transformers``: OpenAI's, LAION's and MetaCLIP's models."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from attndrift.models.backbone import BACKBONES, BackboneSpec, FolderFormat, TextShape, TowerFormat, VisionShape
from attndrift.models.backbones._transformers import TextTower, Tower, TwoTowers, make_processor, tower_shape

if TYPE_CHECKING:
    from torch import nn

# Imports inside functions: a list of backbones needs no torch.


class _Projected(Tower):
    """A tower of a ``CLIPModel``, which has a projection behind it."""

    projection_name: ClassVar[str]

    @property
    def dimensions(self) -> int:
        return int(self.model.config.projection_dim)

    @property
    def projection(self) -> nn.Module:
        projection: nn.Module = self.model.get_submodule(self.projection_name)
        return projection


class CLIPTextTower(_Projected, TextTower):
    """The text tower of a ``CLIPModel``."""

    # Nothing masks padding: no token sees those behind it, and the feature is that of the end token.
    projection_name = "text_projection"


class CLIPBackbone(_Projected, TwoTowers):
    """A ``CLIPModel``."""

    projection_name = "visual_projection"
    text_view = CLIPTextTower

    def prune(self) -> None:
        from attndrift.models.prune import prune_last_block_to_cls

        prune_last_block_to_cls(self.model)


def vision_shape(config: Any, _: int) -> VisionShape:
    """The sizes of the image tower of a CLIP."""
    return replace(tower_shape(config.vision_config, 0), dimensions=config.projection_dim)


def text_shape(config: Any) -> TextShape:
    """The sizes of the text tower."""
    text = config.text_config
    return TextShape(text.hidden_size, text.num_hidden_layers, text.intermediate_size)


clip_processor = partial(make_processor, "CLIPImageProcessorPil")


def tiny_towers(
    image_size: int = 28, patch_size: int = 7, width: int = 32, layers: int = 3, heads: int = 4
) -> dict[str, dict[str, Any]]:
    """The arguments of a configuration with two small towers, for a tokenizer of single characters."""
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
            make_processor=clip_processor,
            image_processor="CLIPImageProcessorPil",
            refused=_refused,
            tower=TOWER,
        ),
    )
)
