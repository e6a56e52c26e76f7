"""DINOv2 of ``transformers``, with and without registers: the embedding is the class token behind the final norm."""

from __future__ import annotations

from functools import partial
from typing import Any

from attndrift.models.backbone import BACKBONES, BackboneSpec, FolderFormat
from attndrift.models.backbones._transformers import ImageTower, tower_shape

# Imports inside functions: a list of backbones needs no torch.


def _config(*, registers: bool = False, **sizes: Any) -> Any:
    from transformers import Dinov2Config, Dinov2WithRegistersConfig

    return (Dinov2WithRegistersConfig if registers else Dinov2Config)(**sizes)


def _make_processor(config: Any) -> tuple[None, Any]:
    from attndrift.models.from_config import image_processor

    return None, image_processor("BitImageProcessorPil", config.image_size, mean="imagenet")


_TINY: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "mlp_ratio": 2, "image_size": 28, "patch_size": 7,
}  # fmt: skip
_SMALL: dict[str, Any] = {"hidden_size": 384, "num_attention_heads": 6, "image_size": 518, "patch_size": 14}
_BASE: dict[str, Any] = {"image_size": 518, "patch_size": 14}

BACKBONES.register(
    BackboneSpec(
        name="dinov2",
        label="DINOv2 of transformers",
        source="Oquab et al. 2023",
        classes=("transformers.Dinov2Model", "transformers.Dinov2WithRegistersModel"),
        view=ImageTower,
        families=("dinov2",),
        text_tower=False,
        folder=FolderFormat(
            architectures={"dinov2": "Dinov2Model", "dinov2_with_registers": "Dinov2WithRegistersModel"},
            shape=tower_shape,
            configs={
                "dinov2-tiny": partial(_config, **_TINY),
                "dinov2-small": partial(_config, **_SMALL),
                "dinov2-base": partial(_config, **_BASE),
                "dinov2-registers-tiny": partial(_config, registers=True, num_register_tokens=4, **_TINY),
                "dinov2-registers-small": partial(_config, registers=True, num_register_tokens=4, **_SMALL),
            },
            make_processor=_make_processor,
            left_out=("classifier.", "pooler."),
            image_processor="BitImageProcessorPil",
            any_size=True,
        ),
    )
)
