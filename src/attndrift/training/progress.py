"""How far a run has come: what is saved with every state, and sums that are kept where the model is."""

from __future__ import annotations

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

    The sums are those of the last :meth:`Tally.settle`: of the loss, the hits and the images since the last row of
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
    """Sums of a training's steps, and the first step whose loss was not finite, on the device of the model.

    To read a number from an accelerator is to wait until it has done everything before, and to leave it idle until
    there is more. So nothing is read there but in :meth:`settle`, which is to be called before anything is made of
    the steps so far: a measurement, a row, a state. On a CPU, where reading is free, every step settles.

    Goes on from ``progress``, and writes into it. Several processes hold the same sums, of all their images.
    """

    def __init__(self, progress: Progress, device: torch.device, processes: Processes) -> None:
        self.progress, self._processes = progress, processes
        self._every_step = _reading_is_free(device)
        sums = [progress.loss_sum, progress.correct, progress.seen, progress.floor_active, progress.floor_batches]
        kind = wide_dtype(torch.empty(0, device=device))
        self._sums = torch.tensor(sums, dtype=kind, device=device)
        # The first step without a finite loss, -1 for none so far, and that loss.
        self._failure = torch.tensor([-1.0, 0.0], dtype=kind, device=device)

    def add(self, step: int, images: int, loss: Tensor, hits: Tensor, active: Tensor | None) -> None:
        """Count a batch that follows ``step`` steps.

        Args:
            images: of the whole batch.
            loss: so scaled that its mean over the processes is that of the whole batch; a scalar, as all tensors here.
            hits: this process's own.
            active: share of cells below the entropy floor, scaled as ``loss``; None without a floor.

        Raises :class:`DivergedError` as :meth:`settle` does, in all processes, where every step settles.
        """
        floor = active is not None
        own = [value.detach().to(self._sums.dtype) for value in (loss, hits, loss if active is None else active)]
        mean, correct, cells = self._processes.sum(torch.stack(own)).unbind()
        mean, cells = mean / self._processes.count, cells / self._processes.count
        failed, value = self._failure.unbind()
        first = (failed < 0) & ~mean.isfinite()
        # Only numbers that need no copy to the device: of a scalar, `torch.where` would make a tensor first.
        failed = failed.masked_fill(first, step)
        self._failure = torch.stack([failed, torch.where(first, mean, value)])
        counted = [mean * images, correct, torch.full_like(mean, images)]
        counted += [cells, torch.ones_like(mean)] if floor else [torch.zeros_like(mean)] * 2
        self._sums += torch.stack(counted).masked_fill(failed >= 0, 0.0)
        if self._every_step:
            self.settle()

    def settle(self) -> None:
        """Bring the progress up to date.

        Raises :class:`DivergedError` where the loss of a step was not finite; the sums are those before it.
        """
        loss, correct, seen, active, batches, step, value = torch.cat([self._sums, self._failure]).tolist()
        progress = self.progress
        progress.loss_sum, progress.correct, progress.seen = loss, int(correct), int(seen)
        progress.floor_active, progress.floor_batches = active, int(batches)
        if step >= 0:
            raise DivergedError(f"the training loss is {value} after step {int(step)}")

    def row(self) -> dict[str, float]:
        """Mean loss and accuracy since the last row, none where there was no step; the next row begins."""
        self.settle()
        progress = self.progress
        row = {}
        if progress.seen:
            row = {"train_loss": progress.loss_sum / progress.seen, "train_accuracy": progress.correct / progress.seen}
        progress.loss_sum, progress.correct, progress.seen = 0.0, 0, 0
        self._sums[:3].zero_()
        return row


def _reading_is_free(device: torch.device) -> bool:
    return device.type == "cpu"
