"""What an accelerator computes for many layers or parameters at once is what is computed one by one."""

from __future__ import annotations

import math

import pytest
import torch

from attndrift.metrics import (
    LowRankUpdate,
    StructureAccumulator,
    linear_cka_both,
    linear_cka_layers,
    representation,
    squared_norm,
    weight_drift,
    weights,
)
from attndrift.metrics.deferred import DeferredScalars


def states(*, layers=4, images=12, width=20):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(layers, images, width, generator=generator)
    return x, x + 0.3 * torch.randn(layers, images, width, generator=generator)


@pytest.fixture(params=[False, True], ids=["as a CPU", "as an accelerator"])
def together(request, monkeypatch) -> None:
    """Whether tensors of the CPU are taken for those of an accelerator, which are read together."""
    if request.param:
        monkeypatch.setattr(DeferredScalars, "TOGETHER", frozenset({"cpu"}))


@pytest.mark.usefixtures("together")
def test_cka_of_all_layers_is_that_of_each() -> None:
    x, y = states()
    expected = [torch.stack(list(values)) for values in zip(*map(linear_cka_both, x, y), strict=True)]
    for found in (linear_cka_layers(x, y), representation._gram_layers(x.double(), y.double(), DeferredScalars())()):
        assert found is not None
        for got, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1.0])
@pytest.mark.usefixtures("together")
def test_a_layer_without_cka_is_left_to_its_words(value) -> None:
    x, y = states()
    y[2] = value
    assert representation._gram_layers(x.double(), y.double(), DeferredScalars())() is None
    with pytest.raises(ValueError, match="y: "):
        linear_cka_layers(x, y)


def test_what_is_read_together_is_what_was_noted(monkeypatch) -> None:
    monkeypatch.setattr(DeferredScalars, "TOGETHER", frozenset({"cpu"}))
    deferred = DeferredScalars()
    noted = [torch.arange(6).view(2, 3), torch.tensor(True), torch.zeros(0, 4), torch.tensor([0.1])]
    later = [deferred.defer(values) for values in noted]
    for values, read in zip(noted[::-1], later[::-1], strict=True):
        assert torch.equal(read(), values.double())
    # What is noted after a reading comes with the next.
    assert float(deferred.defer(torch.tensor(7.0))()) == 7


@pytest.mark.usefixtures("together")
@pytest.mark.parametrize("patches", [(5, 5), (5, 7)])
def test_structure_that_is_read_later_is_that_of_its_moment(patches) -> None:
    accumulator, deferred = StructureAccumulator(), DeferredScalars()
    batches = [[torch.rand(3, 4, count) for count in patches] for _ in range(2)]
    masses = [[torch.rand(3, 4) for _ in patches] for _ in range(2)]
    accumulator.update(batches[0], masses[0])
    first = accumulator.compute_deferred(deferred)
    accumulator.update(batches[1], masses[1])
    both = accumulator.compute()
    alone = StructureAccumulator()
    alone.update(batches[0], masses[0])
    for name in ("entropy", "erf95", "gini", "head_diversity", "cls_mass"):
        torch.testing.assert_close(first().heads(name), alone.compute().heads(name), rtol=0, atol=0)
        assert not torch.equal(first().heads(name), both.heads(name))
    assert first().images == 3
    assert both.images == 6


def parameters():
    generator = torch.Generator().manual_seed(0)
    before = {f"p{place}": torch.randn(3 + place, 5, generator=generator) for place in range(5)}
    after = {name: value + 0.01 * torch.randn(value.shape, generator=generator) for name, value in before.items()}
    return before, after


@pytest.mark.parametrize("at_once", [1, 30, 10**6])
def test_weight_drift_of_many_parameters_at_once(monkeypatch, at_once) -> None:
    before, after = parameters()
    after["p1"] = LowRankUpdate(torch.ones(2, 5), torch.ones(4, 2), 0.1)
    expected, norm = weight_drift(before, after), squared_norm(before)
    monkeypatch.setattr(weights, "_together", lambda values: True)
    monkeypatch.setattr(weights, "_AT_ONCE", at_once)
    assert weight_drift(before, after) == pytest.approx(expected, rel=1e-6)
    assert squared_norm(before) == pytest.approx(norm, rel=1e-12)
    after["p3"] = after["p3"].clone().fill_(math.nan)
    with pytest.raises(ValueError, match="adapted: `p3` contains NaN"):
        weight_drift(before, after)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator of CUDA")
def test_the_same_on_a_real_one() -> None:
    x, y = states()
    for got, wanted in zip(linear_cka_layers(x.cuda(), y.cuda()), linear_cka_layers(x, y), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)
    before, after = parameters()
    on = [{name: value.cuda() for name, value in side.items()} for side in (before, after)]
    assert weight_drift(*on) == pytest.approx(weight_drift(before, after), rel=1e-5)
    assert squared_norm(on[0]) == pytest.approx(squared_norm(before), rel=1e-12)
