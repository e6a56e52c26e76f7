"""Weight drift is that of the weights which a layer multiplies with, whatever torch computes them from.

The reference asks the layers themselves: the images of the unit vectors are the columns of the weight.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm
from transformers import CLIPModel

from attndrift import DriftMonitor
from attndrift.methods import AdaptationSettings, adapt, weight_drift
from attndrift.models import load_model
from attndrift.models.computed import copy_without_hooks

Change = Callable[[nn.Module], Any]


class LowRank(nn.Module):
    """LoRA without peft: the sum of a weight and 2 B A; stochastic in training, as with dropout."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(2, columns, generator=torch.Generator().manual_seed(2)))
        self.b = nn.Parameter(torch.zeros(rows, 2))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + 2 * self.b @ nn.functional.dropout(self.a, 0.5, self.training)


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight / 2


def _layers(model: nn.Module) -> list[nn.Linear]:
    """The layers that are made otherwise: square and not."""
    return [
        part for name, part in model.named_modules()
        if "vision_model" in name and name.rpartition(".")[2] in ("q_proj", "fc1") and isinstance(part, nn.Linear)
    ]  # fmt: skip


def _each(change: Callable[[nn.Linear], Any]) -> Change:
    def all_layers(model: nn.Module) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the older functions of torch are deprecated
            for layer in _layers(model):
                change(layer)

    return all_layers


def _low_rank(layer: nn.Linear) -> None:
    parametrize.register_parametrization(layer, "weight", LowRank(layer.out_features, layer.in_features))
    layer.parametrizations.weight.original.requires_grad_(False)  # type: ignore[union-attr]


def _stacked(layer: nn.Linear) -> None:
    parametrize.register_parametrization(layer, "weight", Doubled())
    _low_rank(layer)


def _peft(*, of: Change = lambda model: None, **options: Any) -> Change:
    def change(model: nn.Module) -> None:
        of(model)
        targets = {} if "target_parameters" in options else {"target_modules": r".*vision_model.*(q_proj|fc1)"}
        inner: Any = model
        inner.vision_model = get_peft_model(
            nn.ModuleDict({"vision_model": inner.vision_model}),  # type: ignore[arg-type]
            LoraConfig(r=2, init_lora_weights=False, **targets, **options),
        ).base_model.model["vision_model"]  # type: ignore[index]

    return change


def _train(model: nn.Module) -> None:
    """Move everything that is trained."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.vision_model.parameters():  # type: ignore[union-attr]
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def _longer_vectors(model: nn.Module) -> None:
    """Direction and length are apart under weight norm: this changes no weight."""
    with torch.no_grad():
        for layer in _layers(model):
            source = layer.parametrizations.weight.original1 if parametrize.is_parametrized(layer) else layer.weight_v
            source.mul_(3.0)  # type: ignore[union-attr, operator]


def _nothing(model: nn.Module) -> None:
    pass


OLD_WEIGHT_NORM, WEIGHT_NORM = _each(weight_norm), _each(parametrizations.weight_norm)
OLD_SPECTRAL_NORM, SPECTRAL_NORM = _each(spectral_norm), _each(parametrizations.spectral_norm)
# What is done before the monitor is made, and after.
KINDS: dict[str, tuple[Change, Change]] = {
    "LoRA by parametrization": (_each(_low_rank), _train),
    "two parametrizations": (_each(_stacked), _train),
    "parametrized later": (_nothing, _each(_low_rank)),
    "weight norm": (WEIGHT_NORM, _train),
    "weight norm, longer vectors": (WEIGHT_NORM, _longer_vectors),
    "weight norm by hooks": (OLD_WEIGHT_NORM, _train),
    "weight norm by hooks, longer vectors": (OLD_WEIGHT_NORM, _longer_vectors),
    "spectral norm": (SPECTRAL_NORM, _train),
    "spectral norm later": (_nothing, SPECTRAL_NORM),
    "spectral norm by hooks": (OLD_SPECTRAL_NORM, _train),
    "orthogonal": (_each(parametrizations.orthogonal), _train),
    "pruned": (_nothing, _each(lambda layer: prune.l1_unstructured(layer, "weight", 0.5))),
    "pruned and trained": (_each(lambda layer: prune.random_unstructured(layer, "weight", 0.3)), _train),
    "LoRA of peft over weight norm": (WEIGHT_NORM, _peft()),
    "LoRA of peft over trained weight norm": (WEIGHT_NORM, lambda model: (_train(model), _peft()(model))),
    "DoRA over a parametrization": (_each(_low_rank), _peft(use_dora=True)),
    "LoRA of peft on parameters": (_nothing, _peft(target_parameters=["q_proj.weight", "fc1.weight"])),
    "LoRA of peft over weight norm by hooks": (OLD_WEIGHT_NORM, _peft(use_rslora=True)),
}


def _multiplied_with(model: nn.Module) -> list[Tensor]:
    """The weights of the layers, in float64, asked of the layers."""
    found = []
    inner: Any = model
    for layer in inner.vision_model.encoder.layers:
        for part in (layer.self_attn.q_proj, layer.mlp.fc1):
            training = part.training
            part.eval()
            with torch.no_grad():
                width = part.in_features
                found.append((part(torch.eye(width)) - part(torch.zeros(1, width))).T.double())
            part.train(training)
    return found


def _others(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: value.detach().double().clone()
        for name, value in model.vision_model.named_parameters()  # type: ignore[union-attr]
        if not ("q_proj" in name or "fc1" in name) or name.endswith(".bias")
    }


@pytest.fixture
def images() -> Tensor:
    return torch.randn(6, 3, 28, 28, generator=torch.Generator().manual_seed(1))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_drift_is_of_the_weights_that_layers_multiply_with(kind: str, images: Tensor) -> None:
    before_monitor, after_monitor = KINDS[kind]
    clip: Any = load_model("config:tiny").train()
    torch.manual_seed(3)
    before_monitor(clip)
    monitor = DriftMonitor(clip, images)
    weights, rest = _multiplied_with(clip), _others(clip)
    after_monitor(clip)
    clip.train()
    state = {name: value.clone() for name, value in clip.state_dict().items()}
    drawn, modes = torch.get_rng_state(), [part.training for part in clip.modules()]
    with parametrize.cached():
        measured = monitor.measure().weight_drift
        assert all(not weight.requires_grad or weight.grad_fn is not None for weight in _weights_of(clip))
    for name, value in clip.state_dict().items():
        assert torch.equal(value, state[name]), f"{name} was touched"
    assert torch.equal(torch.get_rng_state(), drawn)
    assert [part.training for part in clip.modules()] == modes

    now, others = _multiplied_with(clip), _others(clip)
    names = {name.replace(".base_layer.", "."): value for name, value in others.items() if "lora_" not in name}
    moved = sum(float((a - b).square().sum()) for a, b in zip(now, weights, strict=True))
    moved += sum(float((names[name] - value).square().sum()) for name, value in rest.items())
    norm = sum(float(value.square().sum()) for value in (*weights, *rest.values()))
    assert measured == pytest.approx((moved / norm) ** 0.5, rel=1e-4, abs=1e-6)
    assert (measured < 1e-6) == (kind.endswith("longer vectors") or kind == "parametrized later")


def _weights_of(model: nn.Module) -> list[Tensor]:
    return [layer.weight for layer in _layers(model)]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize(
    "kind", ["LoRA by parametrization", "weight norm", "weight norm by hooks", "orthogonal", "pruned"]
)
def test_a_study_measures_the_same(kind: str, images: Tensor) -> None:
    pretrained = load_model("config:tiny")
    model = adapt(copy.deepcopy(pretrained), AdaptationSettings("full"), 4, seed=0)
    monitor = DriftMonitor(model, images)
    for change in KINDS[kind]:
        change(model.backbone)
    measured = weight_drift(model, pretrained)
    assert measured == pytest.approx(monitor.measure().weight_drift, rel=1e-9)
    # Trained, pruned, or made orthogonal.
    assert measured > 0.01


@pytest.mark.parametrize(
    "kind", ["two parametrizations", "weight norm", "weight norm by hooks", "spectral norm by hooks", "pruned"]
)
def test_a_copy_computes_the_same_and_leaves_the_original_alone(kind: str, images: Tensor) -> None:
    clip: CLIPModel = load_model("config:tiny").eval()
    for change in KINDS[kind]:
        change(clip)
    kinds = [type(layer) for layer in _layers(clip)]
    with torch.enable_grad():
        wanted = clip.get_image_features(images).pooler_output  # leaves weights in a graph
    copied = copy_without_hooks(clip)
    torch.testing.assert_close(copied.get_image_features(images).pooler_output, wanted)  # type: ignore[operator]
    assert [type(layer) for layer in _layers(clip)] == kinds
    torch.testing.assert_close(clip.get_image_features(images).pooler_output, wanted)
    assert all(type(layer) is nn.Linear and isinstance(layer.weight, nn.Parameter) for layer in _layers(copied))
