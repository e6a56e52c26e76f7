"""DINOv2 of ``transformers``, with and without registers: the embedding is the class token behind the final norm."""

from __future__ import annotations

from functools import partial
from typing import Any

from attndrift.models.backbone import BACKBONES, BackboneSpec, FolderFormat
from attndrift.models.backbones._transformers import TINY, Tower, make_processor, tower_shape

# Imports inside functions: a list of backbones needs no torch.


def _config(*, registers: bool = False, **sizes: Any) -> Any:
    from transformers import Dinov2Config, Dinov2WithRegistersConfig

    return (Dinov2WithRegistersConfig if registers else Dinov2Config)(**sizes)


_SMALL: dict[str, Any] = {"hidden_size": 384, "num_attention_heads": 6, "image_size": 518, "patch_size": 14}
_BASE: dict[str, Any] = {"image_size": 518, "patch_size": 14}

BACKBONES.register(
    BackboneSpec(
        name="dinov2",
        label="DINOv2 of transformers",
        source="Oquab et al. 2023",
        classes=("transformers.Dinov2Model", "transformers.Dinov2WithRegistersModel"),
        view=Tower,
        families=("dinov2",),
        text_tower=False,
        folder=FolderFormat(
            architectures={"dinov2": "Dinov2Model", "dinov2_with_registers": "Dinov2WithRegistersModel"},
            shape=tower_shape,
            configs={
                "dinov2-tiny": partial(_config, mlp_ratio=2, **TINY),
                "dinov2-small": partial(_config, **_SMALL),
                "dinov2-base": partial(_config, **_BASE),
                "dinov2-registers-tiny": partial(_config, registers=True, num_register_tokens=4, mlp_ratio=2, **TINY),
                "dinov2-registers-small": partial(_config, registers=True, num_register_tokens=4, **_SMALL),
            },
            make_processor=partial(make_processor, "BitImageProcessorPil", mean="imagenet"),
            left_out=("classifier.", "pooler."),
            image_processor="BitImageProcessorPil",
            any_size=True,
        ),
    )
)
