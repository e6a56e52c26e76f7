"""ViT of ``transformers``, also the tower of a ``ViTForImageClassification``: the embedding is the class token behind the final norm.

A study leaves a classifier and a pooler of the folder out. A ``ViTModel`` in memory keeps its pooler, whose output is then
the embedding.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from attndrift.models.backbone import BACKBONES, BackboneSpec, FolderFormat
from attndrift.models.backbones._transformers import TINY, Tower, make_processor, tower_shape

# Imports inside functions: a list of backbones needs no torch.


def _config(**sizes: Any) -> Any:
    from transformers import ViTConfig

    return ViTConfig(**sizes)


BACKBONES.register(
    BackboneSpec(
        name="vit",
        label="ViT of transformers",
        source="Dosovitskiy et al. 2021",
        classes=("transformers.ViTModel",),
        view=Tower,
        families=("vit",),
        text_tower=False,
        folder=FolderFormat(
            architectures={"vit": "ViTModel"},
            shape=tower_shape,
            configs={
                "vit-tiny": partial(_config, intermediate_size=64, **TINY),
                "vit-base": _config,
            },
            make_processor=partial(make_processor, "ViTImageProcessorPil"),
            left_out=("classifier.", "pooler."),
            image_processor="ViTImageProcessorPil",
            options={"add_pooling_layer": False},
        ),
    )
)
