"""Attention metrics against closed forms, float64 numpy references and properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from attndrift.metrics import entropy, erf, gini, head_diversity

ROWS = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 4), st.integers(2, 60)),
    # Nothing below 1e-6, so that the float32 sums of the properties cannot underflow.
    elements=st.one_of(st.just(0.0), st.floats(1e-6, 1.0)),
).filter(lambda rows: bool((rows.sum(-1) > 0).all()))


def reference_entropy(row):
    a = np.asarray(row, np.float64) / np.sum(row, dtype=np.float64)
    a = a[a > 0]
    return -np.sum(a * np.log(a))


def reference_erf(row, p):
    """By definition: the fewest patches; fractions of whole numbers keep the ties exact."""
    values = sorted(np.asarray(row, np.float64), reverse=True)
    total = math.fsum(values)
    for k in range(1, len(values) + 1):
        if math.fsum(values[:k]) >= p * total - 1e-12 * total:
            return k / len(values)
    return 1.0


def reference_gini(row):
    """The mean absolute difference of all pairs, over twice the mean."""
    a = np.asarray(row, np.float64)
    return np.abs(a[:, None] - a[None, :]).sum() / (2 * len(a) ** 2 * a.mean())


def reference_diversity(maps):
    maps = np.asarray(maps, np.float64)
    heads = len(maps)
    cosines = [
        maps[i] @ maps[j] / (np.linalg.norm(maps[i]) * np.linalg.norm(maps[j])) for i in range(heads) for j in range(i)
    ]
    return 1 - np.mean(cosines)


def softmax_rows(seed, shape, scale=3.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(scale * torch.randn(shape, generator=generator, dtype=torch.float64), -1).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_closed_forms(dtype) -> None:
    n = 49
    uniform = torch.full((n,), 1 / n, dtype=dtype)
    one_hot = torch.zeros(n, dtype=dtype)
    one_hot[17] = 1
    two = torch.zeros(n, dtype=dtype)
    two[3], two[40] = 0.75, 0.25
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12

    assert float(entropy(uniform)) == pytest.approx(math.log(n), abs=tolerance)
    assert float(entropy(uniform, base=2)) == pytest.approx(math.log2(n), abs=2 * tolerance)
    assert float(entropy(uniform, normalized=True)) == pytest.approx(1, abs=tolerance)
    assert float(entropy(one_hot)) == 0
    assert float(entropy(two)) == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25), abs=tolerance)

    assert float(erf(uniform)) == pytest.approx(math.ceil(0.95 * n) / n, abs=tolerance)
    assert float(erf(one_hot)) == pytest.approx(1 / n, abs=tolerance)
    assert float(erf(two)) == pytest.approx(2 / n, abs=tolerance)
    assert float(erf(two, p=0.75)) == pytest.approx(1 / n, abs=tolerance)

    assert float(gini(uniform)) == pytest.approx(0, abs=tolerance)
    assert float(gini(one_hot)) == pytest.approx((n - 1) / n, abs=tolerance)
    assert float(gini(two)) == pytest.approx((n - 2) / n + (0.75 - 0.25) / n, abs=tolerance)


def test_nats_agree_with_the_published_baseline() -> None:
    assert math.log(49) == pytest.approx(3.892, abs=5e-4)
    assert float(entropy(torch.ones(49))) == pytest.approx(math.log(49), abs=1e-6)


def test_head_diversity_closed_forms() -> None:
    equal = torch.ones(4, 7)
    apart = torch.eye(4, 7)
    half = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    assert float(head_diversity(equal)) == pytest.approx(0, abs=1e-7)
    assert float(head_diversity(apart)) == pytest.approx(1, abs=1e-7)
    assert float(head_diversity(half)) == pytest.approx(0.5, abs=1e-7)
    odd_one_out = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    torch.testing.assert_close(
        head_diversity(odd_one_out, per_head=True), torch.tensor([0.5, 0.5, 1.0]), atol=1e-7, rtol=0
    )
    assert float(head_diversity(odd_one_out)) == pytest.approx(2 / 3, abs=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_against_references(dtype) -> None:
    rows = softmax_rows(0, (5, 3, 49), dtype=dtype)
    flat = rows.reshape(-1, 49).double().numpy()
    for function, reference in (
        (entropy, reference_entropy),
        (erf, lambda row: reference_erf(row, 0.95)),
        (lambda a: erf(a, 0.5), lambda row: reference_erf(row, 0.5)),
        (gini, reference_gini),
    ):
        got = function(rows)
        assert got.dtype == dtype
        assert got.shape == (5, 3)
        expected = np.array([reference(row) for row in flat]).reshape(5, 3)
        np.testing.assert_allclose(got.double().numpy(), expected, atol=2e-6 if dtype == torch.float32 else 1e-12)
    diversity = head_diversity(rows)
    expected = np.array([reference_diversity(maps) for maps in rows.double().numpy()])
    np.testing.assert_allclose(diversity.double().numpy(), expected, atol=1e-6 if dtype == torch.float32 else 1e-12)
    torch.testing.assert_close(head_diversity(rows, per_head=True).mean(-1), diversity)


def test_erf_reaches_n_where_rounding_keeps_the_sum_below_p() -> None:
    def naive(row, p):
        reached = row.sort(descending=True).values.cumsum(0) >= p
        return (int(reached.int().argmax()) + 1) / len(row)

    # Each of 49 values is 1/49 rounded down, so together they miss 1.
    row = torch.nextafter(torch.full((49,), 1 / 49), torch.zeros(()))
    assert naive(row, 1.0) == 1 / 49
    assert float(erf(row, 1.0)) == 1.0
    # Half precision loses more: these values, 49 times 1/49 without their last bits, sum to 0.94.
    row = torch.full((49,), 0.94 / 49, dtype=torch.bfloat16)
    assert naive(row.float(), 0.95) == 1 / 49
    assert float(erf(row)) == pytest.approx(47 / 49, abs=1e-7)


def test_erf_ties_are_exact() -> None:
    for n, p, k in ((20, 0.95, 19), (100, 0.95, 95), (10, 0.7, 7), (10, 0.1, 1), (3, 1.0, 3), (40, 0.05, 2)):
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            row = torch.full((n,), 1 / n, dtype=torch.float64).to(dtype)
            assert float(erf(row, p)) == pytest.approx(k / n, abs=1e-6), (n, p, dtype)
    for n in range(2, 300):
        for p in (0.05, 0.25, 0.5, 0.9, 0.95):
            k = math.ceil(round(p * n, 9))
            assert round(float(erf(torch.full((n,), 1 / n), p)) * n) == k, (n, p)
    # A real shortfall is not a tie.
    row = torch.tensor([0.95 - 1e-9, 0.05 + 1e-9], dtype=torch.float64)
    assert float(erf(row, 0.95)) == 1.0


def test_half_precision_is_computed_in_float32() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        rows = softmax_rows(1, (6, 49), dtype=dtype)
        for function in (entropy, erf, gini, head_diversity):
            got = function(rows)
            assert got.dtype == torch.float32
            torch.testing.assert_close(got, function(rows.float()), rtol=0, atol=0)
    # 1e-10 is 0 in half precision, and an epsilon of 1e-10 would make this log(0).
    zeros = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float16)
    assert float(entropy(zeros)) == 0


@settings(max_examples=60, deadline=None)
@given(ROWS, st.randoms(use_true_random=False), st.sampled_from([1e-3, 0.5, 7.0, 1e4]))
def test_permutation_and_scale_do_not_matter_and_bounds_hold(rows, random, factor) -> None:
    n = rows.shape[-1]
    order = list(range(n))
    random.shuffle(order)
    a = torch.from_numpy(rows)
    for values in (a, a.float()):
        tolerance = 1e-9 if values.dtype == torch.float64 else 3e-5
        for function in (entropy, erf, gini):
            got = function(values)
            torch.testing.assert_close(function(values[:, order]), got, rtol=0, atol=tolerance)
            if function is not erf or values.dtype == torch.float64:
                torch.testing.assert_close(function(values * factor), got, rtol=0, atol=tolerance)
        assert ((entropy(values) >= 0) & (entropy(values) <= math.log(n) + tolerance)).all()
        counts = erf(values) * n
        assert ((counts >= 1 - 1e-4) & (counts <= n + 1e-4)).all()
        torch.testing.assert_close(counts, counts.round(), rtol=0, atol=1e-4)
        assert ((gini(values) >= 0) & (gini(values) <= (n - 1) / n + tolerance)).all()
    np.testing.assert_allclose(gini(a).numpy(), [reference_gini(row) for row in rows], atol=1e-9)
    np.testing.assert_allclose(erf(a, 0.9).numpy(), [reference_erf(row, 0.9) for row in rows])


@settings(max_examples=40, deadline=None)
@given(ROWS.filter(lambda rows: len(rows) > 1), st.floats(0.01, 100))
def test_head_diversity_properties(rows, factor) -> None:
    a = torch.from_numpy(rows)
    value = head_diversity(a)
    assert 0 <= float(value) <= 1 + 1e-9
    scales = torch.linspace(1, factor, len(a), dtype=torch.float64).unsqueeze(1)
    torch.testing.assert_close(head_diversity(a * scales), value, rtol=0, atol=1e-9)
    torch.testing.assert_close(head_diversity(a.flip(0)), value, rtol=0, atol=1e-9)
    assert float(value) == pytest.approx(reference_diversity(rows), abs=1e-9)


@pytest.mark.parametrize("function", [entropy, gini, head_diversity])
def test_gradients(function) -> None:
    rows = softmax_rows(2, (3, 9), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(function, (rows,))


def test_entropy_gradient_at_zero_is_finite() -> None:
    row = torch.tensor([0.7, 0.3, 0.0, 0.0], requires_grad=True)
    entropy(row).backward()
    assert torch.isfinite(row.grad).all()
    assert row.grad.abs().sum() > 0


def test_one_patch() -> None:
    one = torch.tensor([[0.3], [2.0]])
    assert entropy(one).tolist() == [0, 0]
    assert gini(one).tolist() == [0, 0]
    assert erf(one).tolist() == [1, 1]
    assert float(head_diversity(one)) == 0
    with pytest.raises(ValueError, match="one patch has no normalised entropy"):
        entropy(one, normalized=True)


BAD = {
    "negative": (torch.tensor([0.5, -0.1, 0.6]), r"{name}: contains negative values .*-0\.1"),
    "nan": (torch.tensor([0.5, float("nan"), 0.6]), "{name}: contains NaN"),
    "inf": (torch.tensor([0.5, float("inf"), 0.6]), "{name}: contains NaN or infinite"),
    "zeros": (torch.zeros(3), "{name}: cannot be normalised, a row .* sums to 0"),
    "one zero row": (torch.tensor([[0.5, 0.5, 0], [0, 0, 0]]), "{name}: cannot be normalised"),
    "denormal": (torch.full((3,), 1e-40), "{name}: cannot be normalised"),
    "overflow": (torch.full((3,), 3e38), "{name}: cannot be normalised, a row .* sums to inf"),
    "empty": (torch.zeros(2, 0), "{name}: expected shape .*patches"),
    "scalar": (torch.tensor(1.0), "{name}: expected shape .*patches"),
    "integers": (torch.ones(3, dtype=torch.int64), "{name}: expected floating-point values, got torch.int64"),
    "numpy": (np.ones(3), "{name}: expected a torch tensor .*ndarray"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("function", [entropy, erf, gini])
def test_bad_attention_is_an_error(function, case) -> None:
    value, message = BAD[case]
    with pytest.raises(ValueError, match=message.format(name="attention")):
        function(value)


@pytest.mark.parametrize("case", [case for case in BAD if case not in ("scalar", "numpy")])
def test_bad_maps_are_an_error(case) -> None:
    value, message = BAD[case]
    with pytest.raises(ValueError, match=message.format(name="mean_maps")):
        head_diversity(torch.stack([value, value]))


def test_bad_options_are_errors() -> None:
    row = torch.ones(4)
    for p in (0.0, -1.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="p: expected a share"):
            erf(row, p)
    for base in (0.0, 1.0, -2.0, float("inf")):
        with pytest.raises(ValueError, match="base: expected a positive number"):
            entropy(row, base=base)
    with pytest.raises(ValueError, match="mean_maps: head diversity compares heads"):
        head_diversity(torch.ones(1, 5))
    with pytest.raises(ValueError, match="mean_maps: expected shape"):
        head_diversity(torch.ones(5))


def test_check_false_skips_the_look_at_values_only() -> None:
    with_negative = torch.tensor([0.5, -0.1, 0.6])
    assert torch.isfinite(gini(with_negative, check=False))
    with pytest.raises(ValueError, match="expected shape"):
        gini(torch.tensor(1.0), check=False)
    row = softmax_rows(3, (8,))
    for function in (entropy, erf, gini):
        torch.testing.assert_close(function(row, check=False), function(row), rtol=0, atol=0)
