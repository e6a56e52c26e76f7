"""What a run's training needs, what it comes to, and after which steps something happens."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from attndrift.data.shuffle import Pixels
from attndrift.drift.drift import Drift
from attndrift.drift.monitor import DriftMonitor
from attndrift.guard.guard import Guard
from attndrift.losses.base import StudyContext
from attndrift.study.outcomes.registry import Follower
from attndrift.study.settings import RunSettings


class Reporter(Protocol):
    """Told how a run goes."""

    def step(self, done: int, total: int) -> None:
        """``done`` of ``total`` optimiser steps are done."""

    def say(self, message: str) -> None:
        """A line for the log."""

    def saved(self, step: int) -> None:
        """The resumable state of ``step`` is whole."""


@dataclass
class TrainingPlan:
    """Everything that ``fit`` needs besides the model.

    Attributes:
        images, labels: the training set; position i of one belongs to position i of the other.
        monitor: measures structural drift on the probe set.
        validate: returns the validation accuracy of the live model.
        monitor_zero_shot: returns the zero-shot accuracy on the monitored images, or None where there is none.
        monitored_retention: turns such an accuracy into percent of the pretrained model's.
        baseline: the history row of the pretrained model, step 0.
        save_weights: writes the live model's checkpoint under a name (``best``, ``final``, ``epoch-3``).
        context: what preservation losses are told of the pretrained model.
        guard: keeps the run within a budget; of the same monitor.
        trackers: names of :data:`~attndrift.trackers.TRACKERS` that the history goes to while it grows.
    """

    settings: RunSettings
    images: Pixels
    labels: Tensor
    monitor: DriftMonitor
    validate: Callable[[], float]
    monitor_zero_shot: Callable[[], float] | None
    monitored_retention: Callable[[float], float | None]
    baseline: dict[str, Any]
    save_weights: Callable[[str], None]
    context: StudyContext
    device: torch.device
    guard: Guard | None = None
    trackers: tuple[str, ...] = ("tensorboard",)


@dataclass
class FitResult:
    """How training ended.

    Attributes:
        status: ``finished`` or ``diverged``.
        history: one row an evaluation, step 0 first.
        best_accuracy, selected_epoch: best validation accuracy and the epoch after which it was reached.
        active_fractions: how often each preservation loss was active, of those that report it.
        problem: why the run is called diverged.
        last_good_step: the step of the last state before a divergence; 0 is the pretrained model.
        final_drift: what was measured after the last step; None where that was in an earlier attempt, or never.
        followers: what outcomes of the run kept of its steps, by the outcome's text.
    """

    status: str
    history: list[dict[str, Any]]
    best_accuracy: float | None
    selected_epoch: int | None
    active_fractions: dict[str, float]
    problem: str | None = None
    last_good_step: int | None = None
    final_drift: Drift | None = field(default=None, compare=False)  # holds tensors
    followers: dict[str, Follower] = field(default_factory=dict, compare=False)


def only_value(fractions: Mapping[str, float]) -> float | None:
    """The one loss's value; None where none reports one, or several do, which the table ``losses`` tells apart."""
    return next(iter(fractions.values())) if len(fractions) == 1 else None


def steps_per_epoch(settings: RunSettings, n_train: int) -> int:
    """Optimiser steps an epoch; the last one may be of fewer images than the others."""
    micro_batches = math.ceil(n_train / (settings.batch_size // settings.gradient_accumulation))
    return math.ceil(micro_batches / settings.gradient_accumulation)


def total_steps(settings: RunSettings, n_train: int) -> int:
    """Optimiser steps of the whole training."""
    return settings.epochs * steps_per_epoch(settings, n_train) if settings.steps is None else settings.steps


def epoch_count(settings: RunSettings, n_train: int) -> int:
    """Epochs that are begun; of a training that is counted in steps, the last one may be a part."""
    return math.ceil(total_steps(settings, n_train) / steps_per_epoch(settings, n_train))


def warmup_steps(settings: RunSettings, n_train: int) -> int:
    """Steps in which the rate rises. Raises ``ValueError`` where the training has no more than these."""
    total = total_steps(settings, n_train)
    if settings.warmup_steps is None:
        # The first step of a warm-up has the rate 0: a training of one step would train nothing.
        return min(math.ceil(settings.warmup * total), max(0, total - 1))
    if settings.warmup_steps >= total:
        raise ValueError(f"`warmup_steps` is {settings.warmup_steps}; the training has {total} steps")
    return settings.warmup_steps


def spread_steps(settings: RunSettings, n_train: int, times: int) -> frozenset[int]:
    """Optimiser steps after which something happens ``times`` an epoch, epoch ends and the last step always among them."""
    steps, total = steps_per_epoch(settings, n_train), total_steps(settings, n_train)
    within = {max(1, round(steps * (i + 1) / times)) for i in range(times)} | {steps}
    found = {epoch * steps + step for epoch in range(epoch_count(settings, n_train)) for step in within}
    return frozenset({step for step in found if step < total} | {total})


def evaluation_steps(settings: RunSettings, n_train: int, times: int | None = None) -> list[int]:
    """Optimiser steps after which something is done ``times`` an epoch; by default, the structure is measured."""
    return sorted(spread_steps(settings, n_train, times or settings.evaluations_per_epoch))


def precision_of(settings: RunSettings, device: torch.device) -> str:
    """``auto`` resolved: bfloat16 or float16 on an accelerator that has it, float32 elsewhere."""
    if settings.precision != "auto":
        return settings.precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    return "float32"
