"""timm's classifier sits inside its vision transformer. It is no part of what drifts, nor of what a guard can rewind.

Each test runs on a module with timm's interface, and on timm where that is installed.
"""

from __future__ import annotations

import copy
import importlib.util
import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parametrizations

from attndrift import Budget, DriftMonitor, Guard
from attndrift.models.embedding import image_embeddings
from timm_stand_in import VisionTransformer

Make = Callable[..., nn.Module]


def _timm(num_classes: int, distilled: bool = False) -> nn.Module:
    import timm

    name = "deit_tiny_distilled_patch16_224" if distilled else "vit_tiny_patch16_224"
    size = {"img_size": 12, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3}
    return timm.create_model(name, num_classes=num_classes, **size)


@pytest.fixture(params=["stand-in", "timm"])
def make(request: pytest.FixtureRequest) -> Make:
    if request.param == "timm" and importlib.util.find_spec("timm") is None:
        pytest.skip(
            "timm is not installed (pip install 'attndrift[timm]'): a module with its interface is tested alone"
        )
    kind = _timm if request.param == "timm" else VisionTransformer

    def seeded(num_classes: int, **options: Any) -> nn.Module:
        torch.manual_seed(0)
        return kind(num_classes, **options)

    return seeded


@pytest.fixture
def images() -> Tensor:
    return torch.randn(12, 3, 12, 12, generator=torch.Generator().manual_seed(1))


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def embed(self, pixels: Tensor) -> Tensor:
        return image_embeddings(self.inner, pixels)


def _saved_beside_adapters(model: nn.Module) -> nn.Module:
    config = LoraConfig(r=2, target_modules=["qkv"], modules_to_save=["head"])
    return get_peft_model(model, config)  # type: ignore[arg-type]


def _adapted_head(model: nn.Module) -> nn.Module:
    return get_peft_model(model, LoraConfig(r=2, target_modules=["head"], init_lora_weights=False))  # type: ignore[arg-type]


def _normed_head(model: nn.Module) -> nn.Module:
    parametrizations.weight_norm(model.head)  # type: ignore[arg-type]
    return model


@pytest.mark.one_in(5)
@pytest.mark.parametrize(
    "change",
    [lambda model: model, Wrapped, _saved_beside_adapters, _adapted_head, _normed_head, nn.DataParallel],
    ids=["plain", "wrapped", "saved beside adapters", "adapter on the head", "weight norm on the head", "DataParallel"],
)
@pytest.mark.parametrize("distilled", [False, True])
def test_a_classifier_that_moves_is_no_drift(make: Make, images: Tensor, change: Any, distilled: bool) -> None:
    model = change(make(5, distilled=distilled))
    monitor = DriftMonitor(model, images)
    heads = [value for name, value in model.named_parameters() if "head" in name]
    assert heads
    with torch.no_grad():
        for value in heads:
            value.add_(1.0)
    drift = monitor.measure()
    assert drift.weight_drift == 0
    assert drift.cka_mean == pytest.approx(1)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("pos_embed"):
                value.add_(1.0)
    assert monitor.measure().weight_drift > 0  # type: ignore[operator]


@pytest.mark.parametrize("classes", [(5, 0), (0, 5), (5, 7), (1000, 2)])
def test_a_reference_may_have_other_classes(make: Make, images: Tensor, classes: tuple[int, int]) -> None:
    pretrained, model = (make(count) for count in classes)
    kept = {name: value for name, value in pretrained.state_dict().items() if not name.startswith("head")}
    model.load_state_dict(kept, strict=False)
    monitor = DriftMonitor(model, images, reference=pretrained)
    assert monitor.measure().weight_drift == 0
    with torch.no_grad():
        model.get_parameter("pos_embed").mul_(2)
    squares = {name: float(value.detach().double().square().sum()) for name, value in pretrained.named_parameters()}
    moved, whole = squares["pos_embed"], sum(square for name, square in squares.items() if "head" not in name)
    assert monitor.measure().weight_drift == pytest.approx((moved / whole) ** 0.5, rel=1e-6)


def test_a_reference_of_another_architecture_is_told_without_advice_that_nobody_can_follow(
    make: Make, images: Tensor
) -> None:
    model, reference = make(5), make(5)
    del reference.blocks[1].norm2.weight  # type: ignore[index, union-attr]
    reference.blocks[1].norm2.register_parameter("weight", None)  # type: ignore[index, union-attr]
    for one, other in ((model, reference), (reference, model)):
        with pytest.raises(ValueError, match=r"norm2\.weight") as raised:
            DriftMonitor(one, images, reference=other)
        advised = re.findall(r"\b(\w+)=", str(raised.value))
        assert set(advised) <= set(inspect.signature(DriftMonitor).parameters)


def _trained(model: nn.Module, images: Tensor, guard: Guard, steps: int = 12) -> None:
    labels = torch.arange(len(images)) % 5
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    with guard:
        for step in range(1, steps + 1):
            loss = cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            guard.step(step)


@pytest.mark.parametrize("distilled", [False, True])
def test_a_guard_keeps_a_budget_on_weights_behind_a_classifier_that_trains(
    make: Make, images: Tensor, distilled: bool
) -> None:
    model = make(5, distilled=distilled).train()
    head = copy.deepcopy(model.head)
    monitor = DriftMonitor(model, images)
    guard = Guard(monitor, Budget("weight_drift", at_most=0.01), every=3, echo=None)
    _trained(model, images, guard)
    assert guard.summary()["outcome"] == "kept"
    assert 0.005 < monitor.measure().weight_drift <= 0.01  # type: ignore[operator]
    assert guard.events[-1].after[0].value == monitor.measure().weight_drift
    assert not torch.equal(model.head.weight, head.weight)  # type: ignore[arg-type, union-attr]


def test_what_a_guard_cannot_lower_is_reported_as_it_is(make: Make, images: Tensor) -> None:
    """A drift of one's own that counts the classifier too: giving up does not bring it back to zero."""
    model = make(5).train()
    before = model.head.weight.detach().clone()  # type: ignore[union-attr, operator]

    def of_the_head() -> tuple[float, None]:
        return float((model.head.weight.detach() - before).norm() / before.norm()), None  # type: ignore[union-attr, operator]

    monitor = DriftMonitor(model, images, weight_drift=of_the_head)
    guard = Guard(monitor, Budget("weight_drift", at_most=0.01), every=3, echo=None)
    _trained(model, images, guard)
    assert guard.infeasible
    now = of_the_head()[0]
    assert now > 0.01
    assert guard.events[-1].after[0].value == pytest.approx(now)
    assert not guard.events[-1].after[0].met
    assert f"at the end weight_drift {now:.4g}" in guard.report()
