"""Retention measures: k-NN against a reference in float64, and what every measure declares."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attndrift.registry import UnknownNameError
from attndrift.results.measures import MEASURES
from attndrift.retention.measures.knn import knn_predictions


def _reference(queries: np.ndarray, bank: np.ndarray, labels: np.ndarray, classes: int, k: int, t: float) -> list[int]:
    found = []
    for query in queries.astype(np.float64):
        cosine = [float(query @ row) / np.linalg.norm(query) / np.linalg.norm(row) for row in bank.astype(np.float64)]
        votes = np.zeros(classes)
        for index in sorted(range(len(bank)), key=lambda i: -cosine[i])[:k]:
            votes[labels[index]] += np.exp(cosine[index] / t)
        found.append(int(votes.argmax()))
    return found


@pytest.mark.parametrize(("k", "t", "size"), [(1, 0.07, 50), (20, 0.07, 300), (20, 1.0, 15), (7, 0.01, 64)])
def test_knn_is_a_weighted_vote(k: int, t: float, size: int) -> None:
    rng = np.random.default_rng(k + size)
    centres = rng.normal(size=(5, 16))
    labels = rng.integers(5, size=size)
    bank = (centres[labels] + rng.normal(scale=2.0, size=(size, 16))).astype(np.float32)
    queries = (centres[rng.integers(5, size=80)] + rng.normal(scale=2.0, size=(80, 16))).astype(np.float32)
    found = knn_predictions(torch.from_numpy(queries), torch.from_numpy(bank), torch.from_numpy(labels), 5, k, t)
    assert found.tolist() == _reference(queries, bank, labels, 5, k, t)
    # The length of an embedding says nothing.
    scaled = knn_predictions(torch.from_numpy(9 * queries), torch.from_numpy(bank), torch.from_numpy(labels), 5, k, t)
    assert torch.equal(scaled, found)


def test_every_measure_says_what_it_is() -> None:
    for measure in MEASURES:
        assert measure.label
        assert measure.meaning
        assert measure.source
        assert callable(measure.function)
    with pytest.raises(UnknownNameError, match="there is no retention measure `kn`; did you mean `knn`"):
        MEASURES["kn"]
