"""The guard's part in a watched loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from torch import nn

from attndrift.drift.monitor import DriftMonitor


class GuardLike(Protocol):
    """What a watch needs of a guard; :class:`attndrift.Guard` is one."""

    monitor: DriftMonitor
    folder: Path | None
    run_id: str | None

    def guard_model(self, model: nn.Module) -> None:
        """Guard ``model``, which has the monitor's model inside."""

    def start(self, step: int | None = None) -> None:
        """Training begins, or goes on, after ``step``; None where the first step will tell."""

    def step(self, step: int, epoch: float | None = None) -> Any:
        """After an optimizer step."""

    def finish(self, step: int | None = None, epoch: float | None = None) -> bool:
        """Training has ended; whether the guard changed the weights."""


class NoGuard:
    """Stands where a loop has no guard."""

    def guard_model(self, model: nn.Module) -> None:
        """Nothing is guarded."""

    def start(self, step: int | None = None) -> None:
        """Nothing to hold."""

    def step(self, step: int, epoch: float | None = None) -> None:
        """Nothing to check."""

    def finish(self, step: int | None = None, epoch: float | None = None) -> bool:
        """Nothing was changed."""
        return False
