"""Tiny CLIP models of every class, plain and with adapters, and their eager maps as the reference."""

from __future__ import annotations

import copy
import os
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import peft
from transformers import (
    CLIPConfig,
    CLIPForImageClassification,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
)

WIDTH, LAYERS, HEADS, PATCHES = 32, 3, 4, 16

VISION = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "image_size": 28,
    "patch_size": 7,
    "projection_dim": 24,
}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 64,
    "max_position_embeddings": 12,
    "projection_dim": 24,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}


class Classifier(nn.Module):
    """What a user writes: the whole CLIP held by a module of one's own."""

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        self.clip = clip
        self.head = nn.Linear(24, 5)

    def forward(self, pixel_values):
        return self.head(self.clip.get_image_features(pixel_values=pixel_values).pooler_output)


KINDS = ("clip", "vision", "projection", "classification", "classifier")


def make_model(kind: str, adapters: bool = False, *, lora_dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(7)
    both = CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=24)
    vision = CLIPVisionConfig(**VISION)
    model = {
        "clip": lambda: CLIPModel(both),
        "classifier": lambda: CLIPModel(both),
        "vision": lambda: CLIPVisionModel(vision),
        "projection": lambda: CLIPVisionModelWithProjection(vision),
        "classification": lambda: CLIPForImageClassification(both),
    }[kind]()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # The initial attention is nearly uniform; make it one that a wrong row would not match.
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                parameter.mul_(6)
    if adapters:
        config = peft.LoraConfig(
            r=3,
            lora_alpha=6,
            lora_dropout=lora_dropout,
            target_modules=["q_proj", "k_proj", "v_proj", "out_proj"],
            init_lora_weights=False,
        )
        with warnings.catch_warnings():
            # peft asks the model by a name that transformers has deprecated.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
            model = peft.get_peft_model(model, config)
    if kind == "classifier":
        model = Classifier(model)
    return model.eval()


def call(model: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """Image output of any of the models."""
    if isinstance(model, Classifier):
        return model(pixels)
    base = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    if isinstance(base, CLIPModel):
        return model.get_image_features(pixel_values=pixels).pooler_output
    output = model(pixel_values=pixels)
    for field in ("image_embeds", "logits", "pooler_output"):
        if hasattr(output, field):
            return getattr(output, field)
    raise AssertionError(type(output))


def transformer(model: nn.Module) -> nn.Module:
    """The transformers model inside."""
    model = model.clip if isinstance(model, Classifier) else model
    return model.get_base_model() if isinstance(model, peft.PeftModel) else model


def checkpointing(model: nn.Module, *, reentrant: bool) -> None:
    inner = transformer(model)
    options = {"use_reentrant": reentrant}
    if hasattr(inner, "activation_checkpointing_enable"):
        inner.activation_checkpointing_enable(options)
    else:
        inner.gradient_checkpointing_enable(options)


def vision_attentions(model: nn.Module) -> list[nn.Module]:
    return [
        module
        for name, module in model.named_modules()
        if type(module).__name__ == "CLIPAttention" and "text_model" not in name
    ]


def eager_maps(
    model: nn.Module, pixels: torch.Tensor, *, copied: bool = True
) -> tuple[list[torch.Tensor], torch.Tensor, nn.Module]:
    """Full maps and output under eager attention, by hooks on the attention modules of a copy."""
    model = copy.deepcopy(model) if copied else model
    transformer(model).set_attn_implementation("eager")
    maps: list[torch.Tensor] = []
    handles = [
        attention.register_forward_hook(lambda module, args, output: maps.append(output[1]))
        for attention in vision_attentions(model)
    ]
    output = call(model, pixels)
    for handle in handles:
        handle.remove()
    assert len(maps) == LAYERS
    return maps, output, model


def patch_rows(full: torch.Tensor) -> torch.Tensor:
    """CLS row of full maps without CLS, renormalised."""
    row = full[:, :, 0, 1:]
    return row / row.sum(-1, keepdim=True)


def hook_count(model: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    kinds += ("_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(5, 3, 28, 28, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def tiny() -> SimpleNamespace:
    """The functions of this file, as a namespace: tests import nothing from a conftest."""
    return SimpleNamespace(
        KINDS=KINDS,
        LAYERS=LAYERS,
        HEADS=HEADS,
        PATCHES=PATCHES,
        WIDTH=WIDTH,
        Classifier=Classifier,
        make=make_model,
        call=call,
        transformer=transformer,
        checkpointing=checkpointing,
        attentions=vision_attentions,
        eager_maps=eager_maps,
        patch_rows=patch_rows,
        hook_count=hook_count,
    )
