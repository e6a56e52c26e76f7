"""How far a run has come: what is saved with every state, and what of the last steps is still to be read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import ConfigDict, TypeAdapter
from torch import Tensor

from attndrift.metrics.attention import wide_dtype
from attndrift.process_group import DivergedError, Processes
from attndrift.study.training.loss import BatchLoss


@dataclass
class Progress:
    """What a run knows besides weights, optimiser and random states; saved with every resumable state.

    The sums are as of the last :meth:`MetricBuffer.flush`: of the loss, the correct and all images since the last row
    of the history, and of each loss's activity since the beginning, over ``batches`` of images, where it is reported.
    ``guard`` is the guard's own state.
    """

    history: list[dict[str, Any]] = field(default_factory=list)
    best_accuracy: float | None = None
    selected_epoch: int | None = None
    loss_sum: float = 0.0
    correct: int = 0
    seen: int = 0
    active: dict[str, float] = field(default_factory=dict)
    batches: int = 0
    guard: dict[str, Any] | None = None

    __pydantic_config__ = ConfigDict(extra="forbid")

    @classmethod
    def from_json(cls, content: object) -> Progress:
        """What :meth:`to_json` gave. Raises ``ValueError`` for anything else."""
        return TypeAdapter(cls).validate_python(content)

    def to_json(self) -> dict[str, Any]:
        return self.__dict__.copy()

    @property
    def active_fractions(self) -> dict[str, float]:
        """How often each loss was active, of those that report it."""
        return {name: total / self.batches for name, total in self.active.items()}


class MetricBuffer:
    """Loss, correct images and the losses' activity of a training's steps, left on the model's device until they are needed.

    To read a number from an accelerator is to wait until it has done everything before, and to leave it idle until
    there is more. So nothing is read there but in :meth:`flush`, which is to be called before anything is made of
    the steps so far: a measurement, a row, a state. On a CPU, where reading is free, every step is flushed.

    Adds to ``progress``; ``reporting`` are the names of the losses whose activity comes with each batch. In several processes each brings its own images, all flush together and come to the same.
    """

    def __init__(
        self, progress: Progress, device: torch.device, processes: Processes, reporting: Sequence[str] = ()
    ) -> None:
        self.progress, self._processes, self._reporting = progress, processes, tuple(reporting)
        self._every_step = _reading_is_free(device)
        self._values: list[Tensor] = []
        self._about: list[tuple[int, int]] = []

    def add(self, step: int, images: int, losses: BatchLoss) -> None:
        """Count a batch of ``images``, over all processes, that follows ``step`` steps.

        Raises :class:`DivergedError` as :meth:`flush` does where every step is flushed.
        """
        kind = wide_dtype(losses.counted)
        values = (losses.counted, losses.num_correct, *(() if losses.active is None else losses.active.unbind()))
        self._values.append(torch.stack([value.detach().to(kind) for value in values]))
        self._about.append((step, images))
        if self._every_step:
            self.flush()

    def flush(self) -> None:
        """Read what was added, at once, and bring the progress up to date.

        Raises :class:`DivergedError`, in all processes, where the loss of a step was not finite; the progress is that
        of the steps before.
        """
        if not self._values:
            return
        values, about = self._processes.sum(torch.stack(self._values)).tolist(), self._about
        self._values, self._about = [], []
        progress, count = self.progress, self._processes.count
        for (loss, num_correct, *active), (step, images) in zip(values, about, strict=True):
            mean = loss / count
            if not math.isfinite(mean):
                raise DivergedError(f"the training loss is {mean}").at(step)
            progress.loss_sum += mean * images
            progress.correct += int(num_correct)
            progress.seen += images
            for name, share in zip(self._reporting, active, strict=True):
                progress.active[name] = progress.active.get(name, 0.0) + share / count
            progress.batches += 1

    def row(self) -> dict[str, float]:
        """Mean loss and accuracy since the last row, none where there was no step; the next row begins."""
        self.flush()
        progress = self.progress
        row = {}
        if progress.seen:
            row = {"train_loss": progress.loss_sum / progress.seen, "train_accuracy": progress.correct / progress.seen}
        progress.loss_sum, progress.correct, progress.seen = 0.0, 0, 0
        return row


def _reading_is_free(device: torch.device) -> bool:
    return device.type == "cpu"
