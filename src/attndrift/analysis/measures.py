"""The measured columns: what they are called, how they are printed, and which sign means harm."""

from __future__ import annotations

from dataclasses import dataclass

from attndrift.metrics.registry import METRICS
from attndrift.results.columns import Column, metric_columns
from attndrift.results.measures import MEASURES, ZERO_SHOT, column_stem, set_and_measure


@dataclass(frozen=True)
class Measure:
    """One outcome column of ``runs``; ``unit`` is that of the stored values."""

    name: str
    label: str
    unit: str
    digits: int | None = None
    scale: float = 1.0
    signed: bool = False

    def column(self, *, sd: bool = False) -> Column:
        return Column(
            name=self.name,
            label=self.label,
            unit="%" if self.scale == 100.0 else self.unit,
            digits=self.digits,
            scale=self.scale,
            signed=self.signed,
            sd=f"{self.name}_sd" if sd else None,
        )


LAST_LAYER = "entropy_last_layer_change_pct"
ACCURACIES = (
    Measure("best_val_accuracy", "Validation accuracy", "fraction", 2, 100.0),
    Measure("test_accuracy", "Test accuracy", "fraction", 2, 100.0),
)


def _measured(*, structural: bool) -> list[tuple[Measure, Column]]:
    found = []
    for column in metric_columns("runs"):
        metric = METRICS[column.metric]
        if metric.structural == structural and metric.analysed and column.statistic not in ("baseline", "final"):
            unit = column.unit if structural else ""
            found.append((Measure(column.name, column.label, unit, column.digits, signed=column.signed), column))
    return found


def changes() -> list[Measure]:
    """Changes of attention structure, the last block beside the mean."""
    return [measure for measure, _ in _measured(structural=True)]


def headlines(*, last_block: bool = False) -> list[str]:
    """Columns of ``runs`` and ``history`` of the metrics that a short figure shows; ``last_block``: their last block too."""
    wanted = ("change_pct", "mean", "value", *(["last_layer_change_pct"] if last_block else []))
    return [one.name for one in metric_columns("runs") if METRICS[one.metric].headline and one.statistic in wanted]


def measured_columns() -> list[str]:
    """Columns of ``runs`` of every analysed metric, one a metric: its change, or the mean over blocks."""
    means = [*_measured(structural=True), *_measured(structural=False)]
    return [measure.name for measure, column in means if column.statistic in ("change_pct", "mean", "value")]


def retention(outcome: str) -> Measure:
    """The retention of a transfer set by a measure, called as :func:`~attndrift.results.measures.outcome_name` does."""
    name, measure = set_and_measure(outcome)
    label = f"{name} retention" if measure == ZERO_SHOT else f"{name} {MEASURES[measure].label} retention"
    return Measure(f"{column_stem(outcome)}_retention_pct", label.replace(" accuracy", ""), "%", 1)


def transfer_measures(outcome: str) -> tuple[Measure, ...]:
    """Accuracy and retention of a transfer set by a measure."""
    name, measure = set_and_measure(outcome)
    accuracy = Measure(f"{column_stem(outcome)}_accuracy", f"{name} {MEASURES[measure].label}", "fraction", 2, 100.0)
    return accuracy, retention(outcome)


def outcomes(transfer: list[str]) -> list[Measure]:
    """All outcome measures, in the order of the tables: the last block stands beside the mean."""
    result = [*ACCURACIES, *changes(), *(measure for measure, _ in _measured(structural=False))]
    for outcome in transfer:
        result += transfer_measures(outcome)
    return result
