"""Retention measures against references in float64, their own settings, and what every measure declares."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.optimize import minimize

from attndrift.registry import UnknownNameError
from attndrift.results.measures import MEASURES
from attndrift.retention.measures.knn import knn_predictions
from attndrift.retention.measures.linear_probe import fit_probe, held_out
from attndrift.retention.task import Labelled, RetentionTask
from attndrift.study.settings import RunSettings
from benchmarks.memory import peak_bytes


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
    # However small the parts are that queries and bank are taken in.
    given = (torch.from_numpy(queries), torch.from_numpy(bank), torch.from_numpy(labels))
    for largest in (1, 16 * 7, 16 * 40):
        assert torch.equal(knn_predictions(*given, 5, k, t, largest=largest), found)
    # The length of an embedding says nothing.
    scaled = knn_predictions(torch.from_numpy(9 * queries), torch.from_numpy(bank), torch.from_numpy(labels), 5, k, t)
    assert torch.equal(scaled, found)


def test_no_matrix_of_knn_is_larger_than_allowed() -> None:
    queries, bank = torch.randn(1500, 8), torch.randn(6000, 8)
    labels = torch.arange(6000) % 7
    knn_predictions(queries[:5], bank[:50], labels[:50], 7)
    held = peak_bytes(lambda: knn_predictions(queries, bank, labels, 7, largest=2**16))
    # The matrix of similarities, what is sorted of it, and the parts: not the 36 MB of all similarities.
    assert held < 8 * 4 * 2**16
    assert peak_bytes(lambda: knn_predictions(queries, bank, labels, 7)) > 36e6 > held


def test_every_measure_says_what_it_is() -> None:
    for measure in MEASURES:
        assert measure.label
        assert measure.meaning
        assert measure.source
        assert callable(measure.function)
    with pytest.raises(UnknownNameError, match="there is no retention measure `kn`; did you mean `knn`"):
        MEASURES["kn"]


def _features(seed: int, size: int, *, classes: int = 4, width: int = 12) -> tuple[np.ndarray, np.ndarray]:
    centres = np.random.default_rng(1).normal(size=(classes, width))
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=size)
    return (3 * (centres[labels] + rng.normal(scale=1.2, size=(size, width)))).astype(np.float32), labels


def _probability_gradient(bank: np.ndarray, labels: np.ndarray, weights: np.ndarray, c: float) -> float:
    """The largest entry of the gradient of the mean penalised log loss, written down in float64."""
    x = np.hstack([bank.astype(np.float64), np.ones((len(bank), 1))])
    scores = x @ weights.T
    probabilities = np.exp(scores - scores.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    gradient = (probabilities - np.eye(len(weights))[labels]).T @ x
    gradient[:, :-1] += weights[:, :-1] / c
    return float(np.abs(gradient).max()) / len(bank)


def _reference_probe(bank: np.ndarray, labels: np.ndarray, queries: np.ndarray, c: float) -> np.ndarray:
    """Classes by penalised logistic regression, by another optimiser than the measure's."""
    classes, width = int(labels.max()) + 1, bank.shape[1] + 1
    x = np.hstack([bank.astype(np.float64), np.ones((len(bank), 1))])
    hot = np.eye(classes)[labels]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(classes, width)
        scores = x @ weights.T
        peak = scores.max(1, keepdims=True)
        log_sum = peak[:, 0] + np.log(np.exp(scores - peak).sum(1))
        value = (log_sum - (scores * hot).sum(1)).sum() + (weights[:, :-1] ** 2).sum() / (2 * c)
        gradient = (np.exp(scores - log_sum[:, None]) - hot).T @ x
        gradient[:, :-1] += weights[:, :-1] / c
        return float(value), gradient.ravel()

    found = minimize(loss, np.zeros(classes * width), jac=True, method="BFGS", options={"gtol": 1e-7})
    weights = found.x.reshape(classes, width)
    assert _probability_gradient(bank, labels, weights, c) < 1e-6
    return (np.hstack([queries, np.ones((len(queries), 1))]) @ weights.T).argmax(1)


@pytest.mark.parametrize("size", [60, 240])
def test_probe_is_logistic_regression_with_c_of_a_held_out_tenth(size: int) -> None:
    (bank, labels), (queries, wanted) = _features(2, size), _features(3, 300)
    found = fit_probe(queries, bank, labels, values=8)
    grid = 10.0 ** np.linspace(-6, 5, 8)
    out = held_out(labels)
    assert {int(label): int((out & (labels == label)).sum()) for label in range(4)} == {
        label: max(1, int((labels == label).sum()) // 10) for label in range(4)
    }
    scores = [np.mean(_reference_probe(bank[~out], labels[~out], bank[out], c) == labels[out]) for c in grid]
    assert found.c == pytest.approx(grid[int(np.argmax(scores))])
    assert found.converged
    agreement = np.mean(found.predictions == _reference_probe(bank, labels, queries, found.c))
    assert agreement > 0.995
    assert np.mean(found.predictions == wanted) > 0.5
    assert np.array_equal(fit_probe(queries, bank, labels, values=8).predictions, found.predictions)


def test_probe_of_one_image_a_class_needs_no_choice_and_of_one_class_is_refused() -> None:
    bank = np.eye(3, dtype=np.float32)
    found = fit_probe(bank, bank, np.array([2, 0, 1]))
    assert (found.c, found.predictions.tolist()) == (1.0, [2, 0, 1])
    with pytest.raises(ValueError, match="linear_probe: its bank has images of one class alone"):
        fit_probe(bank, bank, np.array([1, 1, 1]))


class _Columns(torch.nn.Module):
    """A model whose embedding of an image is its first row of one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.scale * pixel_values[:, 0, 0]


class _Stored:
    def __init__(self, rows: np.ndarray) -> None:
        self.images = torch.from_numpy(rows)[:, None, None].expand(-1, 3, rows.shape[1], -1)

    def fetch(self, positions: range) -> torch.Tensor:
        return self.images[positions.start : positions.stop]


def _task(**given: object) -> RetentionTask:
    (bank, labels), (queries, wanted) = _features(2, 60), _features(3, 40)
    names = ("a", "b", "c", "d")
    asked = Labelled(_Stored(queries), wanted)
    return RetentionTask("mine", "test", asked, names, **{"bank": lambda: Labelled(_Stored(bank), labels), **given})


@pytest.mark.parametrize("name", ["knn", "linear_probe"])
def test_own_settings_reach_a_measure_and_its_result_says_them(name: str) -> None:
    given = {"knn": {"knn_k": 3, "knn_temperature": 0.5}, "linear_probe": {"probe_c_values": 1}}[name]
    found = MEASURES[name].measure(_Columns(), _task(), given)
    said = {"knn": {"k": 3, "temperature": 0.5}, "linear_probe": {"c": 1e-6}}[name]
    assert {key: found.to_json()[key] for key in said} == pytest.approx(said)
    assert (found.n, found.to_json()["bank"]) == (40, 60)


@pytest.mark.parametrize(
    ("name", "says"), [("zero_shot", "no text tower"), ("knn", "a bank"), ("linear_probe", "a bank")]
)
def test_a_measure_is_refused_by_name_without_what_it_needs(name: str, says: str) -> None:
    with pytest.raises(ValueError, match=f"measure: {name} .*{says}"):
        MEASURES[name].measure(_Columns(), _task(bank=None))


def test_a_study_gives_a_measure_its_settings_and_no_other_run() -> None:
    settings = RunSettings(dataset="tiles", measures=("knn", "linear_probe"), knn_k=5)
    assert settings.own | {"probe_c_values": 12} == settings.own
    assert settings.own["knn_k"] == 5
    with pytest.raises(ValidationError, match=r"`knn_k` needs measures: knn; this run has measures: zero_shot"):
        RunSettings(dataset="tiles", knn_k=5)
    with pytest.raises(ValidationError, match="knn_temperature"):
        RunSettings(dataset="tiles", measures="knn", knn_temperature=0.0)
