"""Relative activation change against products made by hand, and what the monitor does with it."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, Dinov2Config, Dinov2Model

from attndrift.drift import ActivationChange, Alert, DriftMonitor, DriftWatch, FixedTexts, TextDrift
from attndrift.metrics import modality_gap
from attndrift.models import load_model
from attndrift.results.columns import metric_columns
from attndrift.results.tables import read_tables


def _clip() -> nn.Module:
    torch.manual_seed(0)
    return CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=16,
            patch_size=8,
        )
    ).eval()


def _dinov2() -> nn.Module:
    torch.manual_seed(0)
    return Dinov2Model(
        Dinov2Config(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8, mlp_ratio=2
        )
    ).eval()


def _pixels(count: int = 6) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def _by_hand(before: nn.Module, after: nn.Module, pixels: Tensor) -> list[float]:
    """Every linear layer of each block on all tokens, in float64, by hooks of this test alone."""
    before, after = copy.deepcopy(before).double(), copy.deepcopy(after).double()
    changed = dict(after.named_modules())
    sums: dict[int, list[float]] = {}

    def see(name: str, layer: nn.Linear, given: Tensor) -> None:
        block = next(int(part) for part in name.split(".") if part.isdigit())
        moved = given @ (changed[name].weight - layer.weight).T
        known = given @ layer.weight.T
        one = sums.setdefault(block, [0.0, 0.0])
        one[0] += float(moved.square().sum())
        one[1] += float(known.square().sum())

    for name, layer in before.named_modules():
        if isinstance(layer, nn.Linear) and any(part.isdigit() for part in name.split(".")):
            layer.register_forward_pre_hook(lambda layer, given, name=name: see(name, layer, given[0]))
    with torch.no_grad():
        before(pixels.double())
    return [math.sqrt(moved / known) for moved, known in sums.values()]


@pytest.mark.parametrize("make", [_clip, _dinov2])
def test_it_is_what_products_by_hand_give(make: type) -> None:
    model, pixels = make(), _pixels()
    change = ActivationChange(model, pixels)
    assert change(model).tolist() == [0.0, 0.0]
    pretrained = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".1." in name:
                parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
    expected = _by_hand(pretrained, model, pixels)
    assert change(model).tolist() == pytest.approx(expected, rel=1e-5, abs=1e-12)
    assert expected[0] == 0 < expected[1]


def test_a_few_tokens_stand_for_all() -> None:
    model, pixels = _clip(), _pixels(60)
    few, all_of_them = (ActivationChange(model, pixels.split(20), tokens=tokens) for tokens in (64, 10_000))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 1.1
    # A weight that is only scaled changes every output alike.
    assert few(model).tolist() == pytest.approx([0.1, 0.1], rel=1e-5)
    assert all_of_them(model).tolist() == pytest.approx([0.1, 0.1], rel=1e-5)
    with pytest.raises(ValueError, match="tokens is 0"):
        ActivationChange(model, pixels, tokens=0)


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"use_rslora": True}])
def test_adapters_count_as_the_weight_that_they_make(settings: dict[str, bool]) -> None:
    model, pixels = _clip(), _pixels()
    pretrained = copy.deepcopy(model)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "fc1"], **settings))
    change = ActivationChange(adapted, pixels)
    assert change(adapted).tolist() == pytest.approx([0.0, 0.0], abs=1e-6)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.02)
    merged = copy.deepcopy(adapted).merge_and_unload()
    assert change(adapted).tolist() == pytest.approx(_by_hand(pretrained, merged, pixels), rel=1e-4)
    assert min(change(adapted).tolist()) > 0


def test_the_monitor_has_it_on_request(tmp_path: Path) -> None:
    model, pixels = _clip(), _pixels()
    bare = DriftMonitor(model, pixels).measure()
    column = next(c for c in metric_columns("history") if c.name == "activation_change_mean")
    assert bare.activation_change_mean is None
    assert "on request" in bare.reason(column)
    assert "activation_change" not in bare.layers()

    monitor = DriftMonitor(model, pixels, activations=ActivationChange(model, pixels))
    watch = DriftWatch(
        monitor, every=1, alerts=[Alert("activation_change_last", above=0.05)], folder=tmp_path, echo=None
    )
    watch.start()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 1.1
    watch.measure(1)
    watch.finish()
    drift = watch.drift[-1][1]
    assert drift.activation_change_mean == pytest.approx(0.1, rel=1e-5)
    assert [event.metric for event in watch.alerts] == ["activation_change_last"]
    tables = read_tables(tmp_path)
    assert tables.history["activation_change_mean"].iloc[-1] == pytest.approx(0.1, rel=1e-5)
    rows = tables.layers[(tables.layers["metric"] == "activation_change") & (tables.layers["step"] == 1)]
    assert rows["value"].tolist() == pytest.approx([0.1, 0.1], rel=1e-5)


def test_embeddings_that_collapse_are_seen() -> None:
    """One number of one model: its value, what it was, and the change of it."""
    model, pixels = _clip(), _pixels(12)
    monitor = DriftMonitor(model, pixels, embed=lambda images: model(images).pooler_output)
    before = monitor.measure()
    assert before.effective_rank_change_pct == before.mean_cosine_change_pct == before.procrustes_residual == 0
    norm = next(part for name, part in model.named_modules() if name.endswith("post_layernorm"))
    with torch.no_grad():
        norm.weight[2:] = 0  # two dimensions are left
        norm.bias[:] = 3
    after = monitor.measure()
    assert after.effective_rank <= 2 < before.effective_rank
    assert after.effective_rank_change_pct == pytest.approx(100 * (after.effective_rank / before.effective_rank - 1))
    assert after.mean_cosine > before.mean_cosine
    assert 0 < after.procrustes_residual <= 1
    ends = after.columns("runs")
    assert ends["effective_rank_baseline"] == before.effective_rank
    assert ends["effective_rank_final"] == after.effective_rank
    with torch.no_grad():
        norm.weight[:] = 0
    collapsed = monitor.measure()
    assert collapsed.effective_rank is collapsed.effective_rank_change_pct is collapsed.procrustes_residual is None
    assert collapsed.mean_cosine == pytest.approx(1)


def test_the_gap_between_images_and_texts_needs_texts() -> None:
    model, pixels = load_model("config:tiny"), torch.randn(8, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    tokens = torch.tensor([[0, 5, 1], [0, 7, 1], [0, 9, 1]])
    column = next(c for c in metric_columns("history") if c.name == "modality_gap")
    without = DriftMonitor(model, pixels).measure()
    assert without.modality_gap is None
    assert "no texts" in without.reason(column)

    texts = model.get_text_features(tokens).pooler_output.detach()
    fixed = DriftMonitor(model, pixels, text=FixedTexts(texts))
    trained = DriftMonitor(model, pixels, text=TextDrift(model, tokens))
    before = fixed.measure().modality_gap
    assert before == pytest.approx(float(modality_gap(fixed.embeddings(), texts)), rel=1e-6)
    with torch.no_grad():
        model.text_projection.weight.mul_(-1)  # the texts turn round
    moved = trained.measure()
    assert moved.modality_gap == pytest.approx(float(modality_gap(fixed.embeddings(), -texts)), rel=1e-5)
    assert moved.columns("runs")["modality_gap_baseline"] == pytest.approx(before, rel=1e-6)
    assert moved.modality_gap_change_pct == pytest.approx(100 * (moved.modality_gap / before - 1))
    assert fixed.measure().modality_gap == pytest.approx(before)
