"""Collapse metrics against closed forms and against numpy and scipy in float64."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from attndrift.metrics import effective_rank, mean_pairwise_cosine, modality_gap, procrustes_residual


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("n", "d"), [(12, 5), (6, 20), (9, 9), (4, 1)])
def test_effective_rank_is_that_of_numpy(n: int, d: int) -> None:
    x = _random(n, d) * torch.arange(1.0, d + 1) + 7
    values = np.linalg.svd(np.asarray(x - x.mean(0)), compute_uv=False)
    shares = values[values > 1e-10] / values.sum()
    expected = math.exp(-(shares * np.log(shares)).sum())
    assert float(effective_rank(x)) == pytest.approx(expected, rel=1e-9)
    assert 1 - 1e-12 <= expected <= min(n - 1, d) + 1e-9
    # Shift, scale and rotation change nothing.
    turn = torch.linalg.qr(_random(d, d, seed=1)).Q
    assert float(effective_rank(3 * x @ turn - 2)) == pytest.approx(expected, rel=1e-9)


def test_effective_rank_of_known_spectra() -> None:
    simplex = torch.eye(8)  # 8 corners: 7 equal singular values once centred
    assert float(effective_rank(simplex)) == pytest.approx(7)
    line = torch.arange(6.0)[:, None] * torch.tensor([[1.0, 2.0, -1.0]]) + 5
    assert float(effective_rank(line)) == pytest.approx(1)
    assert float(effective_rank(simplex.half())) == pytest.approx(7)
    assert math.isnan(float(effective_rank(torch.full((5, 3), 0.1))))
    assert math.isnan(float(effective_rank(torch.full((5, 3), math.nan))))


def test_mean_cosine_is_that_of_all_pairs() -> None:
    x = _random(7, 4) + 0.5
    pairs = [np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b) for a, b in combinations(np.asarray(x), 2)]
    assert float(mean_pairwise_cosine(x)) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert float(mean_pairwise_cosine(x * torch.arange(1.0, 8)[:, None])) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert float(mean_pairwise_cosine(torch.ones(5, 3))) == pytest.approx(1)
    assert float(mean_pairwise_cosine(torch.eye(6))) == pytest.approx(0)
    simplex = torch.eye(5) - 0.2
    assert float(mean_pairwise_cosine(simplex)) == pytest.approx(-1 / 4)
    assert math.isnan(float(mean_pairwise_cosine(torch.zeros(3, 2))))


@pytest.mark.parametrize(("n", "d"), [(10, 4), (5, 16), (6, 6)])
def test_procrustes_residual_is_that_of_the_best_rotation(n: int, d: int) -> None:
    x, y = _random(n, d) + 1, _random(n, d, seed=2) * torch.arange(1.0, d + 1)
    one, other = (np.asarray(values - values.mean(0)) for values in (x, y))
    one, other = one / np.linalg.norm(one), other / np.linalg.norm(other)
    rotation, _ = scipy.linalg.orthogonal_procrustes(one, other)
    expected = np.linalg.norm(one @ rotation - other) ** 2 / 2
    assert float(procrustes_residual(x, y)) == pytest.approx(expected, abs=1e-12)
    assert float(procrustes_residual(y, x)) == pytest.approx(expected, abs=1e-12)
    turn = torch.linalg.qr(_random(d, d, seed=3)).Q
    assert float(procrustes_residual(x, 5 * x @ turn + 3)) == pytest.approx(0, abs=1e-12)
    assert math.isnan(float(procrustes_residual(x, torch.ones(n, d))))


def test_procrustes_residual_of_a_cloud_that_collapses_to_a_line() -> None:
    """An isotropic cloud of k dimensions against its first coordinate: 1 - 1 / sqrt(k)."""
    corners = torch.cat((torch.eye(4), -torch.eye(4)))
    line = corners * torch.tensor([1.0, 0, 0, 0])
    assert float(procrustes_residual(corners, line)) == pytest.approx(1 - 1 / math.sqrt(4))


def test_modality_gap_is_the_distance_of_the_mean_directions() -> None:
    images, texts = _random(9, 6) + 1, _random(4, 6, seed=1)
    one, other = (np.asarray(values / values.norm(dim=1, keepdim=True)).mean(0) for values in (images, texts))
    assert float(modality_gap(images, texts)) == pytest.approx(np.linalg.norm(one - other), abs=1e-12)
    assert float(modality_gap(2 * images, texts / 3)) == pytest.approx(np.linalg.norm(one - other), abs=1e-12)
    corner = torch.tensor([[1.0, 0.0]])
    assert float(modality_gap(corner, -3 * corner)) == pytest.approx(2)
    assert float(modality_gap(corner.repeat(5, 1), 7 * corner)) == 0
    assert float(modality_gap(corner, torch.tensor([[0.0, 1.0], [0.0, 2.0]]))) == pytest.approx(math.sqrt(2))
    assert math.isnan(float(modality_gap(corner, torch.zeros(1, 2))))
