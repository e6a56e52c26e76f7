"""MetaCLIP 2 of ``transformers``: CLIP's two towers, with a vocabulary of many languages."""

from __future__ import annotations

from typing import Any

from attndrift.models.backbone import BACKBONES, BackboneSpec, FolderFormat
from attndrift.models.backbones.clip import CLIPBackbone, clip_processor, text_shape, tiny_towers, vision_shape


class MetaCLIP2Backbone(CLIPBackbone):
    """A ``MetaClip2Model``."""

    def prune(self) -> None:
        """Nothing: its blocks are of classes of their own."""


def _tiny() -> Any:
    # Imported here: a list of backbones needs no torch.
    from transformers import MetaClip2Config

    return MetaClip2Config(**tiny_towers(layers=2), projection_dim=32)


BACKBONES.register(
    BackboneSpec(
        name="metaclip2",
        label="MetaCLIP 2 of transformers",
        source="Chuang et al. 2025",
        classes=("transformers.MetaClip2Model",),
        view=MetaCLIP2Backbone,
        families=("clip",),
        folder=FolderFormat(
            architectures={"metaclip_2": "MetaClip2Model"},
            shape=vision_shape,
            text_shape=text_shape,
            configs={"metaclip2-tiny": _tiny},
            make_processor=clip_processor,
            image_processor="CLIPImageProcessorPil",
        ),
    )
)
