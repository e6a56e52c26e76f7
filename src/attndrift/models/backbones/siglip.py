"""SigLIP of ``transformers``, and SigLIP 2 of a fixed size: two towers that were pretrained with a sigmoid loss.

The image embedding is what the pooling head puts out, which is part of the image tower; the text tower holds its own head.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from attndrift.models.backbone import BACKBONES, BackboneSpec, FolderFormat, VisionShape
from attndrift.models.backbones._transformers import TextTower, TwoTowers, make_processor, tower_shape
from attndrift.models.backbones.clip import text_shape, tiny_towers

if TYPE_CHECKING:
    from torch import Tensor

# Imports inside functions: a list of backbones needs no torch.


class SigLIPTextTower(TextTower):
    """The text tower of a ``SiglipModel``, which takes token ids that are padded to its full length."""

    @property
    def dimensions(self) -> int:
        return int(self.model.config.text_config.projection_size)


class SigLIPBackbone(TwoTowers):
    """A ``SiglipModel``."""

    text_view = SigLIPTextTower

    @property
    def dimensions(self) -> int:
        return int(self.model.config.vision_config.hidden_size)

    @property
    def logit_bias(self) -> Tensor:
        bias: Tensor = self.model.logit_bias.detach().reshape(())
        return bias


def _shape(config: Any, _: int) -> VisionShape:
    return replace(tower_shape(config.vision_config, 0), prefix_tokens=0)


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
            make_processor=partial(make_processor, "SiglipImageProcessorPil"),
            image_processor="SiglipImageProcessorPil",
            refused=_refused,
        ),
    )
)
