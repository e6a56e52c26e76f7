"""Budgets on the retention by any measure: kept without a text tower, and refused by name where something is missing."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attndrift import Budget, DriftMonitor, Guard
from attndrift.models import load_model
from attndrift.results.measures import retention_metric
from attndrift.study.loading import StudyError, parse_study

CLASSES = 5


def _images(seed: int, each: int) -> tuple[Tensor, np.ndarray[Any, Any]]:
    """Noise about a picture of each class: what a model with random weights tells apart by its embeddings."""
    side = load_model("config:tiny").config.vision_config.image_size
    pictures = torch.randn(CLASSES, 3, side, side, generator=torch.Generator().manual_seed(0))
    labels = np.arange(CLASSES * each) % CLASSES
    noise = torch.randn(len(labels), 3, side, side, generator=torch.Generator().manual_seed(seed))
    return (pictures[torch.from_numpy(labels)] + 1.2 * noise).clamp(-3, 3), labels


@pytest.fixture(scope="module")
def tower() -> nn.Module:
    """A vision tower alone, as a model without text has it."""
    return load_model("config:tiny").vision_model.eval()


PROBE, BANK = _images(1, 12), _images(2, 10)
OF_MEASURES: list[tuple[str, dict[str, Any]]] = [
    ("knn", {}),
    ("knn", {"knn_k": 3, "knn_temperature": 0.5}),
    ("linear_probe", {"probe_c_values": 3, "probe_iterations": 100}),
]


def _scramble(model: nn.Module, share: float) -> None:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * parameter.std(correction=0)
            parameter.mul_(1 - share).add_(share * noise)


@pytest.mark.parametrize(("measure", "settings"), OF_MEASURES)
def test_a_guard_keeps_retention_without_a_text_tower(measure: str, settings: dict[str, Any], tower: nn.Module) -> None:
    model = load_model("config:tiny").vision_model
    model.load_state_dict(tower.state_dict())
    budget = Budget.retention(0.9, *PROBE, measure=measure, bank=BANK, settings=settings)
    told: list[str] = []
    guard = Guard(DriftMonitor(model, PROBE[0][:8]), budget, every=1, echo=told.append)
    assert guard.meter.pretrained[0].value == 100.0
    for step in range(1, 4):
        _scramble(model, 0.5)
        guard.step(step)
        (reading,) = guard.meter.measure()
        assert reading.metric == retention_metric(measure) == f"{measure}_retention_pct"
        assert reading.met
    assert any(event.alpha < 1 for event in guard.events), "the budget was never in danger"
    assert f"{measure}_retention_pct" in told[0]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"labels": None, "measure": "knn", "bank": BANK}, r"labels: a budget on knn needs .*embedding_drift"),
        ({"labels": None, "measure": "linear_probe", "bank": BANK}, "labels: a budget on linear_probe needs"),
        ({"labels": None}, "labels: a budget on zero_shot needs"),
        ({"measure": "knn"}, r"bank: knn learns .*bank=\(images, labels\)"),
        ({"measure": "linear_probe"}, "bank: linear_probe learns"),
        ({"measure": "kn", "bank": BANK}, "no retention measure `kn`; did you mean `knn`"),
        ({"measure": "knn", "bank": (BANK[0], BANK[1][:-1])}, "bank: 49 for 50 images"),
        ({"measure": "knn", "bank": (iter(BANK[0]), BANK[1])}, "bank: a generator|bank: a .*read again"),
        ({"measure": "knn", "bank": BANK, "settings": {"k": 5}}, "knn has no setting `k`; it has knn_k"),
        ({"measure": "knn", "bank": BANK, "class_names": ("a", "b")}, "labels: 4 is outside the 2 class names"),
        ({"measure": "knn", "bank": (BANK[0][BANK[1] > 0], BANK[1][BANK[1] > 0])}, "bank: no image of class 0"),
        (
            {"measure": "linear_probe", "labels": 0 * PROBE[1], "bank": (BANK[0], 0 * BANK[1])},
            "bank: images of class 0 alone",
        ),
        ({"measure": "knn", "bank": PROBE}, "bank: its image 0 is image 0 of the images"),
        ({}, "class_names and text_features are missing"),
    ],
)
def test_what_is_missing_is_named(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Budget.retention(0.9, **{"images": PROBE[0], "labels": PROBE[1], **given})


@pytest.mark.parametrize(
    ("measure", "name", "value", "allowed"),
    [
        ("knn", "knn_k", 0, "a whole number, at least 1"),
        ("knn", "knn_k", 2.5, "a whole number, at least 1"),
        ("knn", "knn_temperature", 0.0, "a number, above 0"),
        ("knn", "knn_temperature", float("inf"), "a finite number, above 0"),
        ("linear_probe", "probe_c_values", 201, "a whole number, at least 1 and at most 200"),
        ("linear_probe", "probe_iterations", -5, "a whole number, at least 1"),
    ],
)
def test_a_setting_out_of_its_range_is_refused_with_the_whole_range(
    measure: str, name: str, value: float, allowed: str
) -> None:
    said = re.escape(f" is {value}: must be {allowed}") + "$"
    with pytest.raises(ValueError, match=f"^settings: {name}{said}"):
        Budget.retention(0.9, *PROBE, measure=measure, bank=BANK, settings={name: value})
    if np.isfinite(value):  # study files have no infinities
        with pytest.raises(StudyError, match=f"^f:3: `{name}`{said}"):
            parse_study(f"name: s\nruns:\n  - {{dataset: tiles, measures: {measure}, {name}: {value}}}", where="f")


def test_a_budget_on_drift_needs_no_labels_and_one_at_chance_is_refused() -> None:
    model = load_model("config:tiny").vision_model
    guard = Guard(DriftMonitor(model, PROBE[0][:8]), Budget("embedding_drift", at_most=0.1), every=1, echo=None)
    assert guard.meter.pretrained[0].met
    noise = torch.randn(PROBE[0].shape, generator=torch.Generator().manual_seed(9))
    budget = Budget.retention(0.9, noise, PROBE[1], measure="knn", bank=BANK)
    gaps = Budget.retention(0.9, noise, 50 * PROBE[1], measure="knn", bank=(BANK[0], 50 * BANK[1]))
    for one in (budget, gaps):
        with pytest.raises(
            ValueError, match=rf"budget on knn_retention_pct: the pretrained accuracy.*with {CLASSES} classes"
        ):
            Guard(DriftMonitor(model, PROBE[0][:8]), one, every=1, echo=None)
