"""How far a run has come: what is saved with every state, and what of the last steps is still to be read."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from attndrift.metrics.attention import wide_dtype
from attndrift.monitor import DivergedError
from attndrift.monitor.processes import Processes


@dataclass
class Progress:
    """What a run knows besides weights, optimiser and random states; saved with every resumable state.

    The sums are as of the last :meth:`Tally.settle`: of the loss, the hits and the images since the last row of
    the history, and of the entropy floor's activity since the beginning.
    """

    history: list[dict[str, Any]] = field(default_factory=list)
    best_accuracy: float | None = None
    selected_epoch: int | None = None
    loss_sum: float = 0.0
    correct: int = 0
    seen: int = 0
    floor_active: float = 0.0
    floor_batches: int = 0

    def to_json(self) -> dict[str, Any]:
        return self.__dict__.copy()

    @property
    def active_fraction(self) -> float | None:
        """How often the entropy floor was active; None where there was none."""
        return self.floor_active / self.floor_batches if self.floor_batches else None


class Tally:
    """Loss, hits and floor activity of a training's steps, left on the device of the model until they are needed.

    To read a number from an accelerator is to wait until it has done everything before, and to leave it idle until
    there is more. So nothing is read there but in :meth:`settle`, which is to be called before anything is made of
    the steps so far: a measurement, a row, a state. On a CPU, where reading is free, every step settles.

    Adds to ``progress``. In several processes each brings its own images, all settle together and come to the same.
    """

    def __init__(self, progress: Progress, device: torch.device, processes: Processes) -> None:
        self.progress, self._processes = progress, processes
        self._every_step = _reading_is_free(device)
        self._kept: list[Tensor] = []
        self._about: list[tuple[int, int, bool]] = []

    def add(self, step: int, images: int, loss: Tensor, hits: Tensor, active: Tensor | None) -> None:
        """Count a batch that follows ``step`` steps.

        Args:
            images: of the whole batch.
            loss: so scaled that its mean over the processes is that of the whole batch; a scalar, as all tensors here.
            hits: this process's own.
            active: share of cells below the entropy floor, scaled as ``loss``; None without a floor.

        Raises :class:`DivergedError` as :meth:`settle` does where every step settles.
        """
        kind = wide_dtype(loss)
        cells = loss if active is None else active
        self._kept.append(torch.stack([value.detach().to(kind) for value in (loss, hits, cells)]))
        self._about.append((step, images, active is not None))
        if self._every_step:
            self.settle()

    def settle(self) -> None:
        """Read what was added, at once, and bring the progress up to date.

        Raises :class:`DivergedError`, in all processes, where the loss of a step was not finite; the progress is that
        of the steps before.
        """
        if not self._kept:
            return
        values, about = self._processes.sum(torch.stack(self._kept)).tolist(), self._about
        self._kept, self._about = [], []
        progress, count = self.progress, self._processes.count
        for (loss, hits, cells), (step, images, floor) in zip(values, about, strict=True):
            mean = loss / count
            if not math.isfinite(mean):
                raise DivergedError(f"the training loss is {mean} after step {step}")
            progress.loss_sum += mean * images
            progress.correct += int(hits)
            progress.seen += images
            if floor:
                progress.floor_active += cells / count
                progress.floor_batches += 1

    def row(self) -> dict[str, float]:
        """Mean loss and accuracy since the last row, none where there was no step; the next row begins."""
        self.settle()
        progress = self.progress
        row = {}
        if progress.seen:
            row = {"train_loss": progress.loss_sum / progress.seen, "train_accuracy": progress.correct / progress.seen}
        progress.loss_sum, progress.correct, progress.seen = 0.0, 0, 0
        return row


def _reading_is_free(device: torch.device) -> bool:
    return device.type == "cpu"
