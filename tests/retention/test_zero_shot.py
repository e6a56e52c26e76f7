"""Zero-shot transfer: through the live encoder, against an independent reference, and never in silence."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import CLIPModel

from attndrift.methods import AdaptationSettings, ImageClassifier, adapt
from attndrift.models import load_model, load_processor
from attndrift.retention.retained import retention, why_no_retention
from attndrift.retention.zero_shot import (
    InertModelError,
    TextFeatures,
    evaluate_zero_shot,
    refuse_same_source,
)

NAMES = ("annual crop", "forest", "sea_lake", "river", "highway")
PIXELS = torch.randn(23, 3, 28, 28, generator=torch.Generator().manual_seed(0))
LABELS = np.arange(23) % 5
TEMPLATES = ("a photo of a {class}.", "the {class}, from above.")


class _Store:
    def __init__(self) -> None:
        self.asked: list[int] = []

    def fetch(self, positions: Sequence[int]) -> Tensor:
        self.asked += list(positions)
        return PIXELS[list(positions)]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_processor("config:tiny")[0]


@pytest.fixture
def clip() -> CLIPModel:
    return load_model("config:tiny")


@pytest.fixture
def text(clip: CLIPModel, tokenizer: Any) -> TextFeatures:
    return TextFeatures.of(clip, tokenizer, NAMES)


def _moved(clip: CLIPModel, method: str = "lora", scale: float = 0.3) -> ImageClassifier:
    model = adapt(copy.deepcopy(clip), AdaptationSettings(method), 3, 0).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "classifier" not in name:
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def _reference(model: ImageClassifier, clip: CLIPModel, tokenizer: Any, templates: Sequence[str]) -> np.ndarray:
    """Cosines in float64, one prompt and one image at a time: no padding, no batch."""
    classes = []
    for name in NAMES:
        vectors = []
        for template in templates:
            tokens = tokenizer([template.replace("{class}", name.replace("_", " "))], return_tensors="pt")
            with torch.no_grad():
                output = clip.text_model(input_ids=tokens["input_ids"]).pooler_output
                vector = clip.text_projection(output)[0].double().numpy()
            vectors.append(vector / np.linalg.norm(vector))
        mean = np.mean(vectors, axis=0)
        classes.append(mean / np.linalg.norm(mean))
    rows = []
    for image in PIXELS:
        with torch.no_grad():
            pooled = model.visual(pixel_values=image[None]).pooler_output
            vector = model.backbone.visual_projection(pooled)[0].double().numpy()
        rows.append(np.stack(classes) @ (vector / np.linalg.norm(vector)))
    return np.stack(rows)


@pytest.mark.parametrize("templates", [TEMPLATES[:1], TEMPLATES])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_predictions_and_margins_are_the_references(
    method: str, templates: Sequence[str], clip: CLIPModel, tokenizer: Any
) -> None:
    model = _moved(clip, method)
    cosines = _reference(model, clip, tokenizer, templates)
    result = evaluate_zero_shot(model, PIXELS, LABELS, NAMES, tokenizer=tokenizer, templates=templates, batch_size=7)
    ordered = np.sort(cosines, axis=1)
    np.testing.assert_allclose(result.margins, ordered[:, -1] - ordered[:, -2], atol=2e-6)
    clear = result.margins > 1e-5
    assert clear.sum() > 15
    np.testing.assert_array_equal(result.predictions[clear], cosines.argmax(1)[clear])
    np.testing.assert_array_equal(result.correct, result.predictions == LABELS)
    assert result.accuracy == result.correct.mean()
    assert result.n == 23


def test_the_live_projection_takes_part(clip: CLIPModel, text: TextFeatures) -> None:
    """The first study evaluated adapted encoders through the pretrained projection."""
    model = _moved(clip, "full")
    live = evaluate_zero_shot(model, PIXELS, LABELS, text_features=text)
    stale = copy.deepcopy(model)
    stale.backbone.visual_projection.load_state_dict(clip.visual_projection.state_dict())
    assert (evaluate_zero_shot(stale, PIXELS, LABELS, text_features=text).margins != live.margins).any()


def test_images_may_come_as_a_store_a_tensor_or_batches(clip: CLIPModel, text: TextFeatures) -> None:
    store = _Store()
    results = [
        evaluate_zero_shot(clip, images, LABELS, text_features=text, batch_size=10)
        for images in (store, PIXELS, iter(PIXELS.split(10)))
    ]
    assert store.asked == list(range(23))
    for result in results[1:]:
        np.testing.assert_array_equal(result.predictions, results[0].predictions)
        np.testing.assert_array_equal(result.margins, results[0].margins)


@pytest.mark.parametrize("n", [22, 24])
def test_as_many_images_as_labels(n: int, clip: CLIPModel, text: TextFeatures) -> None:
    with pytest.raises(ValueError, match="images for"):
        evaluate_zero_shot(clip, iter(PIXELS.split(10)), np.arange(n) % 5, text_features=text)


@pytest.mark.parametrize("batch_size", [1, 8, 23, 100])
def test_the_batch_size_changes_nothing(batch_size: int, clip: CLIPModel, text: TextFeatures) -> None:
    whole = evaluate_zero_shot(clip, PIXELS, LABELS, text_features=text, batch_size=23)
    result = evaluate_zero_shot(clip, PIXELS, LABELS, text_features=text, batch_size=batch_size)
    np.testing.assert_allclose(result.margins, whole.margins, atol=2e-6)
    clear = whole.margins > 1e-5
    np.testing.assert_array_equal(result.predictions[clear], whole.predictions[clear])


def test_training_mode_gradients_and_random_state_are_left_alone(clip: CLIPModel, text: TextFeatures) -> None:
    model = _moved(clip).train()
    model.classifier.eval()
    torch.manual_seed(4)
    expected = torch.rand(2)
    torch.manual_seed(4)
    evaluate_zero_shot(model, PIXELS, LABELS, text_features=text)
    assert torch.equal(torch.rand(2), expected)
    assert model.training
    assert not model.classifier.training
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("through", ["model", "embeddings"])
def test_an_inert_model_raises(through: str, clip: CLIPModel, text: TextFeatures) -> None:
    """Adapters in the file, the pretrained model in the evaluation: the first study's 60.22%."""
    with torch.no_grad():
        embeddings = clip.get_image_features(pixel_values=PIXELS[:10]).pooler_output
    given = {"pretrained": clip} if through == "model" else {"pretrained_embeddings": embeddings}
    inert = adapt(copy.deepcopy(clip), AdaptationSettings("lora"), 3, 0)
    with pytest.raises(InertModelError, match=r"drifted by 0\.01, yet the first 10 embeddings"):
        evaluate_zero_shot(inert, PIXELS, LABELS, text_features=text, batch_size=10, weight_drift=0.01, **given)
    untouched = evaluate_zero_shot(inert, PIXELS, LABELS, text_features=text, batch_size=10, weight_drift=0.0, **given)
    assert untouched.moved == (0.0, 0.0)
    live = evaluate_zero_shot(
        _moved(clip), PIXELS, LABELS, text_features=text, batch_size=10, weight_drift=0.01, **given
    )
    assert live.moved is not None
    assert 0 < live.moved[0] <= live.moved[1]


def test_a_smallest_real_change_is_not_called_inert(clip: CLIPModel, text: TextFeatures) -> None:
    result = evaluate_zero_shot(
        _moved(clip, scale=1e-3), PIXELS, LABELS, text_features=text, pretrained=clip, weight_drift=1e-6
    )
    assert result.moved is not None
    assert result.moved[0] > 0


def test_how_far_embeddings_moved_has_a_closed_form(clip: CLIPModel, text: TextFeatures) -> None:
    model = adapt(copy.deepcopy(clip), AdaptationSettings("full"), 3, 0)
    with torch.no_grad():
        model.backbone.visual_projection.weight.mul_(1.5)
    result = evaluate_zero_shot(model, PIXELS, LABELS, text_features=text, pretrained=clip, batch_size=23)
    assert result.moved is not None
    assert result.moved[0] == pytest.approx(0.5, rel=1e-5), "every embedding is longer by half"


def test_a_record_says_what_it_is_an_accuracy_of(clip: CLIPModel, text: TextFeatures) -> None:
    bare = evaluate_zero_shot(clip, PIXELS, LABELS, text_features=text).to_json()
    assert bare["class_names"] == [*NAMES]
    assert bare["templates"] == ["a photo of a {class}."]
    assert bare["dataset"] is bare["split"] is bare["preprocessing"] is bare["embeddings_moved_mean"] is None
    told = evaluate_zero_shot(
        clip, PIXELS, LABELS, text_features=text, dataset="d", split="test", preprocessing={"size": 28}, note=1
    ).to_json()
    assert (told["dataset"], told["split"], told["preprocessing"], told["note"]) == ("d", "test", {"size": 28}, 1)


def test_text_features_are_those_of_the_frozen_tower(clip: CLIPModel, tokenizer: Any, text: TextFeatures) -> None:
    torch.testing.assert_close(text.features.norm(dim=1), torch.ones(5))
    adapted = TextFeatures.of(_moved(clip, "full").backbone, tokenizer, NAMES)
    assert torch.equal(adapted.features, text.features)


@pytest.mark.parametrize(
    ("names", "templates", "expected"),
    [
        (NAMES, ("a photo.",), "must hold {class} exactly once"),
        (NAMES, (), "must not be empty"),
        ((), TEMPLATES, "must not be empty"),
        (("sea_lake", "sea lake"), TEMPLATES, "'sea_lake' and 'sea lake' have equal tokens"),
        (("x" * 80, "y"), TEMPLATES, r"too long: \d+ tokens, and the text encoder takes 77"),
    ],
)
def test_prompts_that_cannot_be_are_named(
    names: Sequence[str], templates: Sequence[str], expected: str, clip: CLIPModel, tokenizer: Any
) -> None:
    with pytest.raises(ValueError, match=expected):
        TextFeatures.of(clip, tokenizer, names, templates)


@pytest.mark.parametrize(
    "pair", [("Bass", "bass"), ("sea  lake", "sea lake"), ("CAT", "cat"), ("a\tb", "a b"), (" x", "x")]
)
def test_two_names_of_equal_tokens_are_refused(pair: tuple[str, str], clip: CLIPModel) -> None:
    def tokenizer(texts: Sequence[str], **_: Any) -> dict[str, Tensor]:
        """As CLIP's, which takes lower case and single spaces."""
        words = [" ".join(text.lower().split()) for text in texts]
        rows = [
            [*(ord(letter) % 40 for letter in text[:60].ljust(60)), clip.config.text_config.eos_token_id]
            for text in words
        ]
        return {"input_ids": torch.tensor(rows), "attention_mask": torch.ones(len(rows), 61, dtype=torch.long)}

    with pytest.raises(ValueError, match="have equal tokens; the two classes could not be told apart"):
        TextFeatures.of(clip, tokenizer, ["other", *pair])


@pytest.mark.parametrize("name", ["", " ", "_", "__ _"])
def test_a_class_without_a_name_is_refused(name: str, clip: CLIPModel, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="class_names: number 1 is empty"):
        TextFeatures.of(clip, tokenizer, ["cat", name])


@pytest.mark.parametrize(("end", "vocabulary"), [(45, 50), (3, 20)])
def test_a_tokenizer_of_another_model_is_named(end: int, vocabulary: int, clip: CLIPModel, tokenizer: Any) -> None:
    clip.config.text_config.eos_token_id = end
    clip.config.text_config.vocab_size = vocabulary
    with pytest.raises(ValueError, match="belongs to another model"):
        TextFeatures.of(clip, tokenizer, NAMES)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"labels": []}, "there are no images to evaluate"),
        ({"labels": LABELS[:, None]}, r"labels: expected one label an image, \(images,\), got shape \(23, 1\)"),
        ({"labels": [*LABELS[:-1], 5]}, "labels: 5 is outside the 5 class names"),
        ({"labels": [*LABELS[:-1], -1]}, "labels: -1 is outside"),
        ({"text_features": None}, "text_features, or class_names and a tokenizer"),
        ({"class_names": ("a",)}, "not those of text_features"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"pretrained_embeddings": torch.zeros(24, 32)}, "of 24 images, of 23 evaluated"),
        ({"text_features": TextFeatures(torch.eye(5), NAMES, TEMPLATES)}, "5 dimensions, the image embeddings 32"),
    ],
)
def test_arguments_that_do_not_fit_are_named(
    changes: dict[str, Any], expected: str, clip: CLIPModel, text: TextFeatures
) -> None:
    arguments: dict[str, Any] = {"images": PIXELS, "labels": LABELS, "text_features": text} | changes
    with pytest.raises(ValueError, match=expected):
        evaluate_zero_shot(clip, **arguments)


def test_an_embedding_that_is_not_finite_is_named(clip: CLIPModel, text: TextFeatures) -> None:
    # Of the batch of images 16 to 19, the second one.
    passes: list[Tensor] = []

    def damage(_: nn.Module, __: object, made: Tensor) -> Tensor | None:
        passes.append(made)
        return made.index_fill(0, torch.tensor([1]), torch.nan) if len(passes) == 5 else None

    clip.visual_projection.register_forward_hook(damage)
    with pytest.raises(FloatingPointError, match="image 17"):
        evaluate_zero_shot(clip, PIXELS, LABELS, text_features=text, batch_size=4)


@given(accuracy=st.floats(0, 1), pretrained=st.floats(0, 1), n_classes=st.integers(2, 1000))
def test_retention_is_a_ratio_or_null_with_a_reason(accuracy: float, pretrained: float, n_classes: int) -> None:
    value = retention(accuracy, pretrained, n_classes)
    if pretrained * n_classes < 2 * (1 - 1e-12):
        assert value is None
    elif pretrained * n_classes > 2 * (1 + 1e-12):
        assert value == pytest.approx(100 * accuracy / pretrained)
    reason = why_no_retention(pretrained, n_classes)
    assert (reason is None) == (value is not None)


@pytest.mark.parametrize(("accuracy", "pretrained", "named"), [(1.2, 0.5, "accuracy"), (0.5, 60.2, "pretrained")])
def test_percentages_are_not_accuracies(accuracy: float, pretrained: float, named: str) -> None:
    with pytest.raises(ValueError, match=f"{named} is"):
        retention(accuracy, pretrained, 10)


def test_one_source_for_target_and_transfer_is_refused() -> None:
    refuse_same_source("eurosat", "cifar100")
    with pytest.raises(ValueError, match=r"drawn from 'CIFAR100 '.*not zero-shot"):
        refuse_same_source("cifar100", "CIFAR100 ")
