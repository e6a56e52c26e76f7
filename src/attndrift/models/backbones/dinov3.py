"""DINOv3 of ``transformers``: the embedding is the class token behind the final norm; positions are rotations.

Its own image processor needs torchvision, and resizes numbers between 0 and 1. Here Pillow resizes 8-bit images with the
folder's settings, as for every other backbone.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from attndrift.models.backbone import BACKBONES, BackboneSpec, FolderFormat
from attndrift.models.backbones._transformers import TINY, Tower, make_processor, tower_shape

# Imports inside functions: a list of backbones needs no torch.


class DINOv3Backbone(Tower):
    """A ``DINOv3ViTModel``."""

    norm = "norm"


def _config(**sizes: Any) -> Any:
    from transformers import DINOv3ViTConfig

    return DINOv3ViTConfig(num_register_tokens=4, **sizes)


BACKBONES.register(
    BackboneSpec(
        name="dinov3",
        label="DINOv3 of transformers",
        source="Siméoni et al. 2025",
        classes=("transformers.DINOv3ViTModel",),
        view=DINOv3Backbone,
        families=("dinov3",),
        text_tower=False,
        folder=FolderFormat(
            architectures={"dinov3_vit": "DINOv3ViTModel"},
            shape=tower_shape,
            configs={
                "dinov3-tiny": partial(_config, intermediate_size=64, **TINY),
                "dinov3-small": _config,
            },
            make_processor=partial(make_processor, "ViTImageProcessorPil", mean="imagenet"),
            image_processor="ViTImageProcessorPil",
            any_size=True,
        ),
    )
)
