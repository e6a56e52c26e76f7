"""Adapters, towers and images that the tests of comparisons share."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPModel, CLIPVisionModel

VISION = r"vision_model\..*\.(q|v)_proj"


def adapted_with_lora(model: nn.Module, **settings: Any) -> Any:
    """``model`` with adapters whose update is not zero; the same values in the same order each time."""
    config = LoraConfig(**({"r": 4, "lora_alpha": 8, "target_modules": VISION} | settings))
    adapted = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in sorted(adapted.named_parameters()):
            if ".lora_" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return adapted.eval()


def bare_tower(clip: CLIPModel) -> CLIPVisionModel:
    """The vision tower of ``clip`` as a CLIPVisionModel of its own."""
    tower = CLIPVisionModel(copy.deepcopy(clip.config.vision_config))
    tower.load_state_dict(clip.vision_model.state_dict())
    return tower.eval()


def moved_tower(clip: CLIPModel) -> CLIPVisionModel:
    """The vision tower of ``clip`` with every weight moved a little, as fine-tuning leaves it."""
    tower = bare_tower(clip)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, parameter in sorted(tower.named_parameters()):
            parameter.mul_(1 + 0.05 * torch.randn(parameter.shape, generator=generator))
    return tower


def rename(path: Path, change: Any) -> None:
    """Rewrite a ``safetensors`` file with ``change`` applied to its names."""
    tensors = {change(name): value.clone() for name, value in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})


def change_json(path: Path, **values: Any) -> None:
    """Replace fields of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
