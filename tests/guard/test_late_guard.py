"""A guard that is made after training began: its way back leads to the pretrained weights, or it is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from attndrift import Budget, DriftMonitor, Guard
from attndrift.drift import take_snapshot
from attndrift.models import load_model
from attndrift.models.embedding import image_embeddings


@pytest.fixture
def images() -> Tensor:
    return torch.randn(12, 3, 28, 28, generator=torch.Generator().manual_seed(1))


class Classifier(nn.Module):
    """A layer between tower and embedding that no monitor measures the weights of."""

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.clip, self.between, self.head = clip, nn.Linear(32, 16), nn.Linear(16, 4)

    def embed(self, pixels: Tensor) -> Tensor:
        return self.between(image_embeddings(self.clip, pixels))


def _full() -> nn.Module:
    return load_model("config:tiny")


def _half() -> nn.Module:
    return load_model("config:tiny", dtype=torch.bfloat16)


def _frozen_part() -> nn.Module:
    clip = load_model("config:tiny")
    clip.vision_model.embeddings.requires_grad_(False)
    return clip


def _lora() -> nn.Module:
    torch.manual_seed(0)
    return get_peft_model(load_model("config:tiny"), LoraConfig(r=2, target_modules=r".*vision_model.*q_proj"))  # type: ignore[arg-type]


def _lora_beside_a_projection() -> nn.Module:
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=r".*vision_model.*q_proj", modules_to_save=["visual_projection"])
    return get_peft_model(load_model("config:tiny"), config)  # type: ignore[arg-type]


def _wrapped() -> nn.Module:
    return nn.DataParallel(load_model("config:tiny"))


MODELS = [_full, _half, _frozen_part, _lora, _lora_beside_a_projection, _wrapped]


def _train(model: nn.Module, by: float = 0.05) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "text" not in name:
                parameter.add_(by * torch.randn(parameter.shape, generator=generator))


def _out_of_reach(monitor: DriftMonitor) -> Guard:
    """Gives up at its first check, which puts the pretrained weights back."""
    return Guard(monitor, Budget("embedding_drift", at_most=1e-15), every=1, echo=None)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("made", ["before training", "after training, against the pretrained model"])
@pytest.mark.parametrize("make", MODELS)
def test_a_late_guard_puts_the_weights_back_that_its_monitor_measures_against(
    make: Callable[[], nn.Module], made: str, images: Tensor
) -> None:
    model, pretrained = make(), make()
    images = images.to(next(model.parameters()).dtype)
    monitor = DriftMonitor(model, images)
    _train(model)
    if made != "before training":
        monitor = DriftMonitor(model, images, reference=pretrained)
    guard = _out_of_reach(monitor)
    assert guard.meter.pretrained[0].value == pytest.approx(0, abs=1e-12)
    assert monitor.measure().embedding_drift > 1e-6, "nothing is put back before a check"
    guard.check(1)
    assert guard.infeasible
    with torch.no_grad():
        now, wanted = (image_embeddings(m.eval(), images) for m in (model, pretrained))
    assert torch.equal(now, wanted)


def _snapshot(model: nn.Module, images: Tensor) -> DriftMonitor:
    return DriftMonitor(model, images, reference=take_snapshot(_full(), [images]))


def _drift_of_ones_own(model: nn.Module, images: Tensor) -> DriftMonitor:
    return DriftMonitor(model, images, weight_drift=lambda: (0.0, None))


def _plain(model: nn.Module, images: Tensor) -> DriftMonitor:
    return DriftMonitor(model, images)


def _parametrized() -> nn.Module:
    clip = load_model("config:tiny")
    nn.utils.parametrizations.weight_norm(clip.visual_projection)
    return clip


UNKNOWN: list[tuple[Callable[[], nn.Module], Callable[[nn.Module, Tensor], DriftMonitor]]] = [
    (_full, _snapshot),
    (_frozen_part, _snapshot),
    (_full, _drift_of_ones_own),
    (lambda: Classifier(_full()), _plain),
    (lambda: Classifier(_lora()), _plain),
    (_parametrized, _plain),
]


@pytest.mark.parametrize(("make", "watch"), UNKNOWN)
def test_a_late_guard_that_cannot_know_the_pretrained_weights_is_refused(
    make: Callable[[], nn.Module], watch: Callable[[nn.Module, Tensor], DriftMonitor], images: Tensor
) -> None:
    model = make()
    monitor = watch(model, images)
    early = _out_of_reach(monitor)
    assert early.meter.pretrained[0].value == pytest.approx(0, abs=1e-12)
    _train(model)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"the pretrained values are not known, the first is `.+`.* before training"):
        _out_of_reach(monitor)
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), f"{name} was touched"


def test_a_late_guard_keeps_a_budget_on_the_way_to_the_pretrained_weights(images: Tensor) -> None:
    model = _full()
    monitor = DriftMonitor(model, images)
    _train(model)
    start = monitor.measure().embedding_drift
    budget = Budget("embedding_drift", at_most=start / 4)  # type: ignore[operator]
    guard = Guard(monitor, budget, every=1, echo=None)
    guard.check(1)
    assert guard.events[-1].action == "rewound"
    assert start / 8 < monitor.measure().embedding_drift <= start / 4  # type: ignore[operator]


def test_a_guard_that_is_resumed_with_the_trained_weights_for_pretrained_is_refused(images: Tensor) -> None:
    model = _full()
    guard = Guard(DriftMonitor(model, images), Budget("embedding_drift", at_most=1.0), echo=None)
    _train(model)
    guard.check(1)
    weights, state = copy.deepcopy(model.state_dict()), guard.state_dict()

    late: Any = _full()
    late.load_state_dict(weights)
    made_late = Guard(DriftMonitor(late, images), Budget("embedding_drift", at_most=1.0), echo=None)
    with pytest.raises(
        ValueError, match="Make monitor and guard of the pretrained model, load the checkpoint's weights"
    ):
        made_late.load_state_dict(state)

    resumed: Any = _full()
    again = Guard(DriftMonitor(resumed, images), Budget("embedding_drift", at_most=1.0), echo=None)
    with pytest.raises(ValueError, match="when its state was saved"):
        again.load_state_dict(state)
    resumed.load_state_dict(weights)
    again.load_state_dict(state)
    assert again.events == guard.events
