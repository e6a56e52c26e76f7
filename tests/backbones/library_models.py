"""Small models of timm and open_clip with random weights, in folders of the form in which the libraries publish theirs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

SIZE = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
TIMM: dict[str, dict[str, Any]] = {
    "timm-vit": {"architecture": "vit_tiny_patch16_224", "model_args": SIZE},
    "timm-dinov2": {
        "architecture": "vit_small_patch14_reg4_dinov2", "model_args": {**SIZE, "init_values": 0.5},
    },
    "timm-siglip": {"architecture": "vit_base_patch16_siglip_224", "model_args": SIZE},
    "timm-eva02": {"architecture": "eva02_tiny_patch14_224", "model_args": SIZE},
    "timm-perception": {"architecture": "vit_pe_core_tiny_patch16_384", "model_args": SIZE},
    "timm-dinov3": {"architecture": "vit_small_patch16_dinov3", "model_args": {**SIZE, "init_values": 0.5}},
}  # fmt: skip
"""Of timm: ``config.json`` by the name of a row."""

TEXT = {"context_length": 77, "vocab_size": 60, "width": 32, "heads": 4, "layers": 2}
VISION = {"image_size": 32, "patch_size": 8, "width": 48, "layers": 2, "head_width": 16}
OPEN_CLIP: dict[str, dict[str, Any]] = {
    "open_clip-clip": {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT},
    "open_clip-qk-norm": {"embed_dim": 24, "vision_cfg": {**VISION, "qk_norm": True}, "text_cfg": TEXT},
    "open_clip-timm": {
        "embed_dim": 24, "text_cfg": TEXT,
        "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear"},
    },
    "open_clip-siglip": {
        "embed_dim": 64, "init_logit_bias": -10.0, "custom_text": True,
        "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "avg", "timm_proj": "none"},
        "text_cfg": {**TEXT, "no_causal_mask": True, "pool_type": "last", "proj_bias": True},
    },
}  # fmt: skip
"""Of open_clip: ``model_cfg`` by the name of a row."""


@cache
def _root() -> Path:
    return Path(mkdtemp(prefix="library-models-"))


@cache
def source(name: str) -> str:
    """The model of a row, as a study names it."""
    folder = _root() / name
    folder.mkdir()
    if name in TIMM:
        return f"timm:{timm_folder(folder, TIMM[name])}"
    return f"open_clip:{open_clip_folder(folder, OPEN_CLIP[name])}"


def timm_folder(folder: Path, config: Mapping[str, Any]) -> Path:
    """A folder as timm's own repositories are."""
    import timm

    model = noisy(timm.create_model(config["architecture"], num_classes=0, **config["model_args"]))
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder


def open_clip_folder(folder: Path, config: Mapping[str, Any], **preprocessing: Any) -> Path:
    """A folder as open_clip's own repositories are."""
    import open_clip

    arguments = {key: dict(value) if isinstance(value, dict) else value for key, value in config.items()}
    model = noisy((open_clip.CustomTextCLIP if arguments.pop("custom_text", False) else open_clip.CLIP)(**arguments))
    content = {"model_cfg": config, "preprocess_cfg": preprocessing}
    (folder / "open_clip_config.json").write_text(json.dumps(content), encoding="utf-8")
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    return folder


def noisy(model: nn.Module) -> nn.Module:
    """Initial weights are so small that a step would be lost in rounding, and a wrong row pass for the right one."""
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "logit" not in name:
                value.add_(0.05 * torch.randn(value.shape, generator=generator))
    return model
