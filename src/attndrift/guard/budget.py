"""Budgets: how far a model may go, and what a measurement says of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor, nn

from attndrift.drift.drift import Drift, watchable
from attndrift.drift.monitor import DriftMonitor
from attndrift.guard.probe import RetentionProbe
from attndrift.metrics.registry import METRICS
from attndrift.models.evaluation import preserve_state
from attndrift.process_group import Processes
from attndrift.registry import near_match
from attndrift.results.measures import MEASURES, ZERO_SHOT, retention_metric
from attndrift.retention.retained import why_no_retention
from attndrift.retention.zero_shot import DEFAULT_TEMPLATES, Images, TextFeatures


@dataclass(frozen=True)
class Reading:
    """What one measurement says of one budget.

    Attributes:
        metric: the budget's.
        value: what was measured; None where the representation had collapsed.
        standard_error: of ``value``, where images are drawn at random; None where it has none.
        bound: what is held against the limit: ``value``, or a confidence bound of it.
        limit: the limit that is nearest to being crossed.
        slack: how far ``bound`` lies on the allowed side of it, in the metric's unit; negative where it is crossed,
            None where there is no value.
    """

    metric: str
    value: float | None
    standard_error: float | None
    bound: float | None
    limit: float
    slack: float | None

    @property
    def met(self) -> bool:
        """Whether the budget is kept."""
        return self.slack is not None and self.slack >= 0

    def __str__(self) -> str:
        if self.value is None or self.bound is None:
            return f"{self.metric} has no value: the representation has collapsed"
        text = f"{self.metric} {self.value:.4g}"
        return text if self.standard_error is None else f"{text} (bound {self.bound:.4g})"


@dataclass(frozen=True)
class Budget:
    """A limit on measured drift: ``Budget("cka_mean", at_least=0.9)``.

    :meth:`retention` makes one of zero-shot, k-NN or linear-probe accuracy.

    Attributes:
        metric: one of :func:`~attndrift.drift.watchable`, in its own unit: ``cka_mean``, ``embedding_drift``,
            ``entropy_change_pct``, ``weight_drift``, ...
        at_least, at_most: the closed range that the value must stay in; give one, or both for a band.
    """

    metric: str
    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        if self.metric not in watchable():
            hint = near_match(self.metric, watchable()) or "; `attndrift list` shows every metric"
            raise ValueError(f"budget: there is no metric `{self.metric}`{hint}; retention has Budget.retention(...)")
        limits = [limit for limit in (self.at_least, self.at_most) if limit is not None]
        if not limits or not all(math.isfinite(limit) for limit in limits):
            raise ValueError(f"budget on {self.metric}: give at_least=, at_most= or both, finite numbers; got {limits}")
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise ValueError(f"budget on {self.metric}: at_least={self.at_least} lies above at_most={self.at_most}")

    def __str__(self) -> str:
        parts = [] if self.at_least is None else [f"at least {self.at_least:g}"]
        parts += [] if self.at_most is None else [f"at most {self.at_most:g}"]
        return f"{self.metric} {' and '.join(parts)}"

    def read(self, drift: Drift | None) -> Reading:
        """What ``drift`` says of this budget; None for a representation that has collapsed."""
        value = None if drift is None else drift.values()[self.metric]
        if value is None and drift is not None:
            reason = drift.missing.get(self.metric, "it is not measured for this model")
            raise ValueError(f"budget on {self.metric}: {reason}, so it cannot be kept")
        limits = [(limit, sign) for limit, sign in ((self.at_least, 1.0), (self.at_most, -1.0)) if limit is not None]
        if value is None:
            return Reading(self.metric, None, None, None, limits[0][0], None)
        slack, limit = min((sign * (value - limit), limit) for limit, sign in limits)
        return Reading(self.metric, value, None, value, limit, slack)

    @staticmethod
    def retention(
        at_least: float,
        images: Images | Tensor,
        labels: ArrayLike | None = None,
        class_names: Sequence[str] | None = None,
        *,
        text_features: TextFeatures | ArrayLike | None = None,
        tokenizer: Any = None,
        templates: Sequence[str] = DEFAULT_TEMPLATES,
        measure: str = ZERO_SHOT,
        bank: tuple[Images | Tensor, ArrayLike] | None = None,
        settings: Mapping[str, Any] | None = None,
        confidence: float = 0.9,
        batch_size: int = 200,
    ) -> RetentionBudget:
        """A budget on the accuracy on a probe of labelled images, as a share of the pretrained accuracy.

        ::

            Budget.retention(0.9, images, labels, text_features=text_features)          # keeps 90%
            Budget.retention(0.9, images, labels, measure="knn", bank=(others, their_labels))   # no text tower needed

        What is wanted is the retention on images like those of the probe, and the probe is a sample of them. So not
        the measured share is held against ``at_least`` but its one-sided lower confidence bound: the share minus
        z standard errors of the paired comparison (each image under the pretrained and the present model).

        Args:
            at_least: share of the pretrained accuracy, 0.9 for 90%; above 1 asks for a gain.
            images, labels, class_names, text_features, tokenizer, templates, batch_size: the probe, as for
                :func:`~attndrift.evaluate_zero_shot`; ``images`` are read at every measurement. Give text features, of one
                of its kinds or as numbers (classes, dimensions), or class names and a tokenizer of the model.
                A text encoder that trains is measured with class names alone: given features stay as they are. Other
                measures than zero-shot accuracy need no text.
            measure: a registered retention measure: ``zero_shot``, ``knn``, ``linear_probe``, ...
            bank: other images like those of the probe, and their labels, for a measure that learns from them.
            settings: own settings of the measure, such as ``{"knn_k": 10}``.
            confidence: of the bound, 0.5 (the measured share itself) to below 1.

        Raises:
            ValueError: something is missing, or does not go together: whatever can be told without the model.
        """
        MEASURES[measure]  # an unknown name is an error with a near match
        probe = RetentionProbe(
            measure, images, labels, class_names, text_features, tokenizer, templates, batch_size, bank, settings or {}
        )
        return RetentionBudget(at_least, probe, confidence)


@dataclass(frozen=True)
class RetentionBudget:
    """A share of the pretrained accuracy by a retention measure; made by :meth:`Budget.retention`."""

    at_least: float
    probe: RetentionProbe
    confidence: float = 0.9

    @property
    def metric(self) -> str:
        """``retention_pct`` of zero-shot accuracy, ``knn_retention_pct``, ..."""
        return retention_metric(self.probe.measure)

    def __post_init__(self) -> None:
        if not 0 < self.at_least < 2:
            raise ValueError(f"at_least is {self.at_least}; it is a share of the pretrained accuracy: 0.9 for 90%")
        if not 0.5 <= self.confidence < 1:
            raise ValueError(f"confidence is {self.confidence}; it must be at least 0.5 and below 1")

    def __str__(self) -> str:
        measure = "" if self.probe.measure == ZERO_SHOT else f"{self.probe.measure} "
        return f"{measure}retention at least {100 * self.at_least:g}% with {100 * self.confidence:g}% confidence"

    def against(self, model: nn.Module, processes: Processes | None = None) -> RetentionMeter:
        """What measures this budget against the state that ``model`` is in now. Raises ValueError where it has no value."""
        return RetentionMeter(self, model, processes)


class RetentionMeter:
    """Measures retention against the pretrained predictions on the probe, taken when it is made.

    Attributes:
        accuracy: the pretrained accuracy on the probe.
        text: the features of the class names, as they were then; encoded anew at every reading where their encoder trains.
            None for a measure without text.
    """

    def __init__(self, budget: RetentionBudget, pretrained: nn.Module, processes: Processes | None = None) -> None:
        self.budget = budget
        self._live = bool(budget.probe.text_parameters(pretrained))
        self.text = budget.probe.encoded(pretrained)
        self._before = budget.probe.correct(pretrained, self.text, processes)
        self.accuracy = float(self._before.mean())
        reason = why_no_retention(self.accuracy, budget.probe.classes(self.text), len(self._before))
        if reason is not None:
            raise ValueError(f"budget on {budget.metric}: {reason}")

    def read(self, model: nn.Module, processes: Processes | None = None) -> Reading:
        """The retention of ``model``, in percent, and its lower confidence bound; ``processes`` share the probe."""
        text = self.text
        if self._live:
            with preserve_state(model):
                text = self.budget.probe.encoded(model)
        now = self.budget.probe.correct(model, text, processes)
        share = float(now.mean() / self.accuracy)
        # The ratio of two means over the same images, linearised: images that both states get right, or both wrong,
        # say little about the ratio, and this is what pairing takes out of the error.
        error = float(np.std(now - share * self._before, ddof=1) / math.sqrt(len(now)) / self.accuracy)
        bound = share - NormalDist().inv_cdf(self.budget.confidence) * error
        # Of a state that predicts as the pretrained one does nothing is unsure.
        limit = self.budget.at_least
        return Reading(self.budget.metric, 100 * share, 100 * error, 100 * bound, 100 * limit, 100 * (bound - limit))


def text_parameters(budgets: Sequence[Budget | RetentionBudget], monitor: DriftMonitor) -> dict[str, nn.Parameter]:
    """The trained parameters of a text encoder that budgets measure, by name."""
    found: dict[str, nn.Parameter] = {}
    for budget in budgets:
        if isinstance(budget, RetentionBudget):
            found |= budget.probe.text_parameters(monitor.model)
        elif monitor.text is not None and of_text(budget.metric):
            found |= monitor.text.parameters()
    return found


def of_text(metric: str) -> bool:
    """Whether a quantity is measured of the text side."""
    return metric in METRICS and METRICS[metric].needs in ("texts", "text weights")
