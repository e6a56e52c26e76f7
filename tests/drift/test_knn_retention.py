"""k-NN retention while a model trains: against a vote made by hand, in history, alerts and budgets, and null at chance."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model

from attndrift import Budget, DriftMonitor, Guard
from attndrift.drift import Alert, DriftWatch, KNNRetention
from attndrift.results.tables import read_tables

CLASSES = 3
Labelled = tuple[Tensor, "np.ndarray[Any, Any]"]


def _model() -> nn.Module:
    torch.manual_seed(0)
    return Dinov2Model(
        Dinov2Config(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8, mlp_ratio=2
        )
    ).eval()


def _images(seed: int, each: int, noise: float = 0.6) -> Labelled:
    pictures = torch.randn(CLASSES, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    labels = np.arange(CLASSES * each) % CLASSES
    blur = torch.randn(len(labels), 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    return (pictures[torch.from_numpy(labels)] + noise * blur).clamp(-3, 3), labels


QUERIES, BANK, PROBE = _images(1, 20), _images(2, 9), _images(3, 2)[0]


def _blind(model: nn.Module) -> None:
    """Leave of each patch what one pixel of one colour tells."""
    (kernel,) = (value for name, value in model.named_parameters() if name.endswith("projection.weight"))
    with torch.no_grad():
        kernel[:, 1:], kernel[:, 0, 1:], kernel[:, 0, 0, 1:] = 0, 0, 0


def _by_hand(model: nn.Module, k: int, temperature: float) -> float:
    with torch.no_grad():
        asked, known = (model(images).pooler_output.double().numpy() for images in (QUERIES[0], BANK[0]))
    right = 0
    for query, label in zip(asked, QUERIES[1], strict=True):
        cosine = known @ query / np.linalg.norm(known, axis=1) / np.linalg.norm(query)
        votes = np.zeros(CLASSES)
        for index in np.argsort(-cosine)[:k]:
            votes[BANK[1][index]] += np.exp(cosine[index] / temperature)
        right += int(votes.argmax() == label)
    return right / len(asked)


@pytest.mark.parametrize(("k", "temperature"), [(20, 0.07), (1, 1.0), (5, 0.5)])
def test_the_monitor_measures_the_vote_of_the_present_model(k: int, temperature: float) -> None:
    model = _model()
    knn = KNNRetention(model, QUERIES, BANK, k=k, temperature=temperature, batch_size=7)
    monitor = DriftMonitor(model, PROBE, knn=knn)
    assert knn.pretrained == _by_hand(model, k, temperature)
    first = monitor.measure(0)
    assert (first.knn_accuracy, first.knn_retention_pct) == (knn.pretrained, 100.0)
    _blind(model)
    drift, now = monitor.measure(1), _by_hand(model, k, temperature)
    assert drift.embedding_drift is not None
    assert drift.embedding_drift > 1e-3
    assert drift.knn_accuracy == now
    assert drift.knn_retention_pct == pytest.approx(100 * now / knn.pretrained)
    copied = pickle.loads(pickle.dumps(monitor))
    assert copied.measure().knn_accuracy == now


def test_adapters_are_set_aside_for_the_reference() -> None:
    model = get_peft_model(_model(), LoraConfig(r=2, target_modules=["fc1", "fc2"], init_lora_weights=False))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.mul_(30)
    knn = KNNRetention(model, QUERIES, BANK)
    assert knn.pretrained == _by_hand(_model(), 20, 0.07)
    assert DriftMonitor(model, PROBE, knn=knn).measure().knn_accuracy != knn.pretrained


def test_it_stands_in_history_alerts_and_budgets(tmp_path: Path) -> None:
    model = _model()
    monitor = DriftMonitor(model, PROBE, knn=KNNRetention(model, QUERIES, BANK))
    said: list[Any] = []
    alert = Alert("knn_retention_pct", below=90, action=said.append)
    watch = DriftWatch(monitor, every=1, alerts=[alert], folder=tmp_path, echo=None)
    guard = Guard(monitor, Budget("knn_retention_pct", at_least=40), every=100, echo=None)
    assert guard.meter.pretrained[0].value == 100.0
    watch.start()
    _blind(model)
    watch.step(1)
    watch.finish()
    history = read_tables(tmp_path).history.set_index("step")
    assert history.loc[0, "knn_retention_pct"] == 100.0
    assert history.loc[1, "knn_retention_pct"] == said[0].value < 90
    assert history.loc[1, "knn_accuracy"] == pytest.approx(_by_hand(model, 20, 0.07))


def test_at_chance_retention_is_null_with_its_reason_and_no_alert_watches_it() -> None:
    model = _model()
    noise = torch.randn(QUERIES[0].shape, generator=torch.Generator().manual_seed(8))
    monitor = DriftMonitor(model, PROBE, knn=KNNRetention(model, (noise, QUERIES[1]), BANK))
    drift = monitor.measure()
    assert drift.knn_accuracy is not None
    assert drift.knn_retention_pct is None
    assert "chance" in drift.missing["knn_retention_pct"]
    with pytest.raises(ValueError, match=r"alert on knn_retention_pct: the pretrained accuracy.*chance"):
        DriftWatch(monitor, every=1, alerts=[Alert("knn_retention_pct", below=90)], echo=None).start()
    assert DriftMonitor(model, PROBE).measure().knn_accuracy is None


def test_labels_with_gaps_are_as_many_classes_as_they_are() -> None:
    model = _model()
    noise = torch.randn(QUERIES[0].shape, generator=torch.Generator().manual_seed(8))
    gaps = np.array([0, 50, 100])
    knn = KNNRetention(model, (noise, gaps[QUERIES[1]]), (BANK[0], gaps[BANK[1]]))
    assert knn.pretrained == KNNRetention(model, (noise, QUERIES[1]), BANK).pretrained
    _, missing = knn()
    assert "with 3 classes" in missing["knn_retention_pct"]


def test_a_monitor_refuses_what_is_no_knn_retention() -> None:
    with pytest.raises(TypeError, match="knn is a tuple; it must be a KNNRetention"):
        DriftMonitor(_model(), PROBE, knn=(QUERIES, BANK))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"queries": (QUERIES[0], QUERIES[1][:-1])}, "queries: 59 labels for 60 images"),
        ({"bank": (list(BANK[0]), BANK[1])}, "bank: 27 labels for a list"),
        ({"bank": (BANK[0], BANK[1] / 2)}, "labels: expected indices"),
        ({"k": 0}, "^k is 0; "),
        ({"k": 1.5}, "^k is 1.5; "),
        ({"temperature": 0.0}, "^temperature is 0.0; "),
        ({"temperature": float("nan")}, "^temperature is nan; "),
        ({"batch_size": 0}, "^batch_size is 0; "),
        ({"bank": (BANK[0][:0], BANK[1][:0])}, "^bank: labels: there are no images"),
        ({"bank": (BANK[0][BANK[1] > 0], BANK[1][BANK[1] > 0])}, "^bank: no image of class 0, which the queries have"),
        ({"queries": (QUERIES[0], 0 * QUERIES[1]), "bank": (BANK[0], 0 * BANK[1])}, "^bank: images of class 0 alone"),
        ({"queries": BANK}, "^bank: its image 0 is image 0 of the queries"),
        (
            {"queries": (QUERIES[0].index_copy(0, torch.tensor([4]), BANK[0][7:8]), QUERIES[1])},
            "bank: its image 7 is image 4",
        ),
    ],
)
def test_bad_input_is_refused_by_name(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        KNNRetention(_model(), **{"queries": QUERIES, "bank": BANK, **given})
