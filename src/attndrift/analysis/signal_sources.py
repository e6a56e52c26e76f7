"""The signals: what may go with, or warn of, the loss of retention, and its value in every run at each moment.

A measured signal is a column of a registered metric; its facts say which side is harm. The others need no measurement
of the model: they are known from training anyway, and a measured signal has to be better than they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from attndrift.analysis.configurations import Prepared
from attndrift.analysis.dynamics import History, first_epoch_rows
from attndrift.analysis.numbers import Floats
from attndrift.metrics.registry import METRICS
from attndrift.results.columns import Column, metric_columns
from attndrift.results.tables import schema

MOMENTS = ("final", "first epoch")


@dataclass(frozen=True)
class SignalSource:
    """One signal.

    Attributes:
        final, during: its columns in ``runs`` and in ``history``; empty where that table has none.
        absolute: whether it is the size of the value, whatever its sign.
        expected_sign: sign of its correlation with retention if it means what it is taken for; -1: more of it, less
            retention. A rule built on the signal picks the run where it is smallest (largest where the sign is +1).
        measured: whether the model has to be measured for it.
        headline: whether it is one of the few that others are compared with.
        compared: whether it is compared with these: of a metric its mean, of a change of attention its size.
    """

    name: str
    label: str
    final: str
    during: str
    expected_sign: int
    unit: str = ""
    absolute: bool = False
    measured: bool = True
    headline: bool = False
    compared: bool = True

    def values(self, frame: pd.DataFrame, column: str) -> Floats:
        """The signal from ``column`` of ``frame``; NaN where the column is absent."""
        if column not in frame.columns:
            return np.full(len(frame), np.nan)
        values = frame[column].to_numpy(dtype=float)
        return np.abs(values) if self.absolute else values


def signals() -> tuple[SignalSource, ...]:
    """Every signal: changes of attention, signed and in size, drifts, the monitor, and what training tells anyway.

    >>> [signal.name for signal in signals() if signal.headline]
    ['entropy_change', 'abs_entropy_change', 'cka_mean', 'embedding_drift']
    """
    during = {column.name for column in metric_columns("history")}
    found: list[SignalSource] = []
    for column in metric_columns("runs"):
        metric = METRICS[column.metric]
        if not metric.analysed or column.statistic in ("baseline", "final"):
            continue
        sign = 1 if column.worse == "lower" else -1
        place = (column.name, column.name if column.name in during else "")
        main = column.statistic in ("change_pct", "mean", "value")
        name, headline = column.name.removesuffix("_pct"), main and metric.headline
        signed = SignalSource(name, column.label, *place, sign, column.unit, headline=headline)
        found.append(replace(signed, compared=main and (headline or not metric.own)))
        if metric.own:
            size = replace(signed, name=f"abs_{name}", label=f"|{column.label}|", expected_sign=-1, absolute=True)
            found.append(replace(size, compared=main))
    known = {column.name: column for column in (*schema("history"), *schema("runs"))}

    def training(name: str, final: str, during: str, sign: int, *, measured: bool = False) -> SignalSource:
        column: Column = known[final or during]
        return SignalSource(name, column.label, final, during, sign, column.unit, measured=measured)

    # The better the fit, the more has been adapted, so that less is expected to be retained.
    return (
        *found,
        training("monitor_zero_shot_retention", "", "monitor_zero_shot_retention_pct", 1, measured=True),
        training("learning_rate", "learning_rate", "", -1),
        training("train_loss", "", "train_loss", 1),
        training("train_accuracy", "", "train_accuracy", -1),
        training("validation_accuracy", "best_val_accuracy", "val_accuracy", -1),
        training("test_accuracy", "test_accuracy", "", -1),
    )


def signal_values(prepared: Prepared, history: History, epoch: Floats, notes: list[str]) -> dict[str, pd.DataFrame]:
    """For each of :data:`MOMENTS` a row a run of ``prepared.runs`` and a column a signal that any run has then."""
    runs = prepared.runs
    watched = _disjoint(runs, history, notes)
    early, last = first_epoch_rows(history, epoch), history.last(history.values("step") > 0)
    if len(history) and not (early >= 0).any():
        notes.append("The history has no evaluation within the first epoch: no signal is known early.")
    result: dict[str, pd.DataFrame] = {}
    for when, rows in zip(MOMENTS, (last, early), strict=True):
        columns: dict[str, Floats] = {}
        for source in signals():
            if when == "final" and source.final:
                values = source.values(runs, source.final)
            elif source.during in history.frame.columns:
                values = history.take(source.during, rows)
                values = np.abs(values) if source.absolute else values
            else:
                continue
            if source.during.startswith("monitor_"):
                values = np.where(watched, values, np.nan)
            if np.isfinite(values).any():
                columns[source.name] = values
        result[when] = pd.DataFrame(columns, index=runs.index)
    return result


def _disjoint(runs: pd.DataFrame, history: History, notes: list[str]) -> np.ndarray:
    """Whether no image of each run's zero-shot monitor is one of its final retention; null is taken for no."""
    told = runs["monitor_disjoint"].fillna(False).to_numpy(dtype=bool)
    monitored = np.isfinite(history.values("monitor_zero_shot_retention_pct"))
    unknown = int((~told[np.unique(history.run[monitored])]).sum())
    if unknown:
        notes.append(
            f"The zero-shot monitor is no signal in {unknown} runs: that its images are none of the final retention is "
            "not known (`monitor_disjoint`), and a signal that shares images with the outcome is no predictor."
        )
    return told
