"""What a guard does between its checks: how far and how fast the guarded weights may move."""

from __future__ import annotations

import math
from typing import Any

from attndrift.guard.interpolator import State, WeightInterpolator
from attndrift.losses.base import PreservationLoss

SLOWEST = 1 / 64
TOLERANCE = 0.05  # of the room that the pretrained state has: where the way back ends


class StepLimits:
    """Limits on every optimizer step, tightened by a rewind and relaxed where a budget has room to spare.

    Attributes:
        lr_scale: factor of the guarded weights' learning rate; 0 where they are frozen.
        radius: how far they may go, norm of the change from the pretrained values; None for any distance.
    """

    def __init__(self, interpolator: WeightInterpolator, preserve: PreservationLoss | None) -> None:
        self._interpolator, self._preserve = interpolator, preserve
        self._first_weight = None if preserve is None else preserve.weight
        self._previous: State | None = None
        self.lr_scale = 1.0
        self.radius: float | None = None

    @property
    def loss_weight(self) -> float | None:
        """Of the preservation loss; None without one."""
        return None if self._preserve is None else self._preserve.weight

    def after_step(self) -> None:
        """Take back what the last optimizer step did beyond the limits."""
        if self._previous is not None:
            self._interpolator.scale_step(self._previous, self.lr_scale)
        if self.radius is not None:
            distance = self._interpolator.distance()
            if distance > self.radius:
                self._interpolator.interpolate(self.radius / distance, self._interpolator.state())
        if self._previous is not None and self.lr_scale:
            self._previous = self._interpolator.state()

    def tighten(self, alpha: float) -> None:
        """After a rewind that left ``alpha`` of the change."""
        self.lr_scale = max(self.lr_scale * min(0.75, max(0.25, alpha)), SLOWEST)
        self.radius = self._interpolator.distance()
        if self._preserve is not None:
            self._preserve.weight *= 2
        self._previous = self._interpolator.state()

    def relax(self, room: float) -> None:
        """After a check that found ``room``, as a share of what the pretrained state has."""
        if self.radius is not None and room > TOLERANCE:
            # Drift grows about as the square of the distance.
            self.radius *= min(1.5, math.sqrt((1 - TOLERANCE / 2) / max(1e-6, 1 - room)))
        if room > 0.25 and self.lr_scale < 1:
            self.lr_scale = min(1.0, self.lr_scale * 1.5)
            if self._preserve is not None and self._first_weight is not None:
                self._preserve.weight = max(self._first_weight, self._preserve.weight / 1.5)
            self._previous = None if self.lr_scale == 1 else self._interpolator.state()

    def freeze(self) -> None:
        """Hold the weights where they are."""
        self.lr_scale, self.radius, self._previous = 0.0, None, self._interpolator.state()

    def release(self) -> None:
        """Training has ended: what is put into the model now stays as it is."""
        self._previous = self.radius = None

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"lr_scale": self.lr_scale, "radius": self.radius, "loss_weight": self.loss_weight}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state``; the weights must be those of the same step."""
        self.lr_scale, self.radius = state["lr_scale"], state["radius"]
        if self._preserve is not None and state["loss_weight"] is not None:
            self._preserve.weight = state["loss_weight"]
        self._previous = self._interpolator.state() if self.lr_scale < 1 else None
