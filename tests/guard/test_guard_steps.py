"""A guard checks what fell due since the last step that it was told of, whichever steps a loop reports."""

from __future__ import annotations

from collections.abc import Collection

import pytest
import torch

from attndrift import Budget, DriftMonitor, Guard
from attndrift.drift import DriftWatch
from attndrift.models import load_model

# What is due, the steps that a loop reports, and where checks are made.
KINDS: dict[str, tuple[int | Collection[int], int, list[int], list[int]]] = {
    "two optimizers, odd steps": ({1, 3, 5}, 0, [2, 4, 6, 8], [2, 4, 6]),
    "two optimizers, every third": (3, 0, [2, 4, 6, 8, 10], [4, 6, 10]),
    "three optimizers": ({4, 5, 10}, 0, [3, 6, 9, 12], [6, 12]),
    "a gap": (10, 0, [7, 35, 36], [35]),
    "one step in twenty": ([7], 0, [20, 40], [20]),
    "not before the first": (2, 7, [2, 4, 6, 9, 11], [9, 11]),
    "the first between": ({3, 6}, 6, [2, 4, 8, 10], [8]),
    "every step reported": (2, 0, [1, 2, 3, 4, 5], [2, 4]),
    "a step twice": (2, 0, [1, 2, 2, 3, 4], [2, 2, 4]),
}


@pytest.fixture
def monitor() -> DriftMonitor:
    return DriftMonitor(
        load_model("config:tiny"), torch.randn(4, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_guard_checks_what_fell_due_between_reported_steps(monitor: DriftMonitor, kind: str) -> None:
    every, first, reported, expected = KINDS[kind]
    guard = Guard(monitor, Budget("cka_mean", at_least=-2.0), every, first=first, echo=None)
    guard.start(0)
    for step in reported:
        assert guard.due(step) == (guard.step(step) is not None)
    assert [event.step for event in guard.events] == expected


def test_under_a_watch_it_checks_where_the_watch_measures(monitor: DriftMonitor) -> None:
    guard = Guard(monitor, Budget("cka_mean", at_least=-2.0), {1, 3, 5}, echo=None)
    with DriftWatch(monitor, every={1, 3, 5}, guard=guard, echo=None) as watch:
        for step in (2, 4, 6, 8):
            watch.step(step)
    assert [event.step for event in guard.events] == [step for step, _ in watch.drift if step] == [2, 4, 6, 8]


def test_a_resumed_guard_does_not_check_what_was_checked(monitor: DriftMonitor) -> None:
    budget = Budget("cka_mean", at_least=-2.0)
    first = Guard(monitor, budget, {3, 9}, echo=None)
    first.start(0)
    for step in (2, 4, 6):
        first.step(step)
    second = Guard(monitor, budget, {3, 9}, echo=None)
    second.load_state_dict(first.state_dict())
    second.start()
    for step in (7, 8, 9):
        second.step(step)
    assert [event.step for event in second.events] == [4, 9]


@pytest.mark.parametrize("every", [0, -3])
def test_no_interval_below_one(monitor: DriftMonitor, every: int) -> None:
    with pytest.raises(ValueError, match=f"every is {every}; it must be at least 1"):
        Guard(monitor, Budget("cka_mean", at_least=0.0), every)
