"""CKA and embedding drift against independent references and known levels."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attndrift.metrics import cka_chance_level, cross_layer_cka, embedding_drift, linear_cka, linear_cka_both
from attndrift.metrics import representation as module


def clouds(seed, n, p, q, mix=0.5):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, p, generator=generator, dtype=torch.float64) + 3
    y = torch.randn(n, q, generator=generator, dtype=torch.float64) - 2
    shared = min(p, q)
    y[:, :shared] += mix * x[:, :shared]
    return x, y


def reference_cka(x, y):
    """Kornblith 2019 by centring the Gram matrices."""
    n = len(x)
    centre = np.eye(n) - 1 / n
    k, m = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre
    return np.trace(k @ m) / np.sqrt(np.trace(k @ k) * np.trace(m @ m))


def reference_hsic(k, m):
    """The unbiased estimator by its definition: the mean over all tuples of four different images."""
    n = len(k)
    total, count = 0.0, 0
    indices = range(n)
    for i in indices:
        for j in indices:
            for q in indices:
                for r in indices:
                    if len({i, j, q, r}) == 4:
                        total += k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q])
                        count += 1
    return total / count


@pytest.mark.parametrize(("n", "p", "q"), [(12, 3, 5), (5, 40, 30), (30, 8, 300), (20, 20, 20)])
def test_plain_form(n, p, q) -> None:
    x, y = clouds(n, n, p, q)
    assert float(linear_cka(x, y)) == pytest.approx(reference_cka(x.numpy(), y.numpy()), abs=1e-12)
    assert linear_cka(x.float(), y.float()).dtype == torch.float64
    assert linear_cka(x, y).ndim == 0


@pytest.mark.parametrize(("p", "q"), [(2, 3), (20, 30)])
def test_debiased_form_is_the_mean_over_tuples(p, q) -> None:
    x, y = clouds(3, 7, p, q)
    k, m = (x @ x.T).numpy(), (y @ y.T).numpy()
    expected = reference_hsic(k, m) / np.sqrt(reference_hsic(k, k) * reference_hsic(m, m))
    assert float(linear_cka(x, y, debiased=True)) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(("n", "p", "q"), [(9, 4, 6), (9, 60, 6), (40, 11, 90)])
def test_feature_and_gram_form_are_equal(n, p, q, monkeypatch) -> None:
    x, y = clouds(n + p, n, p, q)
    found = []
    for features in (True, False):
        monkeypatch.setattr(module, "_by_features", lambda x, y, features=features: features)
        found.append(linear_cka_both(x, y))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_the_cheaper_form_is_taken(monkeypatch) -> None:
    made = []
    products = module._products

    def seen(x, y):
        made.append(tuple(products(x, y)[0].shape))
        return products(x, y)

    monkeypatch.setattr(module, "_products", seen)
    many, few = clouds(0, 200, 4, 5), clouds(0, 20, 400, 400)
    for cka in (linear_cka, partial(linear_cka, debiased=True), linear_cka_both):
        cka(*many)
        cka(*few)
    assert made == [(4, 5), (20, 20)] * 3


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([(4, 3, 200), (9, 60, 6), (60, 5, 4)]))
def test_both_forms_at_once_are_the_two_bit_for_bit(seed, shape) -> None:
    x, y = clouds(seed, *shape)
    plain, debiased = linear_cka_both(x.float(), y.float())
    assert torch.equal(plain, linear_cka(x.float(), y.float()))
    assert torch.equal(debiased, linear_cka(x.float(), y.float(), debiased=True))
    with pytest.raises(ValueError, match="x: debiased CKA needs at least 4 images"):
        linear_cka_both(x[:3], y[:3])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.floats(0.01, 100), st.booleans())
def test_rotation_scale_and_shift_do_not_matter(seed, factor, debiased) -> None:
    x, y = clouds(seed, 15, 6, 9)
    rotation = torch.linalg.qr(torch.randn(9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))[0]
    value = linear_cka(x, y, debiased=debiased)
    torch.testing.assert_close(linear_cka(x, factor * y @ rotation + 5, debiased=debiased), value, rtol=0, atol=1e-9)
    torch.testing.assert_close(linear_cka(y, x, debiased=debiased), value, rtol=0, atol=1e-12)
    assert float(linear_cka(x, x, debiased=debiased)) == pytest.approx(1, abs=1e-12)
    assert -1 <= float(value) <= 1


def test_chance_level_of_two_hundred_images() -> None:
    values = {True: [], False: []}
    for seed in range(4):
        x, y = clouds(seed, 200, 768, 768, mix=0.0)
        for debiased in (True, False):
            values[debiased].append(float(linear_cka(x, y, debiased=debiased)))
    assert cka_chance_level(200, 768) == pytest.approx(0.79, abs=5e-3)
    assert np.mean(values[False]) == pytest.approx(cka_chance_level(200, 768), abs=3e-3)
    assert np.abs(values[True]).max() < 0.02


@pytest.mark.parametrize(("n", "p", "q"), [(10, 5, 40), (50, 100, 20), (400, 16, 16)])
def test_chance_level_of_other_shapes(n, p, q) -> None:
    plain, debiased = [], []
    for seed in range(60):
        x, y = clouds(seed, n, p, q, mix=0.0)
        plain.append(float(linear_cka(x, y)))
        debiased.append(float(linear_cka(x, y, debiased=True)))
    spread = 4 * np.std(plain) / np.sqrt(len(plain))
    assert np.mean(plain) == pytest.approx(cka_chance_level(n, p, q), abs=spread + 0.01)
    assert abs(np.mean(debiased)) < 4 * np.std(debiased) / np.sqrt(len(debiased)) + 1e-3


def test_cka_keeps_its_digits_far_from_the_origin() -> None:
    x, y = clouds(5, 30, 6, 6)
    torch.testing.assert_close(
        linear_cka(x + 1e6, y - 1e6, debiased=True), linear_cka(x, y, debiased=True), atol=1e-7, rtol=0
    )


def test_cka_gradient() -> None:
    x, y = clouds(6, 8, 3, 4)
    for debiased in (False, True):
        assert torch.autograd.gradcheck(
            lambda a, b, debiased=debiased: linear_cka(a, b, debiased=debiased),
            (x.requires_grad_(), y.requires_grad_()),
        )


def test_cka_errors() -> None:
    x, y = clouds(0, 10, 3, 4)
    cases = [
        (x[:9], y, {}, "y: has 10 rows and x has 9"),
        (x[:1], y[:1], {}, "x: CKA needs at least 2 images"),
        (x[:3], y[:3], {"debiased": True}, "x: debiased CKA needs at least 4 images"),
        (x[0], y, {}, r"x: expected .* shape \(images, dimensions\)"),
        (x, y * float("nan"), {}, "y: contains NaN"),
        (x, torch.ones(10, 4), {}, "y: all 10 rows are equal"),
        (torch.full((10, 3), 0.1), y, {}, "x: all 10 rows are equal"),
        (x.numpy(), y, {}, "x: expected a torch tensor"),
    ]
    for a, b, options, message in cases:
        with pytest.raises(ValueError, match=message):
            linear_cka(a, b, **options)
    with pytest.raises(ValueError, match="expected n >= 2"):
        cka_chance_level(1, 5)


def test_embedding_drift() -> None:
    x, _ = clouds(7, 20, 6, 6)
    other = torch.randn(20, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    a, b = x.numpy(), other.numpy()
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert float(embedding_drift(x, other)) == pytest.approx(1 - cosines.mean(), abs=1e-12)
    assert float(embedding_drift(x, x * 3)) == pytest.approx(0, abs=1e-30)
    assert float(embedding_drift(x, -x)) == pytest.approx(2, abs=1e-12)
    assert float(embedding_drift(torch.tensor([[1.0, 0]]), torch.tensor([[0, 1.0]]))) == pytest.approx(1)
    assert embedding_drift(x.half(), other.half()).dtype == torch.float64
    # A turn of 1e-6 rad is a drift of 5e-13, below the resolution of 1 - cos.
    angle = torch.tensor([[np.cos(1e-6), np.sin(1e-6)]], dtype=torch.float64)
    assert float(embedding_drift(torch.tensor([[1.0, 0.0]]), angle)) == pytest.approx(5e-13, rel=1e-3)


def test_embedding_drift_errors() -> None:
    x, _ = clouds(7, 4, 6, 6)
    zero = x.clone()
    zero[2] = 0
    for a, b, message in (
        (x, x[:3], r"adapted: has shape \(3, 6\) and pretrained \(4, 6\)"),
        (x, zero, "adapted: row 2 is all zeros"),
        (zero, x, "pretrained: row 2 is all zeros"),
        (x, x * float("inf"), "adapted: contains NaN or infinite"),
        (x[0], x[0], "pretrained: expected"),
    ):
        with pytest.raises(ValueError, match=message):
            embedding_drift(a, b)


@pytest.mark.parametrize("debiased", [False, True])
def test_cross_layer_cka_is_that_of_each_pair_of_layers(debiased: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(3, 9, 4, generator=generator) + 2
    y = torch.randn(2, 9, 30, generator=generator)
    y[1, :, :4] += 3 * x[2]
    expected = [[float(linear_cka(one, other, debiased=debiased)) for other in y] for one in x]
    found = cross_layer_cka(x, y, debiased=debiased)
    assert found.tolist() == [pytest.approx(row, abs=1e-12) for row in expected]
    assert float(found[2].argmax()) == 1
    y[0] = 0.1
    assert cross_layer_cka(x, y, debiased=debiased).isnan().tolist() == [[True, False]] * 3
    with pytest.raises(ValueError, match=r"y: expected .* same images"):
        cross_layer_cka(x, y[:, :8], debiased=debiased)
    with pytest.raises(ValueError, match="at least 4"):
        cross_layer_cka(x[:, :3], y[:, :3])
