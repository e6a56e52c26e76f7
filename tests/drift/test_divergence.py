"""A training that leaves the finite numbers: the error says after which step, wherever that is noticed."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

from attndrift import Budget, DriftMonitor, Guard
from attndrift.drift import DriftWatch
from attndrift.models import load_model
from attndrift.process_group import DivergedError

WATCHERS: dict[str, Callable[[DriftMonitor], Any]] = {
    "a watch": lambda monitor: DriftWatch(monitor, every=2, echo=None),
    "a watch at its last step": lambda monitor: DriftWatch(monitor, every=[0, 2], echo=None),
    "a guard": lambda monitor: Guard(monitor, Budget("cka_mean", at_least=0.5), every=2, echo=None),
}


@pytest.mark.parametrize("watcher", WATCHERS)
def test_the_error_says_the_step(watcher: str) -> None:
    images = torch.randn(6, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    monitor = DriftMonitor(load_model("config:tiny"), images)
    watch = WATCHERS[watcher](monitor)
    watch.start(0)
    watch.step(1)
    with torch.no_grad():
        next(monitor.model.vision_model.parameters()).fill_(torch.nan)
    with pytest.raises(DivergedError, match=r"not finite after step 2$") as caught:
        watch.step(2)
    assert caught.value.step == 2
    for copied in (pickle.loads(pickle.dumps(caught.value)), copy.copy(caught.value)):
        assert (str(copied), copied.step) == (str(caught.value), 2)
    assert str(caught.value.at(7)) == str(caught.value), "the first step that is known stays"
