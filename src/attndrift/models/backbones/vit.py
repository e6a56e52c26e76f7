"""ViT of ``transformers``, also the tower of a ``ViTForImageClassification``: the embedding is the class token behind the final norm.

A study leaves a classifier and a pooler of the folder out. A ``ViTModel`` in memory keeps its pooler, whose output is then
the embedding.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from attndrift.models.backbone import BACKBONES, BackboneSpec, FolderFormat
from attndrift.models.backbones._transformers import ImageTower, tower_shape

# Imports inside functions: a list of backbones needs no torch.


def _config(**sizes: Any) -> Any:
    from transformers import ViTConfig

    return ViTConfig(**sizes)


def _make_processor(config: Any) -> tuple[None, Any]:
    from attndrift.models.from_config import image_processor

    return None, image_processor("ViTImageProcessorPil", config.image_size)


BACKBONES.register(
    BackboneSpec(
        name="vit",
        label="ViT of transformers",
        source="Dosovitskiy et al. 2021",
        classes=("transformers.ViTModel",),
        view=ImageTower,
        families=("vit",),
        text_tower=False,
        folder=FolderFormat(
            architectures={"vit": "ViTModel"},
            shape=tower_shape,
            configs={
                "vit-tiny": partial(
                    _config, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
                    image_size=28, patch_size=7,
                ),
                "vit-base": _config,
            },
            make_processor=_make_processor,
            left_out=("classifier.", "pooler."),
            image_processor="ViTImageProcessorPil",
            options={"add_pooling_layer": False},
        ),
    )
)  # fmt: skip
