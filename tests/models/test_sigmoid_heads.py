"""SigLIP: prompts as its processor makes them, and heads whose logits and loss are those of the model itself."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel
from torch.nn.functional import normalize
from transformers import PreTrainedTokenizerFast, Siglip2Tokenizer, SiglipModel, SiglipProcessor

from attndrift.methods import AdaptationSettings, adapt
from attndrift.models.backbone import backbone_of
from attndrift.models.load import load_model, load_processor
from attndrift.retention.text_encoder import class_tokens
from attndrift.retention.zero_shot import TextFeatures

CLASSES = ("Cat", "black DOG", "owl")
TEMPLATES = ("A photo of a {class}.", "{class}")
LABELS = torch.tensor([0, 1, 2])


@pytest.fixture(scope="module")
def siglip() -> SiglipModel:
    return load_model("config:siglip-tiny")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_processor("config:siglip-tiny")[0]


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(3, 3, 28, 28, generator=torch.Generator().manual_seed(0))


def _logits(model: SiglipModel, tokens: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=tokens, pixel_values=images).logits_per_image
    return logits


def _gemma_like() -> PreTrainedTokenizerFast:
    """Keeps capitals, as the tokenizer that comes with SigLIP 2 of a fixed size."""
    words = ["<pad>", "<eos>", "<unk>", "a", "photo", "of", ".", "cat", "Cat", "owl", "black", "dog", "DOG", "A"]
    made = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def test_prompts_are_those_of_the_processor(siglip: SiglipModel) -> None:
    length = siglip.config.text_config.max_position_embeddings
    texts = [template.format(**{"class": name}).lower() for name in CLASSES for template in TEMPLATES]
    processor = SiglipProcessor(load_processor("config:siglip-tiny")[1], _gemma_like())
    expected = processor(text=texts, padding="max_length", max_length=length, return_tensors="pt")["input_ids"]
    found = class_tokens(siglip, _gemma_like(), CLASSES, TEMPLATES)
    assert torch.equal(found.flatten(0, 1), expected)
    assert expected.shape == (6, length)


def test_lower_case_is_what_siglip_2s_own_tokenizer_makes() -> None:
    vocabulary = {
        "<pad>": 0,
        "<eos>": 1,
        "<bos>": 2,
        "<unk>": 3,
        "<mask>": 4,
        **{c: 5 + i for i, c in enumerate("catdog▁")},
    }
    own = Siglip2Tokenizer(vocab=vocabulary, merges=[])
    assert own("Cat DOG")["input_ids"] == own("cat dog")["input_ids"]


def test_padding_is_seen_as_in_the_training(siglip: SiglipModel, tokenizer: Any) -> None:
    """The feature of a text is that of its last token, whatever the mask of the tokenizer says."""
    tokens = class_tokens(siglip, tokenizer, CLASSES, TEMPLATES[:1])[:, 0]
    features = TextFeatures.of(siglip, tokenizer, CLASSES, TEMPLATES[:1]).features
    with torch.no_grad():
        expected = normalize(siglip.text_model(input_ids=tokens).pooler_output, dim=-1)
    torch.testing.assert_close(features, expected)
    text = backbone_of(siglip).text
    assert text is not None
    torch.testing.assert_close(normalize(text.embed(tokens), dim=-1), expected)


def test_live_logits_are_those_of_the_model(siglip: SiglipModel, tokenizer: Any, images: torch.Tensor) -> None:
    tokens = class_tokens(siglip, tokenizer, CLASSES, TEMPLATES[:1])
    model = adapt(
        copy.deepcopy(siglip), AdaptationSettings("full", head="live_text"), 3, seed=0, class_tokens=tokens
    ).eval()
    expected = _logits(siglip, tokens[:, 0], images)
    torch.testing.assert_close(model(pixel_values=images).logits, expected, rtol=1e-4, atol=1e-4)


def test_a_text_head_starts_as_the_model_up_to_the_norm(
    siglip: SiglipModel, tokenizer: Any, images: torch.Tensor
) -> None:
    text = TextFeatures.of(siglip, tokenizer, CLASSES, TEMPLATES[:1])
    model = adapt(
        copy.deepcopy(siglip), AdaptationSettings("full", head="text"), 3, seed=0, text_features=text.features
    )
    logits = model.classifier(normalize(model.embed(images), dim=-1))
    tokens = class_tokens(siglip, tokenizer, CLASSES, TEMPLATES[:1])[:, 0]
    torch.testing.assert_close(logits, _logits(siglip, tokens, images), rtol=1e-4, atol=1e-4)


def test_the_contrastive_head_trains_with_the_loss_of_the_pretraining(
    siglip: SiglipModel, tokenizer: Any, images: torch.Tensor
) -> None:
    tokens = class_tokens(siglip, tokenizer, CLASSES, TEMPLATES[:1])
    model = adapt(
        copy.deepcopy(siglip), AdaptationSettings("full", head="contrastive"), 3, seed=0, class_tokens=tokens
    ).train()
    own = siglip(input_ids=tokens[:, 0], pixel_values=images, return_loss=True).loss
    torch.testing.assert_close(model(pixel_values=images, labels=LABELS).loss.float(), own, rtol=1e-4, atol=1e-4)


def test_a_text_of_an_images_class_is_no_negative(siglip: SiglipModel, tokenizer: Any, images: torch.Tensor) -> None:
    """Two images of one class have the same text: trained as positive and negative, its loss could never fall."""
    tokens = class_tokens(siglip, tokenizer, CLASSES, TEMPLATES[:1])
    model = adapt(
        copy.deepcopy(siglip), AdaptationSettings("full", head="contrastive"), 3, seed=0, class_tokens=tokens
    ).train()
    twice = torch.tensor([0, 0, 1])
    logits = _logits(siglip, tokens[twice, 0], images)
    sign = torch.where(twice[:, None] == twice[None, :], 1.0, -1.0)
    expected = -torch.nn.functional.logsigmoid(sign * logits).sum(-1).mean()
    torch.testing.assert_close(model(pixel_values=images, labels=twice).loss.float(), expected, rtol=1e-4, atol=1e-4)
