"""The callback of transformers.Trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from attndrift.monitor.drift import Drift
from attndrift.monitor.measuring import DriftMonitor

if TYPE_CHECKING:
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments


class DriftCallback(TrainerCallback):
    """Measures structural drift during ``transformers.Trainer.train`` and logs it through the trainer.

    ::

        trainer = Trainer(model, args, ...)
        DriftCallback(DriftMonitor(model, probe_images), every=50).attach(trainer)
        trainer.train()

    Args:
        monitor: what to measure.
        every: measure after this many optimiser steps; or the set of steps to measure after.
        on_drift: called with (step, epoch, drift) after each measurement.
    """

    def __init__(
        self,
        monitor: DriftMonitor,
        every: int | Sequence[int] = 100,
        *,
        on_drift: Callable[[int, float, Drift], None] | None = None,
    ) -> None:
        if isinstance(every, int) and every < 1:
            raise ValueError(f"every is {every}; it must be at least 1")
        self.monitor = monitor
        self._steps = every if isinstance(every, int) else frozenset(every)
        self._on_drift = on_drift
        self._trainer: Trainer | None = None
        self.drift: list[tuple[int, Drift]] = []

    def attach(self, trainer: Trainer) -> DriftCallback:
        """Add this callback to ``trainer``; its measurements go through ``trainer.log`` to every tracker."""
        self._trainer = trainer
        trainer.add_callback(self)
        return self

    def _due(self, step: int) -> bool:
        return step % self._steps == 0 if isinstance(self._steps, int) else step in self._steps

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure where a measurement is due."""
        if not self._due(state.global_step):
            return
        drift = self.monitor.measure()
        self.drift.append((state.global_step, drift))
        if self._trainer is not None:
            self._trainer.log(drift.scalars())
        if self._on_drift is not None:
            self._on_drift(state.global_step, float(state.epoch or 0.0), drift)
