"""What a training step costs against full fine-tuning: ratios that `python -m benchmarks.step_costs` measured."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any

from attndrift.methods.registry import HEADS
from attndrift.study.settings import RunSettings


@cache
def measured() -> dict[str, Any]:
    """The table: ratios by name under ``method`` and ``loss``, and in ``case`` what they were measured on."""
    file = resources.files("attndrift.study") / "step_costs.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def step_cost(settings: RunSettings) -> float | None:
    """The time of a run's training step in that of full fine-tuning without a loss, by the defaults of its method and losses.

    None where nothing is trained, and for a method, a loss or a text tower in the step that was not measured.
    """
    method = measured()["method"].get(settings.method)
    losses = [measured()["loss"].get(name) for name in settings.losses]
    if method is None or None in losses or settings.trains_text or HEADS[settings.head].live:
        return None
    return round(float(method + sum(ratio - 1.0 for ratio in losses)), 3)
