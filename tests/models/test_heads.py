"""Every head: what it starts from and computes against independent formulas, what a step moves, its checkpoint."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import CLIPModel

from attndrift.methods import HEADS, AdaptationSettings, ImageClassifier, adapt, load_adapted, save_adapted
from attndrift.methods.linear_probe import fit_by_steps, fit_logistic_regression
from attndrift.models import load_model

CLASSES = 5


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


PIXELS, LABELS = _random(12, 3, 28, 28), torch.arange(12) % CLASSES
TEXT = normalize(_random(CLASSES, 32, seed=1), dim=-1)
TOKENS = torch.arange(CLASSES * 2 * 3).reshape(CLASSES, 2, 3) + 5  # of two templates


def _model(head: str, clip: CLIPModel | None = None, method: str = "full", **own: Any) -> ImageClassifier:
    clip = load_model("config:tiny") if clip is None else clip
    with torch.no_grad():
        embeddings = clip.get_image_features(pixel_values=PIXELS).pooler_output
    return adapt(
        clip, AdaptationSettings(method, head=head, **own), CLASSES, 3, text_features=TEXT, class_tokens=TOKENS,
        fit_on=(embeddings, LABELS),
    )  # fmt: skip


@pytest.mark.parametrize("head", HEADS.names())
def test_a_head_leaves_the_embeddings_and_moves_where_it_is_trained(head: str) -> None:
    clip = load_model("config:tiny")
    with torch.no_grad():
        before = clip.get_image_features(pixel_values=PIXELS).pooler_output
    model = _model(head, clip)
    with torch.no_grad():
        assert torch.equal(model.eval().embed(PIXELS), before)
    start = copy.deepcopy(model.classifier.state_dict())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()(pixel_values=PIXELS, labels=LABELS).loss.backward()
    optimizer.step()
    same = {name: torch.equal(value, start[name]) for name, value in model.classifier.state_dict().items()}
    assert set(same.values()) == {not HEADS[head].trained}, same
    with torch.no_grad():
        assert not torch.equal(model.eval().embed(PIXELS), before)


@pytest.mark.parametrize("head", HEADS.names())
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_head_comes_back_from_its_checkpoint(head: str, method: str, tmp_path: Path) -> None:
    pretrained = load_model("config:tiny")
    model = _model(head, copy.deepcopy(pretrained), method).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * _random(*parameter.shape)
    save_adapted(
        model, tmp_path / "c", base_source="config:tiny", probe_pixels=PIXELS[:4], pretrained=pretrained,
        class_names=list("abcde"),
    )  # fmt: skip
    loaded = load_adapted(tmp_path / "c", base=copy.deepcopy(pretrained))
    with torch.no_grad():
        assert torch.equal(loaded(pixel_values=PIXELS).logits, model(pixel_values=PIXELS).logits)


def test_the_cosine_head_is_the_zero_shot_classifier() -> None:
    """Values and gradient against the formula in float64: exp(s) z.t / |z|."""
    model = _model("cosine").double().eval()
    embeddings = _random(7, 32, seed=4).double().requires_grad_()
    found = model.classifier(embeddings)
    scale = np.exp(model.backbone.logit_scale.item())
    z, t = embeddings.detach().numpy(), TEXT.double().numpy()
    expected = scale * z @ t.T / np.linalg.norm(z, axis=1, keepdims=True)
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-6)
    weights = _random(7, CLASSES, seed=5).double()
    (found * weights).sum().backward()
    # d/dz of w.T z / |z| is (T w - (z.T w / |z|^2) z) / |z|
    pull, norm = scale * weights.numpy() @ t, np.linalg.norm(z, axis=1, keepdims=True)
    gradient = (pull - (pull * z).sum(1, keepdims=True) / norm**2 * z) / norm
    assert embeddings.grad is not None
    np.testing.assert_allclose(embeddings.grad.numpy(), gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("c", [0.01, 0.316, 100.0])
def test_logistic_regression_is_that_of_scikit_learn(c: float) -> None:
    inputs, labels = _random(60, 8, seed=6).double() * 3 + 1, torch.arange(60) % 4
    layer = nn.Linear(8, 4).double()
    fit_logistic_regression(layer, inputs, labels, c=c)
    reference = LogisticRegression(C=c, tol=1e-10, max_iter=10_000).fit(inputs.numpy(), labels.numpy())
    # The bias is free up to one number for all classes, where the weights are penalised.
    centred = layer.bias.detach().numpy() - layer.bias.detach().numpy().mean()
    np.testing.assert_allclose(layer.weight.detach().numpy(), reference.coef_, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(centred, reference.intercept_ - reference.intercept_.mean(), rtol=1e-3, atol=1e-5)


def test_the_steps_of_a_fit_are_those_of_adamw() -> None:
    """Against AdamW written out in numpy."""
    inputs, labels = _random(20, 6, seed=7).double(), torch.arange(20) % 3
    layer = nn.Linear(6, 3).double()
    weight = np.concatenate([layer.weight.detach().numpy(), layer.bias.detach().numpy()[:, None]], axis=1)
    x, one_hot = np.concatenate([inputs.numpy(), np.ones((20, 1))], axis=1), np.eye(3)[labels.numpy()]
    first, second = np.zeros_like(weight), np.zeros_like(weight)
    for step in range(1, 6):
        logits = x @ weight.T
        share = np.exp(logits - logits.max(1, keepdims=True))
        gradient = (share / share.sum(1, keepdims=True) - one_hot).T @ x / 20
        rate = 0.1 * 0.5 * (1 + np.cos(np.pi * (step - 1) / 5))
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        weight = weight * (1 - rate * 0.01)
        weight -= rate * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    fit_by_steps(layer, inputs, labels, steps=5, learning_rate=0.1)
    np.testing.assert_allclose(layer.weight.detach().numpy(), weight[:, :-1], rtol=1e-6)
    np.testing.assert_allclose(layer.bias.detach().numpy(), weight[:, -1], rtol=1e-6)


@pytest.mark.parametrize("own", [{}, {"lp_steps": 200}])
def test_the_fitted_head_starts_as_a_linear_probe(own: dict[str, Any]) -> None:
    clip = load_model("config:tiny")
    with torch.no_grad():
        embeddings = clip.get_image_features(pixel_values=PIXELS).pooler_output
    fitted, new = _model("lp_ft", copy.deepcopy(clip), **own), _model("trained", copy.deepcopy(clip))

    def loss(model: ImageClassifier) -> float:
        return float(nn.functional.cross_entropy(model.classifier(embeddings), LABELS).detach())

    assert loss(fitted) < 0.9 * loss(new)
    again = _model("lp_ft", copy.deepcopy(clip), **own)
    assert torch.equal(again.classifier.weight, fitted.classifier.weight), "the same bits every time"


@pytest.mark.parametrize(
    ("settings", "given", "expected"),
    [
        (AdaptationSettings("full", head="lp_ft"), {}, "head is 'lp_ft'; give fit_on="),
        (AdaptationSettings("full", head="cosine"), {}, "head is 'cosine'; give the text features"),
        (AdaptationSettings("linear_probe", head="cosine"), {"text_features": TEXT}, "head is 'cosine', which is frozen"),
        (AdaptationSettings("full", lp_c=1.0), {}, "lp_c is 1.0 with method full; it belongs to lp_ft"),
        (AdaptationSettings("full", head="lp_ft", lp_c=0.0), {"fit_on": (_random(4, 32), LABELS[:4])}, "lp_c is 0"),
        (AdaptationSettings("full", head="lp_ft"), {"fit_on": (_random(4, 7), LABELS[:4])}, r"embeddings are \(4, 7\)"),
        (AdaptationSettings("full", head="lp_ft"), {"fit_on": (_random(4, 32), LABELS[:4] + 3)}, "from 0 to 4"),
    ],
)  # fmt: skip
def test_impossible_heads_are_named(settings: AdaptationSettings, given: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        adapt(load_model("config:tiny"), settings, CLASSES, 0, **given)
