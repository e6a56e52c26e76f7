"""A projection that a library keeps inside the tower is no weight of the vision transformer: it drifts by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attndrift import Budget, DriftMonitor, Guard
from attndrift.compare.weight_table import weight_table
from attndrift.methods import AdaptationSettings, adapt
from attndrift.methods.parameter_drift import squared_norms

WIDTH = 16


class ResidualAttentionBlock(nn.Module):
    __module__ = "open_clip.transformer"

    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(WIDTH), nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.ln_2, self.mlp = nn.LayerNorm(WIDTH), nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH))

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        inner = self.ln_1(x)
        x = x + self.attn(inner, inner, inner, need_weights=False, attn_mask=attn_mask)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    __module__ = "open_clip.transformer"
    batch_first = True

    def __init__(self) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList([ResidualAttentionBlock(), ResidualAttentionBlock()])

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x = block(x, attn_mask=attn_mask)
        return x


class VisionTransformer(nn.Module):
    """As open_clip's: the projection is a parameter of the tower, or there is none."""

    __module__ = "open_clip.transformer"

    def __init__(self, dimensions: int | None) -> None:
        super().__init__()
        self.image_size, self.attn_pool = (12, 12), None
        self.output_dim = dimensions
        self.conv1 = nn.Conv2d(3, WIDTH, 4, 4, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(WIDTH))
        self.positional_embedding = nn.Parameter(torch.randn(10, WIDTH))
        self.ln_pre, self.transformer, self.ln_post = nn.LayerNorm(WIDTH), Transformer(), nn.LayerNorm(WIDTH)
        self.proj = None if dimensions is None else nn.Parameter(torch.randn(WIDTH, dimensions))

    def forward(self, x: Tensor) -> Tensor:
        patches = self.conv1(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_embedding.expand(len(x), 1, -1), patches], 1) + self.positional_embedding
        pooled = self.ln_post(self.transformer(self.ln_pre(tokens)))[:, 0]
        return pooled if self.proj is None else pooled @ self.proj


class CLIP(nn.Module):
    __module__ = "open_clip.model"

    def __init__(self, dimensions: int | None) -> None:
        super().__init__()
        self.visual = VisionTransformer(dimensions)

    def encode_image(self, image: Tensor) -> Tensor:
        return self.visual(image)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def _norm(values: list[Tensor]) -> float:
    return sum(float(value.detach().double().square().sum()) for value in values) ** 0.5


def _made(kind: str) -> nn.Module:
    torch.manual_seed(0)
    tower = {"a tower": lambda: VisionTransformer(8), "no projection": lambda: CLIP(None)}.get(kind, lambda: CLIP(8))()
    return nn.ModuleDict({"clip": tower, "head": nn.Linear(8, 3)})["clip"] if kind == "in a wrapper" else tower


@pytest.mark.parametrize("reference", ["as it was", "another model"])
@pytest.mark.parametrize("kind", ["the whole model", "a tower", "in a wrapper"])
def test_the_projection_inside_a_tower_is_apart(kind: str, reference: str, images: Tensor) -> None:
    model: Any = _made(kind)
    monitor = DriftMonitor(model, images, **({} if reference == "as it was" else {"reference": _made(kind)}))
    visual = getattr(model, "visual", model)
    tower = [value for name, value in visual.named_parameters() if name != "proj"]
    norm = _norm(tower)
    with torch.no_grad():
        visual.proj.mul_(1.5)
    drift = monitor.measure()
    assert (drift.weight_drift, drift.projection_drift) == (0.0, pytest.approx(0.5, rel=1e-5))
    with torch.no_grad():
        visual.conv1.weight.mul_(2.0)
    drift = monitor.measure()
    assert drift.weight_drift == pytest.approx(_norm([visual.conv1.weight]) / 2 / norm, rel=1e-5)
    assert drift.projection_drift == pytest.approx(0.5, rel=1e-5)


def test_a_tower_without_projection_has_no_drift_of_one(images: Tensor) -> None:
    drift = DriftMonitor(_made("no projection"), images).measure()
    assert (drift.weight_drift, drift.projection_drift) == (0.0, None)


def test_a_guard_rewinds_the_projection_inside_a_tower_too(images: Tensor) -> None:
    model: Any = _made("the whole model")
    start = {name: value.clone() for name, value in model.state_dict().items()}
    monitor = DriftMonitor(model, images)
    with torch.no_grad():
        model.visual.proj.mul_(1.5)
    late = Guard(monitor, Budget("projection_drift", at_most=0.1), every=1, echo=None)
    event = late.step(1)
    assert event is not None
    assert event.action == "rewound"
    assert 0.03 < monitor.measure().projection_drift <= 0.1 + 1e-6
    assert torch.equal(model.visual.conv1.weight, start["visual.conv1.weight"])


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_the_head_behind_a_tower_of_timm_is_its_projection(kind: str, images: Tensor) -> None:
    from timm_stand_in import VisionTransformer as Trunk

    class TimmModel(nn.Module):
        __module__ = "open_clip.timm_model"

        def __init__(self) -> None:
            super().__init__()
            self.trunk: Any = Trunk(0)
            layers = [nn.Linear(24, 8)] if kind == "linear" else [nn.Linear(24, 12), nn.GELU(), nn.Linear(12, 8)]
            self.head = nn.Sequential(*layers)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.trunk(x))

    model = nn.Module()
    model.visual = TimmModel()
    model.encode_image = lambda image: model.visual(image)  # type: ignore[assignment, operator]
    monitor = DriftMonitor(model, images)
    with torch.no_grad():
        for parameter in model.visual.head.parameters():  # type: ignore[union-attr]
            parameter.mul_(1.25)
    drift = monitor.measure()
    assert (drift.weight_drift, drift.projection_drift) == (0.0, pytest.approx(0.25, rel=1e-5))


def test_the_tables_of_studies_and_of_compare_keep_it_apart_too() -> None:
    base, moved = _made("the whole model"), _made("the whole model")
    with torch.no_grad():
        moved.visual.proj.mul_(1.5)  # type: ignore[operator, union-attr]
    table = weight_table(base, moved)
    assert (table.numbers["weight_drift"], table.numbers["projection_drift"]) == (0.0, pytest.approx(0.5, rel=1e-5))
    parameters = {row["module"]: row["parameters"] for row in table.rows}
    assert parameters["projection"] == WIDTH * 8
    assert parameters["vision transformer"] == sum(p.numel() for p in base.parameters()) - WIDTH * 8
    tower = [value for name, value in base.named_parameters() if name != "visual.proj"]
    assert squared_norms(base) == pytest.approx((_norm(tower) ** 2, _norm([base.visual.proj]) ** 2))  # type: ignore[list-item, union-attr]


def test_it_is_trained_as_the_settings_say() -> None:
    for trained in (True, False):
        model: Any = _made("the whole model")
        settings = AdaptationSettings("full", train_projection=trained)
        adapted = adapt(model, settings, 3, 0)
        assert adapted.backbone.visual.proj.requires_grad is trained
        assert adapted.backbone.visual.conv1.weight.requires_grad
