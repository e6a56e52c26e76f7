"""Zero-shot evaluation: through the live encoder, against an independent computation, and never of an inert model."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import CLIPModel

from attndrift.methods import AdaptationSettings, adapt
from attndrift.models import load_model, load_processor
from attndrift.retention.retained import retention
from attndrift.retention.zero_shot import InertModelError, TextFeatures, evaluate_zero_shot

NAMES = ("sugar_maple", "red fox", "sea lion")


class Images:
    """Fixed random images by position."""

    pixels = torch.randn(50, 3, 28, 28, generator=torch.Generator().manual_seed(7))

    def fetch(self, positions: range) -> Tensor:
        return self.pixels[list(positions)]


@pytest.fixture(scope="module")
def clip() -> CLIPModel:
    return load_model("config:tiny")


@pytest.fixture(scope="module")
def text(clip: CLIPModel) -> TextFeatures:
    return TextFeatures.of(clip, load_processor("config:tiny")[0], NAMES)


def test_text_features_are_those_of_the_prompts(clip: CLIPModel) -> None:
    tokenizer = load_processor("config:tiny")[0]
    templates = ("a photo of a {class}.", "a drawing of the {class}.")
    found = TextFeatures.of(clip, tokenizer, NAMES, templates).features
    expected = []
    for name in ("sugar maple", "red fox", "sea lion"):
        rows = []
        for template in templates:
            inputs = tokenizer([template.replace("{class}", name)], return_tensors="pt")
            with torch.no_grad():
                row = clip.get_text_features(**{k: inputs[k] for k in ("input_ids", "attention_mask")}).pooler_output[0]
            rows.append(row.double() / row.double().norm())
        mean = torch.stack(rows).mean(0)
        expected.append(mean / mean.norm())
    torch.testing.assert_close(found.double(), torch.stack(expected), atol=1e-5, rtol=0)


def test_accuracy_is_that_of_the_nearest_class_name(clip: CLIPModel, text: TextFeatures) -> None:
    labels = np.arange(50) % 3
    result = evaluate_zero_shot(
        clip, Images(), labels, text_features=text, batch_size=7, dataset="things", split="test"
    )
    with torch.no_grad():
        embedded = clip.get_image_features(pixel_values=Images.pixels).pooler_output.double()
    cosine = (embedded / embedded.norm(dim=1, keepdim=True)) @ text.features.double().T
    expected = cosine.argmax(1).numpy()
    assert (result.predictions == expected).all()
    assert result.accuracy == pytest.approx((expected == labels).mean())
    top = cosine.topk(2).values
    np.testing.assert_allclose(result.margins, (top[:, 0] - top[:, 1]).numpy(), atol=1e-6)
    described = result.to_json()
    assert (described["dataset"], described["split"], described["n"]) == ("things", "test", 50)
    assert described["templates"] == ["a photo of a {class}."]


def test_the_live_projection_is_used(clip: CLIPModel, text: TextFeatures) -> None:
    """The first study embedded through the pretrained projection."""
    model = adapt(copy.deepcopy(clip), AdaptationSettings("full"), 4, 0)
    before = evaluate_zero_shot(model, Images(), [0] * 50, text_features=text)
    with torch.no_grad():
        model.backbone.visual_projection.weight.neg_()
    after = evaluate_zero_shot(model, Images(), [0] * 50, text_features=text)
    assert (before.predictions != after.predictions).any()


def test_a_model_that_drifted_and_did_not_move_is_refused(clip: CLIPModel, text: TextFeatures) -> None:
    model = adapt(copy.deepcopy(clip), AdaptationSettings("lora"), 4, 0)
    with torch.no_grad():
        embeddings = clip.get_image_features(pixel_values=Images.pixels[:20]).pooler_output
    arguments = {"text_features": text, "pretrained_embeddings": embeddings, "batch_size": 20}
    assert evaluate_zero_shot(model, Images(), [0] * 50, weight_drift=0.0, **arguments).moved == (0.0, 0.0)
    with pytest.raises(InertModelError, match="do not take part in the evaluation"):
        evaluate_zero_shot(model, Images(), [0] * 50, weight_drift=0.004, **arguments)
    with torch.no_grad():
        model.backbone.visual_projection.weight.mul_(1.01)
    moved = evaluate_zero_shot(model, Images(), [0] * 50, weight_drift=0.004, **arguments).moved
    assert moved is not None
    assert moved[0] == pytest.approx(0.01, rel=1e-3)


def test_retention_is_null_where_there_is_nothing_to_retain() -> None:
    assert retention(0.25, 0.5, 100) == 50.0
    assert retention(0.01, 0.0199, 100) is None
    assert retention(0.01, 0.02, 100) == 50.0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"labels": []}, "no images"),
        ({"labels": [3]}, "3 is outside the 3 class names"),
        ({"labels": [-1]}, "outside the 3 class names"),
    ],
)
def test_labels_that_cannot_be_are_named(clip: CLIPModel, text: TextFeatures, arguments: dict, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        evaluate_zero_shot(clip, Images(), text_features=text, **arguments)


def test_prompts_need_their_class(clip: CLIPModel) -> None:
    tokenizer = load_processor("config:tiny")[0]
    with pytest.raises(ValueError, match="exactly once"):
        TextFeatures.of(clip, tokenizer, NAMES, ("a photo",))
    with pytest.raises(ValueError, match="tokenizer"):
        evaluate_zero_shot(clip, Images(), [0], NAMES)
