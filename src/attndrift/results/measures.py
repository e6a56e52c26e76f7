"""The registry of retention measures: how well a model could do something before, and can still do it.

Tables, study files and messages have their names and words from here; the functions are in
:mod:`attndrift.retention.measures`. Nothing here imports torch.

    MEASURES.register(RetentionMeasure(name="mine", label="mine accuracy", evaluate=mine, meaning="...", source="..."))
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from attndrift.own_settings import OwnSettings, validated
from attndrift.registry import Registry


@dataclass(frozen=True)
class RetentionMeasure:
    """One retention measure: an accuracy of a model on images that it was not fine-tuned on.

    Attributes:
        name: in study files and in columns ``transfer_SET_NAME_...``.
        label: of its accuracy, in tables and figures.
        meaning: what it measures, in one phrase; ``source`` says where the protocol comes from.
        evaluate: (model, :class:`~attndrift.retention.task.RetentionTask`) to a
            :class:`~attndrift.retention.task.RetentionResult`, or ``module:name`` of it.
        needs_text: whether the model must have a text tower.
        needs_bank: whether the set must have training images, which the measure learns from.
        cost: what it takes beside embedding the images, in words.
        operations: (queries, bank, dimensions, classes) to about how many floating-point operations that is, beside
            the forward passes; None: hardly any.
        Settings: settings of its own, which a study file may give.
    """

    name: str
    label: str
    meaning: str
    source: str
    evaluate: Callable[..., Any] | str
    needs_text: bool = False
    needs_bank: bool = False
    cost: str = "none"
    operations: Callable[[int, int, int, int], float] | None = None
    Settings: type[OwnSettings] = OwnSettings

    @property
    def needs(self) -> str:
        """What it needs beside the images, in words."""
        parts = ["a text tower"] if self.needs_text else []
        return " and ".join([*parts, "labelled images to learn from"] if self.needs_bank else parts) or "nothing"

    def impossible(self, *, text: bool, bank: bool) -> str | None:
        """Why it cannot be measured of a model with or without a text tower, on a set with or without a bank; None if it can."""
        if self.needs_text and not text:
            return f"{self.name} needs class names as text, and the model has no text tower"
        if self.needs_bank and not bank:
            return f"{self.name} learns from labelled images of the set, a bank, and there is none"
        return None

    def measure(self, model: Any, task: Any, settings: Mapping[str, Any] | None = None) -> Any:
        """Its result for ``model`` on ``task``; ``settings`` are its own by name, its defaults where not given.

        Raises ``ValueError`` where the model or the set has not what it needs, by its name.
        """
        reason = self.impossible(text=task.text is not None, bank=task.bank is not None)
        if reason is not None:
            raise ValueError(f"measure: {reason}")
        return self.function(model, replace(task, settings=validated(self, settings or {})))

    @property
    def function(self) -> Callable[..., Any]:
        """The function itself."""
        if not isinstance(self.evaluate, str):
            return self.evaluate
        module, _, name = self.evaluate.partition(":")
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return found


MEASURES: Registry[RetentionMeasure] = Registry(
    "retention measure", "attndrift.retention.measures", group="attndrift.measures"
)
"""All measures: those of :mod:`attndrift.retention.measures`, of installed packages, and of this process."""

ZERO_SHOT = "zero_shot"


def outcome_name(transfer_set: str, measure: str) -> str:
    """What a transfer set by a measure is called where outcomes are listed: the set alone by zero-shot accuracy.

    >>> outcome_name("cifar100", "zero_shot"), outcome_name("cifar100", "knn")
    ('cifar100', 'cifar100_knn')
    """
    return transfer_set if measure == ZERO_SHOT else f"{transfer_set}_{measure}"


def retention_metric(measure: str) -> str:
    """What the retention by a measure is called beside metrics: in budgets, alerts and histories.

    >>> retention_metric("zero_shot"), retention_metric("knn")
    ('retention_pct', 'knn_retention_pct')
    """
    return "retention_pct" if measure == ZERO_SHOT else f"{measure}_retention_pct"


def measure_of_metric(metric: str) -> str | None:
    """The measure whose :func:`retention_metric` it is; None for another metric."""
    return next((measure for measure in MEASURES.names() if retention_metric(measure) == metric), None)


def set_and_measure(outcome: str) -> tuple[str, str]:
    """The transfer set and the measure of an :func:`outcome_name`.

    >>> set_and_measure("cifar100"), set_and_measure("cifar100_linear_probe")
    (('cifar100', 'zero_shot'), ('cifar100', 'linear_probe'))
    """
    found = next((one for one in MEASURES.names() if outcome.endswith(f"_{one}")), None)
    return (outcome, ZERO_SHOT) if found is None else (outcome.removesuffix(f"_{found}"), found)


def column_stem(outcome: str) -> str:
    """What the columns of an :func:`outcome_name` in the table ``runs`` begin with.

    >>> column_stem("cifar100"), column_stem("cifar100_knn")
    ('transfer_cifar100_zero_shot', 'transfer_cifar100_knn')
    """
    return "transfer_{}_{}".format(*set_and_measure(outcome))


def accuracy_words(outcome: str) -> str:
    """The accuracy of an :func:`outcome_name` in a sentence.

    >>> accuracy_words("cifar100_knn")
    'k-NN accuracy on cifar100'
    """
    name, measure = set_and_measure(outcome)
    return f"{MEASURES[measure].label} on {name}"


def unconverged(before: object, after: object, names: tuple[str, str]) -> str | None:
    """What is to be known of a probe that was fitted to two models; None where both fits converged, or say nothing of it.

    ``before``, ``after``: what the measure says of each model. ``names``: of the two.

    >>> unconverged({"converged": True}, {"converged": False}, ("BASE", "ADAPTED"))
    'the fit of the probe to ADAPTED did not converge in probe_iterations steps: its accuracy depends on that number'
    """
    said = [
        name
        for name, one in zip(names, (before, after), strict=True)
        if isinstance(one, Mapping) and one.get("converged") is False
    ]
    if not said:
        return None
    fits, accuracy = ("fit", "its accuracy depends") if len(said) == 1 else ("fits", "their accuracies depend")
    return f"the {fits} of the probe to {' and '.join(said)} did not converge in probe_iterations steps: {accuracy} on that number"
