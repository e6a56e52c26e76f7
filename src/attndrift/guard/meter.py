"""Budgets on a model in training: what they read of it, and how much room they leave."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from attndrift.drift.drift import Drift
from attndrift.drift.monitor import DriftMonitor
from attndrift.guard.budget import Budget, Reading, RetentionBudget
from attndrift.guard.interpolator import WeightInterpolator, refuse_unknown_start
from attndrift.process_group import DivergedError


class BudgetMeter:
    """Measures budgets, and holds what the pretrained state had.

    Args:
        monitor: measures the budgets on drift.
        budgets: all of them.
        interpolator: puts the model into its pretrained state, which is measured here, and back.

    Attributes:
        monitor, budgets: as given.
        pretrained: what was measured of the pretrained state, a reading a budget.
        measurements: how often the budgets were measured.

    Raises:
        ValueError: a budget that has no value for this model, or pretrained weights that are not known.
    """

    def __init__(
        self, monitor: DriftMonitor, budgets: Sequence[Budget | RetentionBudget], interpolator: WeightInterpolator
    ) -> None:
        self.monitor, self.budgets = monitor, budgets
        self.measurements = 0
        # Adapters that have been trained already are at zero while the pretrained state is measured.
        present = interpolator.state()
        interpolator.interpolate(0.0, present)
        try:
            refuse_unknown_start(interpolator, monitor)
            self._meters = {
                place: budget.against(monitor.model, monitor.processes)
                for place, budget in enumerate(budgets)
                if isinstance(budget, RetentionBudget)
            }
            self.pretrained = self.measure()
        finally:
            interpolator.interpolate(1.0, present)

    @property
    def reachable(self) -> bool:
        """Whether the pretrained state keeps every budget."""
        return all(reading.met for reading in self.pretrained)

    def measure(self) -> tuple[Reading, ...]:
        """The budgets' readings of the model as it is, those of the first process in every one."""
        self.measurements += 1
        drift: Drift | None = None
        if len(self._meters) < len(self.budgets):
            try:
                drift = self.monitor.measure(keep=False)
            except DivergedError:
                # The weights are finite, so the representation has collapsed: as far outside as can be.
                drift = None
        model, processes = self.monitor.model, self.monitor.processes
        return tuple(
            self._agreed(self._meters[place].read(model, processes))
            if isinstance(budget, RetentionBudget)
            else budget.read(drift)
            for place, budget in enumerate(self.budgets)
        )

    def room_left(self, readings: Sequence[Reading]) -> float:
        """The least slack of any budget, as a share of what the pretrained state has; negative outside."""
        shares = []
        for reading, pretrained in zip(readings, self.pretrained, strict=True):
            if reading.slack is None:
                return -math.inf
            room = pretrained.slack
            shares.append(reading.slack / room if room else math.copysign(1.0, reading.slack) if reading.slack else 0.0)
        return min(shares)

    def _agreed(self, reading: Reading) -> Reading:
        if self.monitor.processes.count == 1:
            return reading
        own = torch.tensor([reading.value, reading.standard_error, reading.bound, reading.slack], dtype=torch.float64)
        value, error, bound, slack = self.monitor.processes.from_first(own).tolist()
        return Reading(reading.metric, value, error, bound, reading.limit, slack)
