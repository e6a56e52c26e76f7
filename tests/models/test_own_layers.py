"""Weight drift under adapters written by hand is that of the weights which the layers multiply with, or it is refused.

The reference asks the layers of the model in training, in float64; no name and no class of an adapter is known to it.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F

from attndrift import DriftMonitor
from attndrift.methods import AdaptationSettings, adapt, weight_drift
from attndrift.models import load_model

Make = Callable[[nn.Linear], nn.Module]


def _noise(*shape: int, scale: float = 0.2) -> nn.Parameter:
    return nn.Parameter(scale * torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))))


class BaseAB(nn.Module):
    """The wrapper of most tutorials."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.dropout = base, nn.Dropout(0.5)
        self.A, self.B = _noise(base.in_features, 2), nn.Parameter(torch.zeros(2, base.out_features))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 2 * (self.dropout(x) @ self.A @ self.B)


class DownUp(nn.Module):
    """A low-rank branch of two layers."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.linear = base
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.up(self.down(x))


class Subclass(nn.Linear):
    """A linear layer with more parameters."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base.in_features, base.out_features)
        self.load_state_dict(base.state_dict())
        self.left, self.right = nn.Parameter(torch.zeros(base.out_features, 2)), _noise(2, base.in_features)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight + self.left @ self.right, self.bias)


class Loralib(Subclass):
    """As loralib's: the update is merged into the weight in evaluation mode."""

    merged = False

    def train(self, mode: bool = True) -> Loralib:
        nn.Linear.train(self, mode)
        if mode == self.merged:
            with torch.no_grad():
                self.weight.add_(self.left @ self.right, alpha=-1 if mode else 1)
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight + (0 if self.merged else 1) * (self.left @ self.right), self.bias)


class Scaled(nn.Module):
    """IA3 by hand."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.frozen, self.scale = base, nn.Parameter(torch.ones(base.out_features))

    def forward(self, x: Tensor) -> Tensor:
        return self.frozen(x) * self.scale


class ByHand(nn.Module):
    """No layer of torch inside, and the weight is a buffer."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("w0", base.weight.detach().clone())
        self.bias = nn.Parameter(base.bias.detach().clone())
        self.factors = nn.ParameterDict({"a": _noise(2, base.in_features), "b": torch.zeros(base.out_features, 2)})

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w0.T + self.bias + x @ self.factors["a"].T @ self.factors["b"].T


class Tied(nn.Module):
    """The branch is shared by all layers of a shape: as VeRA."""

    shared: ClassVar[dict[tuple[int, int], nn.Parameter]] = {}

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.inner = BaseAB(base)
        self.inner.A = self.shared.setdefault((base.in_features, 2), self.inner.A)
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * self.inner(x)


def _another_forward(base: nn.Linear) -> nn.Module:
    base.register_parameter("u", nn.Parameter(torch.zeros(base.out_features, 1)))
    base.register_parameter("v", _noise(1, base.in_features))
    base.forward = types.MethodType(lambda self, x: F.linear(x, self.weight + self.u @ self.v, self.bias), base)  # type: ignore[method-assign]
    return base


def _hook(base: nn.Linear) -> nn.Module:
    base.register_parameter("u", nn.Parameter(torch.zeros(base.out_features, 1)))
    base.register_parameter("v", _noise(1, base.in_features))
    base.register_forward_hook(lambda layer, given, made: made + given[0] @ layer.v.T @ layer.u.T)
    return base


class Standardised(nn.Linear):
    """No further parameter, and yet not its weight."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base.in_features, base.out_features)
        self.load_state_dict(base.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight - self.weight.mean(1, keepdim=True), self.bias)


KINDS: dict[str, Make] = {
    kind.__name__: kind for kind in (BaseAB, DownUp, Subclass, Loralib, Scaled, ByHand, Tied, Standardised)
} | {"another forward": _another_forward, "hook": _hook}


def _replace(model: Any, make: Make) -> None:
    for layer in model.vision_model.encoder.layers:
        layer.self_attn.q_proj = make(layer.self_attn.q_proj)
        layer.mlp.fc1 = make(layer.mlp.fc1)


def _layers(model: Any) -> list[nn.Module]:
    return [part for layer in model.vision_model.encoder.layers for part in (layer.self_attn.q_proj, layer.mlp.fc1)]


def _computed(model: Any) -> list[Tensor]:
    """Weight and bias of each layer, asked in float64 of a copy; and all parameters elsewhere."""
    copied = copy.deepcopy(model).double().eval()
    found, inside = [], set()
    for part in _layers(copied):
        inside.update(part.parameters())
        with torch.no_grad():
            zero = part(torch.zeros(1, 32, dtype=torch.float64))
            found += [part(torch.eye(32, dtype=torch.float64)) - zero, zero]
    return found + [p.detach() for p in copied.vision_model.parameters() if p not in inside]


def _train(model: Any) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.vision_model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def _expected(before: list[Tensor], after: list[Tensor]) -> float:
    moved = sum(float((a - b).square().sum()) for a, b in zip(after, before, strict=True))
    return (moved / sum(float(value.square().sum()) for value in before)) ** 0.5


@pytest.fixture
def clip() -> Any:
    Tied.shared.clear()
    return load_model("config:tiny").train()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(6, 3, 28, 28, generator=torch.Generator().manual_seed(1))


@pytest.mark.one_in(4)
@pytest.mark.parametrize("when", ["before the monitor", "after the monitor"])
@pytest.mark.parametrize("kind", KINDS)
def test_drift_is_of_the_weights_that_layers_of_ones_own_multiply_with(
    clip: Any, images: Tensor, kind: str, when: str
) -> None:
    if when == "before the monitor":
        _replace(clip, KINDS[kind])
    clip.train()
    monitor = DriftMonitor(clip, images)
    before = _computed(clip)
    if when == "after the monitor":
        _replace(clip, KINDS[kind])
    clip.train()
    _train(clip)
    state = {name: value.clone() for name, value in clip.state_dict().items()}
    measured = monitor.measure().weight_drift
    for name, value in clip.state_dict().items():
        torch.testing.assert_close(value, state[name], msg=f"{name} was touched")
    assert measured == pytest.approx(_expected(before, _computed(clip)), rel=1e-4)
    assert measured > 0.01


@pytest.mark.parametrize("kind", ["BaseAB", "Subclass", "Scaled", "ByHand"])
def test_a_study_and_half_precision_measure_the_same(clip: Any, images: Tensor, kind: str) -> None:
    model = adapt(copy.deepcopy(clip), AdaptationSettings("full"), 4, seed=0)
    _replace(model.backbone, KINDS[kind])
    _train(model.backbone)
    wanted = _expected(_computed(clip), _computed(model.backbone))
    assert weight_drift(model, clip) == pytest.approx(wanted, rel=1e-4)
    half = copy.deepcopy(model.backbone).bfloat16()
    reference = copy.deepcopy(clip).bfloat16()
    found = DriftMonitor(half, images, reference=reference).measure().weight_drift
    assert found == pytest.approx(_expected(_computed(reference), _computed(half)), rel=1e-3)


def test_an_unchanged_layer_of_ones_own_has_not_drifted(clip: Any, images: Tensor) -> None:
    monitor = DriftMonitor(clip, images)
    _replace(clip, BaseAB)
    assert monitor.measure().weight_drift < 1e-6


# -- what cannot be told -------------------------------------------------------------------------------


class Gated(BaseAB):
    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + torch.tanh(x @ self.A) @ self.B


class GatedLinear(Subclass):
    def forward(self, x: Tensor) -> Tensor:
        return super(Subclass, self).forward(x) + torch.relu(x @ self.right.T) @ self.left.T


class TwoInputs(Scaled):
    def forward(self, x: Tensor, task: int) -> Tensor:
        return self.frozen(x) * self.scale[task]


class Mixture(nn.Module):
    """Low-rank branches, of which a gate takes shares."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.gate = base, nn.Linear(base.in_features, 2)
        self.down = nn.ModuleList(nn.Linear(base.in_features, 2, bias=False) for _ in range(2))
        self.up = nn.ModuleList(nn.Linear(2, base.out_features, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        shares = self.gate(x).softmax(-1)
        branches = (up(down(x)) for down, up in zip(self.down, self.up, strict=True))
        return self.base(x) + sum(shares[..., i : i + 1] * branch for i, branch in enumerate(branches))


def _in_attention(model: Any, change: Callable[[Any], None]) -> None:
    for layer in model.vision_model.encoder.layers:
        change(layer.self_attn)


def _attention_subclass(attention: Any) -> None:
    class LowRankAttention(type(attention)):  # type: ignore[misc]
        def forward(self, hidden_states: Tensor, *args: Any, **options: Any) -> Any:
            return super().forward(hidden_states + hidden_states @ self.qa.T @ self.qb.T, *args, **options)

    attention.__class__ = LowRankAttention
    attention.register_parameter("qa", _noise(2, 32))
    attention.register_parameter("qb", nn.Parameter(torch.zeros(32, 2)))


def _scaled_attention(attention: Any) -> None:
    class ScaledAttention(type(attention)):  # type: ignore[misc]
        def forward(self, hidden_states: Tensor, *args: Any, **options: Any) -> Any:
            return super().forward(hidden_states * self.by, *args, **options)

    attention.__class__ = ScaledAttention
    attention.register_parameter("by", nn.Parameter(torch.ones(32)))


def _scaled_norm(layer: Any) -> None:
    class ScaledNorm(nn.LayerNorm):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.by

    layer.layer_norm1.__class__ = ScaledNorm
    layer.layer_norm1.register_parameter("by", nn.Parameter(torch.ones(32)))


UNKNOWN: dict[str, tuple[Callable[[Any], None], str]] = {
    "a gated branch": (lambda model: _replace(model, Gated), "`A` and `B` are a low-rank update"),
    "a gated subclass": (lambda model: _replace(model, GatedLinear), "`left` is a part of its weight"),
    "a mixture of branches": (
        lambda model: _replace(model, Mixture),
        r"`down\.0\.weight` and `(up|down)\.\d\.weight` are a low-rank update",
    ),
    "attention with a branch": (
        lambda model: _in_attention(model, _attention_subclass),
        "`qa` and `qb` are a low-rank update",
    ),
    "attention with a scale": (lambda model: _in_attention(model, _scaled_attention), "`by` scales"),
    "a norm with a scale": (
        lambda model: [_scaled_norm(layer) for layer in model.vision_model.encoder.layers],
        "`by` is a part of its weight",
    ),
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_what_cannot_be_told_is_refused_by_name_with_what_to_do(clip: Any, images: Tensor, kind: str) -> None:
    change, said = UNKNOWN[kind]
    change(clip)
    with pytest.raises(ValueError, match=rf"encoder\.layers\.0\.[\w.]+: {said}.*weight_drift="):
        DriftMonitor(clip, images)
    drift = DriftMonitor(clip, images, weight_drift=lambda: (None, None)).measure()
    assert drift.weight_drift is None
    assert drift.cka_mean == pytest.approx(1.0)


class Bottleneck(nn.Module):
    """An adapter that is no linear map, as a layer of one's own architecture: its parameters are weights like others."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.down, self.up = base, nn.Linear(32, 4), nn.Linear(4, 32)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.base(x)
        return made + self.up(torch.relu(self.down(made)))


def test_layers_that_are_no_linear_map_are_weighed_as_they_are(clip: Any, images: Tensor) -> None:
    for layer in clip.vision_model.encoder.layers:
        layer.mlp.fc2 = nn.Sequential(layer.mlp.fc2, Bottleneck(nn.Linear(32, 32)))
    monitor = DriftMonitor(clip, images)
    before = [value.detach().double().clone() for value in clip.vision_model.parameters()]
    _train(clip)
    after = [value.detach().double() for value in clip.vision_model.parameters()]
    assert monitor.measure().weight_drift == pytest.approx(_expected(before, after), rel=1e-5)


class GatedBlock(nn.Module):
    """A block of one's own architecture, whose layer an adapter of peft sits on."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner, self.gate = inner, nn.Linear(inner.out_features, inner.out_features)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.inner(x)
        return made * torch.sigmoid(self.gate(made))


def test_adapters_of_peft_within_blocks_of_ones_own_are_merged(clip: Any, images: Tensor) -> None:
    for layer in clip.vision_model.encoder.layers:
        layer.mlp.fc2 = GatedBlock(layer.mlp.fc2)
    before = [value.detach().double().clone() for value in clip.vision_model.parameters()]
    model = get_peft_model(clip, LoraConfig(r=2, target_modules=r".*vision_model.*fc2\.inner"))
    monitor = DriftMonitor(model, images)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.copy_(torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
    measured = monitor.measure().weight_drift
    after = [value.detach().double() for value in model.merge_and_unload().vision_model.parameters()]
    assert measured == pytest.approx(_expected(before, after), rel=1e-5)
    assert measured > 0.01


def test_layers_added_after_the_monitor_was_made_are_named_with_what_to_do(clip: Any, images: Tensor) -> None:
    monitor = DriftMonitor(clip, images)
    for layer in clip.vision_model.encoder.layers:
        layer.mlp.fc2 = nn.Sequential(layer.mlp.fc2, Bottleneck(nn.Linear(32, 32)))
    with pytest.raises(
        ValueError, match=r"layers\.0\.mlp\.fc2\.0\.weight.*reference=.*after the monitor was made.*weight_drift="
    ):
        monitor.measure()
