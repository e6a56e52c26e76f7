"""Modules of one's own around an image encoder, whatever their forward takes and puts out, are observed and measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPVisionModel, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from attndrift import DriftMonitor, observe
from attndrift.models import load_model
from attndrift.models.embedding import image_embeddings

CLASSES = 3


class _Wrapper(nn.Module):
    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(32, CLASSES)

    def logits(self, pixels: Tensor) -> Tensor:
        if hasattr(self.encoder, "get_image_features"):
            return self.head(self.encoder.get_image_features(pixel_values=pixels).pooler_output)
        return self.head(self.encoder(pixel_values=pixels).pooler_output)


class _LabelsNeeded(_Wrapper):
    def forward(self, pixel_values: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.logits(pixel_values), labels)


class _LabelsOptional(_Wrapper):
    def forward(self, pixel_values: Tensor, labels: Any = None) -> Tensor:
        return nn.functional.cross_entropy(self.logits(pixel_values), labels)


class _LabelsUsed(_Wrapper):
    def forward(self, pixel_values: Tensor, labels: Any = None) -> Tensor:
        return self.logits(pixel_values)[labels.long()]


class _Pair(_Wrapper):
    def forward(self, pixel_values: Tensor, labels: Any = None) -> tuple[Any, Tensor]:
        return None, self.logits(pixel_values)


class _Output(_Wrapper):
    def forward(self, pixel_values: Tensor, labels: Any = None) -> ImageClassifierOutput:
        return ImageClassifierOutput(logits=self.logits(pixel_values))


class _OtherNames(_Wrapper):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.logits(x), y)


class _Batch(_Wrapper):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.logits(batch["pixel_values"])


class _Keywords(_Wrapper):
    def forward(self, **batch: Any) -> Tensor:
        return nn.functional.cross_entropy(self.logits(batch["pixel_values"]), batch["labels"])


class _Contrastive(_Wrapper):
    def forward(self, pixel_values: Tensor, input_ids: Any = None) -> Any:
        return self.encoder(pixel_values=pixel_values, input_ids=input_ids)


class _Asserting(_Wrapper):
    def forward(self, pixel_values: Tensor, labels: Any = None) -> Tensor:
        assert labels is not None
        return self.logits(pixel_values)


class _Unbound(_Wrapper):
    def forward(self, pixel_values: Tensor, labels: Any = None) -> Tensor:
        if labels is not None:
            loss = nn.functional.cross_entropy(self.logits(pixel_values), labels)
        return loss


class _Pretrained(PreTrainedModel):
    config_class = CLIPConfig
    _supports_sdpa = True

    def __init__(self, encoder: CLIPModel) -> None:
        super().__init__(encoder.config)
        self.encoder = encoder
        self.classifier = nn.Linear(32, CLASSES)

    def forward(self, pixel_values: Tensor, labels: Tensor) -> Tensor:
        states = self.encoder.get_image_features(pixel_values=pixel_values).pooler_output
        return nn.functional.cross_entropy(self.classifier(states), labels)


class _TwoTowers(nn.Module):
    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.text = CLIPTextModel(clip.config.text_config)
        self.vision = CLIPVisionModel(clip.config.vision_config)

    def forward(self, pixel_values: Tensor, input_ids: Tensor) -> Tensor:
        return self.vision(pixel_values=pixel_values).pooler_output @ self.text(input_ids=input_ids).pooler_output.T


WRAPPERS: dict[str, tuple[Callable[[CLIPModel], nn.Module], str]] = {
    "labels are needed": (_LabelsNeeded, "encoder"),
    "labels are optional, and needed": (_LabelsOptional, "encoder"),
    "an attribute of labels": (_LabelsUsed, "encoder"),
    "loss and logits": (_Pair, "encoder"),
    "an output of a classifier": (_Output, "encoder"),
    "other names": (_OtherNames, "encoder"),
    "a batch": (_Batch, "encoder"),
    "keywords": (_Keywords, "encoder"),
    "images and texts": (_Contrastive, "encoder"),
    "an assertion": (_Asserting, "encoder"),
    "an unbound loss": (_Unbound, "encoder"),
    "a PreTrainedModel of one's own": (_Pretrained, "encoder"),
    "a vision tower": (lambda clip: _LabelsNeeded(CLIPVisionModel(clip.config.vision_config)), "encoder"),
    "towers apart": (_TwoTowers, "vision"),
    "two wrappers": (lambda clip: nn.Sequential(_LabelsNeeded(clip)), "0.encoder"),
    "a wrapper under peft": (
        lambda clip: get_peft_model(_LabelsNeeded(clip), LoraConfig(target_modules=r".*vision_model.*\.q_proj")),
        "base_model.model.encoder",
    ),
    "peft inside a wrapper": (
        lambda clip: _LabelsNeeded(get_peft_model(clip, LoraConfig(target_modules=r"vision_model.*\.q_proj"))),
        "encoder",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapper_is_seen_and_its_encoders_embedding_measured(name: str) -> None:
    make, path = WRAPPERS[name]
    model = make(load_model("config:tiny")).train()
    pixels = torch.randn(6, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    encoder = model.get_submodule(path)
    model.eval()
    with torch.no_grad(), observe(model) as seen:
        first, second = image_embeddings(model, pixels), image_embeddings(model, pixels)
        assert torch.equal(first, image_embeddings(encoder, pixels))
        assert torch.equal(first, second)
    assert len(seen.attention) == 3
    assert first.shape == (6, 32)
    model.train()
    monitor = DriftMonitor(model, pixels)
    before = monitor.measure()
    assert before.embedding_drift == before.weight_drift == 0
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    after = monitor.measure()
    assert after.embedding_drift > 0
    assert after.weight_drift > 0
    assert all(module.training for module in model.modules())


def test_a_wrapper_with_an_embedding_of_its_own_is_asked_for_it() -> None:
    class Projected(_LabelsNeeded):
        def embed(self, pixel_values: Tensor) -> Tensor:
            return 2 * self.encoder.get_image_features(pixel_values=pixel_values).pooler_output

    model, pixels = Projected(load_model("config:tiny")), torch.randn(2, 3, 28, 28)
    torch.testing.assert_close(image_embeddings(model, pixels), 2 * image_embeddings(model.encoder, pixels))


def test_a_wrapper_that_puts_out_an_embedding_is_asked_for_it() -> None:
    class Projected(_Wrapper):
        def forward(self, pixel_values: Tensor) -> Any:
            states = self.encoder.get_image_features(pixel_values=pixel_values).pooler_output
            return transformers.modeling_outputs.BaseModelOutputWithPooling(pooler_output=3 * states)

    model, pixels = Projected(load_model("config:tiny")), torch.randn(2, 3, 28, 28)
    torch.testing.assert_close(image_embeddings(model, pixels), 3 * image_embeddings(model.encoder, pixels))


def test_two_encoders_are_not_guessed_at() -> None:
    class Two(_LabelsNeeded):
        def __init__(self, encoder: nn.Module) -> None:
            super().__init__(encoder)
            self.teacher = load_model("config:tiny")

    with pytest.raises(TypeError, match=r"holds 2 image encoders, encoder, teacher: .*DriftMonitor\(model\.encoder"):
        image_embeddings(Two(load_model("config:tiny")), torch.randn(2, 3, 28, 28))


def test_an_encoders_own_error_stays() -> None:
    with pytest.raises(ValueError, match="28"):
        image_embeddings(load_model("config:tiny").vision_model, torch.randn(2, 3, 35, 35))
    with pytest.raises(ValueError, match="28"):
        image_embeddings(_LabelsNeeded(load_model("config:tiny")), torch.randn(2, 3, 35, 35))
