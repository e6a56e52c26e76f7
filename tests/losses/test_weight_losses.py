"""L2-SP and EWC: values and gradients against float64, under adapters too, and where they must refuse."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from attndrift.losses import EWC, L2SP, PreservationLoss, fisher_information
from attndrift.models import load_model

TARGETS = r".*vision_model.*\.(q_proj|v_proj)"


@pytest.fixture
def clip() -> Any:
    torch.manual_seed(0)
    return load_model("config:tiny").eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(5, 3, 28, 28, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def texts(clip: Any) -> Tensor:
    return torch.randn(4, clip.config.projection_dim, generator=torch.Generator().manual_seed(2))


def encoder_parameters(clip: Any) -> dict[str, nn.Parameter]:
    tower = {f"tower.{name}": p for name, p in clip.vision_model.named_parameters()}
    return tower | {f"projection.{name}": p for name, p in clip.visual_projection.named_parameters()}


def moved(parameters: Any, seed: int = 3) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def known_fisher(clip: Any) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    return {name: torch.rand(p.shape, generator=generator) for name, p in encoder_parameters(clip).items()}


LOSSES: dict[str, Callable[..., tuple[PreservationLoss, Callable[[str], Tensor | float]]]] = {
    "l2_sp": lambda model, clip: (L2SP(model, 0.5), lambda name: 1.0),
    "ewc": lambda model, clip: (
        EWC(model, 0.5, fisher=known_fisher(clip)),
        lambda name: 0.5 * known_fisher(clip)[name].double(),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_of_plain_weights(clip: Any, name: str) -> None:
    clip.vision_model.encoder.layers[0].requires_grad_(False)
    before = {name: p.detach().clone().double() for name, p in encoder_parameters(clip).items()}
    preserve, factor = LOSSES[name](clip, copy.deepcopy(clip))
    assert preserve(clip).item() == 0, "the pretrained model is where it must stay"
    trained = {name: p for name, p in encoder_parameters(clip).items() if p.requires_grad}
    moved(trained.values())
    (loss := preserve(clip)).backward()
    expected = sum(float((factor(n) * (p.detach().double() - before[n]) ** 2).sum()) for n, p in trained.items())
    assert loss.item() == pytest.approx(0.5 * expected, rel=1e-5)
    for n, p in trained.items():
        gradient = 0.5 * 2 * factor(n) * (p.detach().double() - before[n])
        torch.testing.assert_close(p.grad.double(), gradient, rtol=1e-5, atol=1e-8, msg=n)
    assert all(p.grad is None for p in clip.text_model.parameters()), "a tower that no step uses gets no gradient"


def lora(clip: Any, **options: Any) -> Any:
    return get_peft_model(clip, LoraConfig(r=2, lora_alpha=4, target_modules=TARGETS, **options))


def effective(clip: Any, model: Any) -> dict[str, Tensor]:
    """The weights that the image encoder computes with, by plain name: adapters merged into a copy."""
    return {
        name: p.detach().double() for name, p in encoder_parameters(copy.deepcopy(model).merge_and_unload()).items()
    }


ADAPTED: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "a trained copy of the projection": {"modules_to_save": ["visual_projection"]},
}


@pytest.mark.parametrize("kind", ADAPTED)
@pytest.mark.parametrize("name", LOSSES)
def test_adapters_are_held_as_the_weights_that_they_make(clip: Any, name: str, kind: str) -> None:
    original = copy.deepcopy(clip)
    model = lora(clip, **ADAPTED[kind])
    preserve, factor = LOSSES[name](model, original)
    assert preserve(model).item() == pytest.approx(0, abs=1e-9)
    moved([p for p in model.parameters() if p.requires_grad])
    loss = preserve(model)
    now, before = effective(clip, model), encoder_parameters(original)
    expected = sum(float((factor(n) * (w - before[n].detach().double()) ** 2).sum()) for n, w in now.items())
    assert expected > 1e-3
    assert loss.item() == pytest.approx(0.5 * expected, rel=1e-3)
    # Finite differences, in the direction of the gradient.
    loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    norm = sum(float(p.grad.square().sum()) for p in trained) ** 0.5
    values = []
    for sign in (1, -2):
        with torch.no_grad():
            for p in trained:
                p.add_(p.grad, alpha=sign * 1e-2 / norm)
        values.append(preserve(model).item())
    assert values[0] - values[1] == pytest.approx(2e-2 * norm, rel=2e-2)


def computed(clip: Any) -> Any:
    parametrizations.weight_norm(clip.vision_model.encoder.layers[0].mlp.fc1)
    return clip


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "DoRA": (lambda clip: lora(clip, use_dora=True), "[qv]_proj: .*no single plain LoRA"),
    "IA3": (
        lambda clip: get_peft_model(clip, IA3Config(target_modules=TARGETS, feedforward_modules=[])),
        "[qv]_proj: .*no single plain LoRA",
    ),
    "weight norm": (computed, "fc1.*torch computes a weight"),
    "nothing trained": (lambda clip: clip.requires_grad_(False), "no weight of the image encoder is trained"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("name", LOSSES)
def test_weights_that_cannot_be_seen_are_refused_by_name(clip: Any, name: str, kind: str) -> None:
    make, message = REFUSED[kind]
    original = copy.deepcopy(clip)
    with pytest.raises(ValueError, match=message):
        LOSSES[name](make(clip), original)


def test_the_text_tower_is_held_on_request(clip: Any) -> None:
    preserve = L2SP(clip, 1.0, whole=True)
    moved([clip.logit_scale, *clip.text_model.parameters()])
    assert preserve(clip).item() > 0.1
    assert L2SP(clip, 1.0)(clip).item() == 0


def test_fisher_information_is_the_mean_squared_score(clip: Any, images: Tensor, texts: Tensor) -> None:
    labels = torch.tensor([0, 3, 1, 1, 2])
    flags = [p.requires_grad for p in clip.parameters()]
    found = fisher_information(clip, images, texts, labels=labels)
    assert [p.requires_grad for p in clip.parameters()] == flags
    exact = copy.deepcopy(clip).double()
    unit = nn.functional.normalize(texts.double(), dim=-1)
    expected = {name: torch.zeros_like(p) for name, p in encoder_parameters(exact).items()}
    for image, label in zip(images.double(), labels, strict=True):
        exact.zero_grad()
        embedding = exact.get_image_features(pixel_values=image[None]).pooler_output
        logits = exact.logit_scale.detach().exp() * nn.functional.normalize(embedding, dim=-1) @ unit.T
        logits.log_softmax(-1)[0, label].backward()
        for name, p in encoder_parameters(exact).items():
            expected[name] += (torch.zeros_like(p) if p.grad is None else p.grad.square()) / len(images)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double(), value, rtol=2e-3, atol=1e-7, msg=name)


def test_fisher_information_of_adapters_is_that_of_the_bare_model(clip: Any, images: Tensor, texts: Tensor) -> None:
    expected = fisher_information(clip, images, texts)
    model = lora(clip)
    moved([p for n, p in model.named_parameters() if "lora" in n])
    found = fisher_information(model, images, texts)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)
    first = EWC(lora(copy.deepcopy(model.unload())), 1.0, fisher=expected)
    assert first().item() == 0


@pytest.mark.slow
def test_drawn_labels_follow_the_model(clip: Any, images: Tensor, texts: Tensor) -> None:
    """Over many draws the Fisher information comes near its expectation over the labels."""
    embedding = clip.get_image_features(pixel_values=images[:1]).pooler_output
    logits = (
        clip.logit_scale.exp() * nn.functional.normalize(embedding, dim=-1) @ nn.functional.normalize(texts, dim=-1).T
    )
    chances = logits.softmax(-1)[0].tolist()
    by_label = [fisher_information(clip, images[:1], texts, labels=torch.tensor([label])) for label in range(4)]
    name = "projection.weight"
    expected = sum(chance * one[name] for chance, one in zip(chances, by_label, strict=True))
    found = fisher_information(clip, images[:1].expand(300, -1, -1, -1), texts, seed=7)[name]
    assert float((found - expected).norm() / expected.norm()) < 0.2
