"""Validation accuracy of the states that a guard checks: what its rewinds cost, which state is best, when to stop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attndrift.drift.best_state import BestState
from attndrift.guard.events import GuardEvent
from attndrift.models.evaluation import preserve_state, unwrapped
from attndrift.process_group import Processes


class ValidationTracker:
    """Asks for the accuracy of checked states, and keeps the best one.

    Args:
        validate: returns the accuracy, 0..1, of the model as it is; None where nothing is known.
        keep_best: keep the weights of the best state.
        patience: stop after this many states in a row that are not better; None for never.
        processes: called for those that train together, as they are then.

    Attributes:
        known: whether there is a function to ask.
        best_accuracy: of the states so far; None before the first one.
        should_stop: ``patience`` has run out.
    """

    def __init__(
        self,
        validate: Callable[[], float] | None,
        *,
        keep_best: bool,
        patience: int | None,
        processes: Callable[[], Processes],
    ) -> None:
        if validate is None and (keep_best or patience is not None):
            raise ValueError("keep_best and patience compare validation accuracies: give validate=")
        self._validate, self._keep_best, self._patience, self._processes = validate, keep_best, patience, processes
        self._best: BestState | None = None
        self._in_file = False
        self._waited = 0
        self.known = validate is not None
        self.best_accuracy: float | None = None
        self.should_stop = False

    def watch_model(self, model: nn.Module, folder: Path | None) -> None:
        """Evaluate ``model``, and keep its best state in ``folder``, or in memory."""
        self._model, self._in_file = unwrapped(model), folder is not None
        if self._keep_best:
            self._best = BestState(self._model, folder, self._processes)

    def accuracy(self) -> float | None:
        """Of the model as it is, that of the first process in every one; None where it is not known."""
        if self._validate is None:
            return None
        # Evaluation mode is often left on by such functions, and their loaders draw.
        with preserve_state(self._model):
            value = float(self._validate())
        return float(self._processes().from_first(torch.tensor(value, dtype=torch.float64)))

    def note(self, event: GuardEvent) -> None:
        """A state within the budget: keep it where it is the best, and count where it is not."""
        if event.accuracy is None:
            return
        if self.best_accuracy is None or event.accuracy > self.best_accuracy:
            self.best_accuracy, self._waited = event.accuracy, 0
            if self._best is not None:
                self._best.keep(event.step)
        else:
            self._waited += 1
            self.should_stop = self._patience is not None and self._waited >= self._patience

    def put_back(self, last: GuardEvent) -> bool:
        """Put the best state into the model, where one is kept that is better than the last; whether that was done."""
        better = last.accuracy is None or (self.best_accuracy is not None and self.best_accuracy > last.accuracy)
        if self._best is None or self._best.step is None or not better:
            return False
        self._best.restore()
        return True

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        step = None if self._best is None else self._best.step
        return {"best_accuracy": self.best_accuracy, "best_step": step, "waited": self._waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state``. A best state that was held in memory is gone."""
        self._waited = state["waited"]
        if self._best is None or self._in_file:
            self.best_accuracy = state["best_accuracy"]
        if self._best is not None and self._in_file:
            self._best.step = state["best_step"]
