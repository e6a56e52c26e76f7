"""One check: measure the budgets, and take weights back until every one is kept."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, nn

from attndrift.guard.budget import Reading
from attndrift.guard.events import GuardEvent
from attndrift.guard.head import follow
from attndrift.guard.interpolator import State, WeightInterpolator
from attndrift.guard.limits import TOLERANCE, StepLimits
from attndrift.guard.meter import BudgetMeter
from attndrift.guard.validation import ValidationTracker
from attndrift.process_group import DivergedError

SMALLEST_SHARE = 1 / 64  # of the change; a budget that only less than this keeps is out of reach
MOST_MEASUREMENTS = 12  # for one way back


class BudgetKeeper:
    """Keeps budgets at each check.

    Args:
        interpolator: moves the weights.
        meter: measures the budgets.
        limits: of the steps between checks, which a check tightens or relaxes.
        validation: accuracies before and after.
        head: a classifier that follows a rewind; None for none.
        embeddings: of the images that it follows by.

    Attributes:
        infeasible: whether a budget was out of reach, and the pretrained weights were put back.
    """

    def __init__(
        self,
        interpolator: WeightInterpolator,
        meter: BudgetMeter,
        limits: StepLimits,
        validation: ValidationTracker,
        head: nn.Linear | None,
        embeddings: Callable[[], Tensor],
    ) -> None:
        self._interpolator, self._meter, self._limits, self._validation = interpolator, meter, limits, validation
        self._head, self._embeddings = head, embeddings
        self.infeasible = False

    def check(self, step: int, epoch: float | None) -> GuardEvent:
        """Measure, act and say what was done. Raises :class:`DivergedError` where a guarded weight is not finite."""
        if self.infeasible:
            return self._hold(step, epoch)
        count = self._meter.measurements
        if not self._meter.reachable:
            return self.give_up(step, epoch, self._meter.pretrained, self._validation.accuracy(), count)
        if not self._interpolator.finite():
            raise DivergedError("a guarded weight is not finite").at(step)
        before = self._meter.measure()
        room = self._meter.room_left(before)
        if room >= 0:
            self._limits.relax(room)
            accuracy = self._validation.accuracy()
            return self._event("kept", step, epoch, before, before, 1.0, accuracy, accuracy, 1)
        outside = self._validation.accuracy()
        alpha, after = self._rewind(room)
        if alpha == 0:
            return self.give_up(step, epoch, before, outside, count)
        self._limits.tighten(alpha)
        inside = self._validation.accuracy()
        measured = self._meter.measurements - count
        return self._event("rewound", step, epoch, before, after, alpha, outside, inside, measured)

    def give_up(
        self, step: int, epoch: float | None, before: tuple[Reading, ...], accuracy: float | None, count: int
    ) -> GuardEvent:
        """Put the pretrained weights back and freeze them; ``count``: measurements before this check."""
        self.infeasible = True
        self._interpolator.interpolate(0.0, self._interpolator.state())
        self._limits.freeze()
        # Measured: something that the guard does not rewind may have moved too.
        held, after = self._meter.measure(), self._validation.accuracy()
        measured = self._meter.measurements - count
        return self._event("infeasible", step, epoch, before, held, 0.0, accuracy, after, measured)

    def _hold(self, step: int, epoch: float | None) -> GuardEvent:
        """The held pretrained weights, behind a classifier that has trained on."""
        self._interpolator.interpolate(0.0, self._interpolator.state())
        accuracy, readings = self._validation.accuracy(), self._meter.measure()
        return self._event("frozen", step, epoch, readings, readings, 0.0, accuracy, accuracy, 1)

    def _rewind(self, room: float) -> tuple[float, tuple[Reading, ...]]:
        """Put the model at the largest alpha found to keep every budget, and let the classifier follow."""
        before = None if self._head is None else self._embeddings()
        alpha, readings = self._search(self._interpolator.state(), room)
        if self._head is not None and before is not None:
            follow(self._head, before, self._embeddings())
        return alpha, readings

    def _search(self, end: State, room: float) -> tuple[float, tuple[Reading, ...]]:
        """The largest alpha found, 0 where none of 1/64 or more keeps the budgets; the model is there afterwards."""
        low, high = 0.0, 1.0
        inside, outside = 1.0, room
        found = self._meter.pretrained
        for _ in range(MOST_MEASUREMENTS):
            alpha = _between(low, high, inside, outside)
            self._interpolator.interpolate(alpha, end)
            readings = self._meter.measure()
            left = self._meter.room_left(readings)
            if left >= 0:
                low, inside, found = alpha, left, readings
                if left <= TOLERANCE:
                    break
            else:
                high, outside = alpha, left
            if high - low < SMALLEST_SHARE:
                break
        self._interpolator.interpolate(low, end)
        return low, found

    def _event(
        self,
        action: str,
        step: int,
        epoch: float | None,
        before: tuple[Reading, ...],
        after: tuple[Reading, ...],
        alpha: float,
        accuracy_before: float | None,
        accuracy: float | None,
        measurements: int,
    ) -> GuardEvent:
        limits = self._limits
        return GuardEvent(
            step, epoch, action, before, after, alpha, limits.lr_scale, limits.loss_weight, accuracy_before, accuracy,
            measurements,
        )  # fmt: skip


def _between(low: float, high: float, inside: float, outside: float) -> float:
    """Where a budget with these shares of room at both ends is probably just kept; never close to either end."""
    # Drift grows about as the square of the way; where it has no value, halve.
    share = 0.5 if not math.isfinite(outside) else inside / (inside - outside)
    share = min(0.85, max(0.15, 0.95 * share))
    return math.sqrt(low**2 + (high**2 - low**2) * share)
