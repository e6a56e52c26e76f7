"""What is trained and not measured is warned of; a text encoder that trains is measured where it can be."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from attndrift import Budget, DriftMonitor, Guard, evaluate_zero_shot
from attndrift.methods import AdaptationSettings, adapt
from attndrift.models import load_model, load_processor
from attndrift.retention.zero_shot import TextFeatures

NAMES = [f"thing {number}" for number in range(6)]
TOKENIZER = load_processor("config:tiny")[0]


@pytest.fixture
def images() -> Tensor:
    return torch.randn(40, 3, 28, 28, generator=torch.Generator().manual_seed(1))


def _all() -> nn.Module:
    return load_model("config:tiny")


def _text_alone() -> nn.Module:
    clip = load_model("config:tiny")
    clip.vision_model.requires_grad_(False)
    clip.visual_projection.requires_grad_(False)
    return clip


def _text_projection() -> nn.Module:
    clip = load_model("config:tiny")
    clip.text_model.requires_grad_(False)
    return clip


def _adapters_on_both() -> nn.Module:
    torch.manual_seed(0)
    return get_peft_model(load_model("config:tiny"), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))  # type: ignore[arg-type]


def _last_text_block() -> nn.Module:
    clip = load_model("config:tiny")
    clip.requires_grad_(False)
    clip.vision_model.post_layernorm.requires_grad_(True)
    clip.text_model.encoder.layers[-1].requires_grad_(True)
    return clip


def _wrapped() -> nn.Module:
    return nn.ModuleDict({"clip": load_model("config:tiny"), "head": nn.Linear(32, 3)})


def _monitor(model: nn.Module, images: Tensor) -> DriftMonitor:
    inner: Any = model["clip"] if isinstance(model, nn.ModuleDict) else model

    def embed(pixels: Tensor) -> Tensor:
        return inner.get_image_features(pixel_values=pixels).pooler_output

    return DriftMonitor(model, images[:16], embed=embed)


TEXT_TRAINS = [_all, _text_projection, _adapters_on_both, _last_text_block, _wrapped]


def _labels(model: nn.Module, images: Tensor) -> np.ndarray[Any, Any]:
    """What the pretrained model answers."""
    inner = model["clip"] if isinstance(model, nn.ModuleDict) else model
    return evaluate_zero_shot(inner, images, np.zeros(40, int), NAMES, tokenizer=TOKENIZER).predictions


def _move_texts(model: nn.Module, by: float = 0.3) -> None:
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "text" in name:
                parameter.add_(by * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("make", TEXT_TRAINS)
def test_a_text_encoder_that_no_budget_sees_is_warned_of(
    make: Callable[[], nn.Module], images: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    model = make()
    with caplog.at_level(logging.WARNING):
        Guard(_monitor(model, images), Budget("cka_mean", at_least=0.5), echo=None)
    (message,) = [record.message for record in caplog.records if record.message.startswith("guard")]
    assert "trained parameters lie outside what is measured, the first is `" in message
    assert "text" in message.partition("the first is")[2].partition(":")[0]
    assert "Budget.retention" in message


@pytest.mark.one_in(2)
@pytest.mark.parametrize("make", TEXT_TRAINS[:-1])
def test_text_features_that_stay_fixed_are_said_to(
    make: Callable[[], nn.Module], images: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    model = make()
    text = TextFeatures.of(model, TOKENIZER, NAMES)
    labels = evaluate_zero_shot(load_model("config:tiny"), images, np.zeros(40, int), text_features=text).predictions
    budget = Budget.retention(0.5, images, labels, text_features=text)
    budget = Budget.retention(0.5, images, labels, text_features=text.features) if make is _all else budget
    with caplog.at_level(logging.WARNING):
        Guard(_monitor(model, images), budget, echo=None)
    assert "Text_features were given once and stay fixed" in caplog.text


@pytest.mark.one_in(2)
@pytest.mark.parametrize("make", [_all, _text_alone, _text_projection, _adapters_on_both, _last_text_block])
def test_retention_sees_a_text_encoder_that_trains_and_the_guard_rewinds_it(
    make: Callable[[], nn.Module], images: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    model = make()
    labels = _labels(model, images)
    budget = Budget.retention(0.9, images, labels, NAMES, tokenizer=TOKENIZER, confidence=0.5)
    with caplog.at_level(logging.WARNING):
        guard = Guard(_monitor(model, images), budget, echo=None)
    assert "outside what is measured" not in caplog.text
    for by in (1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3):
        _move_texts(model, by)
        outside = evaluate_zero_shot(model, images, labels, NAMES, tokenizer=TOKENIZER).accuracy
        if outside < 0.9:
            break
    else:
        pytest.fail("the texts are to be moved far enough")
    event = guard.check(1)
    assert event.before[0].value == pytest.approx(100 * outside)
    assert event.action == "rewound"
    assert evaluate_zero_shot(model, images, labels, NAMES, tokenizer=TOKENIZER).accuracy >= 0.9


@pytest.mark.parametrize("method", ["full", "lora", "last_block"])
def test_a_usual_training_is_not_warned_of(method: str, images: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    """The classifier is new, and the texts are frozen."""
    model = adapt(load_model("config:tiny"), AdaptationSettings(method), 4, seed=0)
    labels = _labels(model.backbone, images)
    with caplog.at_level(logging.WARNING):
        budget = Budget.retention(0.5, images, labels, NAMES, tokenizer=TOKENIZER)
        Guard(DriftMonitor(model, images[:16]), [budget, Budget("cka_mean", at_least=0.5)], echo=None)
    assert not [record for record in caplog.records if record.message.startswith("guard")]


def test_a_late_guard_of_texts_is_refused(images: Tensor) -> None:
    """No monitor holds the pretrained weights of a text encoder."""
    model: Any = _all()
    monitor, budget = (
        _monitor(model, images),
        Budget.retention(0.9, images, _labels(model, images), NAMES, tokenizer=TOKENIZER),
    )
    with torch.no_grad():
        model.visual_projection.weight.mul_(1.5)
    _move_texts(model)
    with pytest.raises(ValueError, match=r"pretrained values are not known, the first is `text"):
        Guard(monitor, budget, echo=None)


LATE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "all": (_all, "text"),
    "texts alone": (_text_alone, "text"),
    "the projection of texts": (_text_projection, "text_projection"),
    "the last block of texts": (_last_text_block, r"text_model\.encoder\.layers\.\d\."),
    "wrapped": (_wrapped, r"clip\.text"),
}


@pytest.mark.one_in(3)
@pytest.mark.parametrize("reference", ["as it was", "another model"])
@pytest.mark.parametrize("kind", LATE)
def test_a_guard_that_is_made_after_texts_alone_were_trained_is_refused(
    kind: str, reference: str, images: Tensor
) -> None:
    """The image encoder is where it was, so that no measurement of the monitor shows that training has begun."""
    make, name = LATE[kind]
    model: Any = make()
    given = {} if reference == "as it was" else {"reference": copy.deepcopy(model)}
    monitor = DriftMonitor(model, images[:16], **given)
    budget = Budget.retention(0.5, images, _labels(model, images), NAMES, tokenizer=TOKENIZER)
    Guard(monitor, budget, echo=None)
    _move_texts(model)
    with pytest.raises(ValueError, match=rf"of \d+ trained parameters .* not known, the first is `{name}"):
        Guard(monitor, budget, echo=None)
