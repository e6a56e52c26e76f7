"""The accumulator against per-image references, whatever the batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attndrift.metrics import StructureAccumulator, entropy, erf, gini, head_diversity, structure_metrics

LAYERS, IMAGES, HEADS, PATCHES = 3, 23, 4, 16


@pytest.fixture(scope="module")
def observed():
    generator = torch.Generator().manual_seed(0)
    # Images differ in sharpness, so that a mean of batch means is another number.
    sharpness = torch.linspace(0.2, 6, IMAGES).view(1, -1, 1, 1)
    logits = sharpness * torch.randn(LAYERS, IMAGES, HEADS, PATCHES, generator=generator)
    return list(logits.softmax(-1)), list(torch.rand(LAYERS, IMAGES, HEADS, generator=generator))


def in_batches(observed, sizes, *, mass=True, check=True):
    attention, cls_mass = observed
    accumulator, start = StructureAccumulator(check=check), 0
    for size in sizes:
        part = slice(start, start + size)
        accumulator.update([a[part] for a in attention], [m[part] for m in cls_mass] if mass else None)
        start += size
    assert start == IMAGES
    return accumulator.compute()


def assert_equal(one, other, tolerance=1e-6):
    for metric in (*structure_metrics(), "cls_mass"):
        torch.testing.assert_close(one.heads(metric), other.heads(metric), rtol=0, atol=tolerance)
    assert one.images == other.images


def test_one_batch_equals_the_functions(observed) -> None:
    attention, cls_mass = observed
    summary = in_batches(observed, [IMAGES])
    for layer, a in enumerate(attention):
        a = a.double()
        for name, function in (("entropy", entropy), ("erf95", erf), ("gini", gini)):
            np.testing.assert_allclose(summary.heads(name)[layer], function(a).mean(0), atol=1e-6)
        np.testing.assert_allclose(
            summary.heads("head_diversity")[layer], head_diversity(a.mean(0), per_head=True), atol=1e-6
        )
        np.testing.assert_allclose(summary.heads("cls_mass")[layer], cls_mass[layer].double().mean(0), atol=1e-6)
    assert summary.images == IMAGES
    for metric in structure_metrics():
        assert summary.heads(metric).shape == (LAYERS, HEADS)
        assert summary.heads(metric).dtype == torch.float64
        np.testing.assert_allclose(summary.layers(metric), summary.heads(metric).mean(1))
        assert summary.mean(metric) == pytest.approx(float(summary.heads(metric).mean()), abs=1e-12)


def test_the_layer_value_of_head_diversity_is_that_of_all_pairs(observed) -> None:
    attention, _ = observed
    summary = in_batches(observed, [8, 8, 7])
    expected = [float(head_diversity(a.double().mean(0))) for a in attention]
    np.testing.assert_allclose(summary.layers("head_diversity"), expected, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, IMAGES - 1), max_size=5))
def test_the_batch_size_does_not_matter(cuts) -> None:
    generator = torch.Generator().manual_seed(1)
    scale = torch.linspace(0.2, 6, IMAGES).view(1, -1, 1, 1)
    logits = scale * torch.randn(LAYERS, IMAGES, HEADS, PATCHES, generator=generator)
    observed = list(logits.softmax(-1)), list(torch.rand(LAYERS, IMAGES, HEADS, generator=generator))
    edges = [0, *sorted(set(cuts)), IMAGES]
    assert_equal(in_batches(observed, np.diff(edges).tolist()), in_batches(observed, [IMAGES]))


def test_a_small_last_batch_counts_as_its_images(observed) -> None:
    attention, _ = observed
    naive = np.mean([float(head_diversity(a.mean(0))) for a in (attention[0][:22], attention[0][22:])])
    summary = in_batches(observed, [22, 1])
    assert float(summary.layers("head_diversity")[0]) == pytest.approx(
        float(head_diversity(attention[0].double().mean(0))), abs=1e-6
    )
    assert abs(naive - float(summary.layers("head_diversity")[0])) > 0.01


def test_half_precision_and_scale(observed) -> None:
    attention, cls_mass = observed
    halves = [a.half() for a in attention], [m.half() for m in cls_mass]
    floats = [a.float() for a in halves[0]], [m.float() for m in halves[1]]
    assert_equal(in_batches(halves, [10, 13]), in_batches(floats, [IMAGES]))
    doubled = [3 * a for a in attention], cls_mass
    assert_equal(in_batches(doubled, [IMAGES]), in_batches(observed, [IMAGES]))


def test_layers_may_differ_in_patches() -> None:
    generator = torch.Generator().manual_seed(2)
    shapes = (9, 4, 9)
    attention = [torch.rand(5, 3, n, generator=generator, dtype=torch.float64) for n in shapes]
    accumulator = StructureAccumulator()
    accumulator.update([a[:2] for a in attention])
    accumulator.update([a[2:] for a in attention])
    summary = accumulator.compute()
    np.testing.assert_allclose(summary.heads("gini"), torch.stack([gini(a).mean(0) for a in attention]), atol=1e-12)
    expected = torch.stack([head_diversity((a / a.sum(-1, keepdim=True)).mean(0), per_head=True) for a in attention])
    np.testing.assert_allclose(summary.heads("head_diversity"), expected, atol=1e-12)


def test_no_graph_is_kept_and_nothing_is_stored(observed) -> None:
    attention = [a.clone().requires_grad_() for a in observed[0]]
    accumulator = StructureAccumulator()
    accumulator.update(attention)
    assert not accumulator.compute().heads("entropy").requires_grad
    attention[0].data.zero_()
    torch.testing.assert_close(accumulator.compute().heads("entropy"), in_batches(observed, [IMAGES]).heads("entropy"))
    with pytest.raises(ValueError, match="`cls_mass` was not measured"):
        accumulator.compute().mean("cls_mass")


def test_errors_leave_the_sums_alone(observed) -> None:
    attention, cls_mass = observed
    accumulator = StructureAccumulator()
    with pytest.raises(ValueError, match="no batch was added yet"):
        accumulator.compute()
    accumulator.update(attention, cls_mass)
    nan = [a.clone() for a in attention]
    nan[1][3, 2, 1] = float("nan")
    cases = [
        ([], None, "attention: expected one tensor"),
        (attention[:2], cls_mass[:2], "attention: 2 layers .* do not fit the earlier batches"),
        ([a[..., :5] for a in attention], cls_mass, "do not fit the earlier batches"),
        ([attention[0][0]] * 3, cls_mass, r"attention: layer 1 must have shape \(images, heads, patches\)"),
        ([attention[0], attention[1][:5], attention[2]], cls_mass, "attention: layer 2 has"),
        ([a[:, :1] for a in attention], None, "head diversity compares heads"),
        (nan, cls_mass, "attention: contains NaN"),
        ([-a for a in attention], cls_mass, "attention: contains negative values"),
        (attention, None, "cls_mass: give it with every batch or with none"),
        (attention, cls_mass[:2], "cls_mass: has 2 layers, attention has 3"),
        (attention, [m[:5] for m in cls_mass], "cls_mass: layer 1 must have shape"),
        (attention, [m * float("nan") for m in cls_mass], "cls_mass: must lie in 0..1"),
    ]
    for bad, mass, message in cases:
        with pytest.raises(ValueError, match=message):
            accumulator.update(bad, mass)
    assert accumulator.images == IMAGES
    assert_equal(accumulator.compute(), in_batches(observed, [IMAGES]))
    with pytest.raises(ValueError, match="`ginni` was not measured; did you mean `gini`"):
        accumulator.compute().mean("ginni")


def test_unchecked_attention_that_is_not_finite_has_no_mean() -> None:
    accumulator = StructureAccumulator(check=False)
    good, bad = torch.rand(2, 3, 5), torch.rand(2, 3, 5)
    bad[1, 2, 3] = float("nan")
    accumulator.update([good, bad])
    with pytest.raises(ValueError, match="layer 2 had NaN"):
        accumulator.compute()
