"""What a run's training needs, and what it comes to."""

from __future__ import annotations

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

SHOWN = ("val_accuracy", "monitor_zero_shot_retention_pct", "cka_mean")
"""Columns of the history that a reporter is told at once: accuracy (0 to 1), retention (percent), CKA (0 to 1)."""


class Reporter(Protocol):
    """Told how a run goes."""

    def step(self, done: int, total: int) -> None:
        """``done`` of ``total`` optimiser steps are done."""

    def say(self, message: str) -> None:
        """A line for the log."""

    def evaluated(self, step: int, total: int, values: Mapping[str, float]) -> None:
        """What was measured after ``step`` of ``total``: those of :data:`SHOWN` that were."""

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
        run_id, study: what trackers call the run and its group.
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
    run_id: str = ""
    study: str = ""


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


def precision_of(settings: RunSettings, device: torch.device) -> str:
    """``auto`` resolved: bfloat16 or float16 on an accelerator that has it, float32 elsewhere."""
    if settings.precision != "auto":
        return settings.precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    return "float32"
