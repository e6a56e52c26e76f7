"""Methods compared at equal compute: after the same number of training images, or the same measured seconds of training.

Compute is counted in training images seen (epochs times training images), and in seconds where ``training_seconds`` of
the table ``runs`` gives them. Each method stands at the setting with its best validation accuracy at that budget. At the
end of training the final outcomes are compared; before it, what the history holds: validation accuracy and monitored
retention at the last evaluation within the budget. Seeds are the replicates, as everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from attndrift.analysis.configurations import Prepared
from attndrift.analysis.contrasts import correct, difference_columns, estimate, method_of, pairs_of
from attndrift.analysis.dynamics import History
from attndrift.analysis.measures import ACCURACIES, retention
from attndrift.analysis.numbers import Floats, means_of, number
from attndrift.analysis.result import Table
from attndrift.analysis.settings import AnalysisSettings
from attndrift.analysis.summary import filled_table, plain_columns
from attndrift.results.columns import Column

IMAGES, SECONDS = "training images", "training seconds"
DURING, END = "during training", "end of training"
VALIDATION, MONITORED = "validation accuracy", "monitored retention"
PLACE = ["model_name", "selection_name", "dataset"]
_HISTORY = {VALIDATION: ("val_accuracy", 100.0), MONITORED: ("monitor_zero_shot_retention_pct", 1.0)}
_SHARES = (0.25, 0.5, 1.0)
_EQUAL = 0.01
"""Budgets that differ by less are equal."""
_APART = 0.1
"""Of the budget: evaluations further apart are not compared."""
Row = dict[str, Any]
Places = NDArray[np.intp]


@dataclass(frozen=True)
class _Axis:
    """One way to count compute: of each run in ``total``, of each evaluation of the history in ``used``; NaN: not known."""

    name: str
    total: Floats
    used: Floats


def _axes(prepared: Prepared, history: History, epoch: Floats) -> list[_Axis]:
    runs, step = prepared.runs, history.values("step")
    images = runs["n_train"].to_numpy(dtype=float)
    found = [_Axis(IMAGES, images * runs["epochs"].to_numpy(dtype=float), images[history.run] * epoch)]
    seconds = runs["training_seconds"].to_numpy(dtype=float)
    last = np.zeros(history.n_runs)
    np.maximum.at(last, history.run, step)
    with np.errstate(invalid="ignore", divide="ignore"):
        found.append(_Axis(SECONDS, seconds, (seconds / last)[history.run] * step))
    return [axis for axis in found if np.isfinite(axis.total).any()]


@dataclass(frozen=True)
class _Outcomes:
    """Numbers of each run at one budget: what chooses, and of each measure its values and the compute used until then."""

    chooser: Floats
    measures: dict[str, tuple[Floats, Floats]]


def _at_budget(history: History, axis: _Axis, budget: float) -> _Outcomes:
    """The last evaluations within ``budget``, after the first step."""
    inside = (history.values("step") > 0) & (axis.used <= budget * (1 + 1e-6))
    measures: dict[str, tuple[Floats, Floats]] = {}
    for name, (column, scale) in _HISTORY.items():
        rows = history.last(inside & np.isfinite(history.values(column)))
        used = np.where(rows >= 0, axis.used[rows], np.nan) if len(axis.used) else np.full(len(rows), np.nan)
        measures[name] = scale * history.take(column, rows), used
    return _Outcomes(measures[VALIDATION][0], measures)


def _at_end(prepared: Prepared, axis: _Axis) -> _Outcomes:
    runs = prepared.runs
    names = {name: retention(name).name for name in prepared.transfer} | {"test accuracy": ACCURACIES[1].name}
    scales = {name: 100.0 if column == ACCURACIES[1].name else 1.0 for name, column in names.items()}
    measures = {
        (name if name == "test accuracy" else f"{name} retention"): (
            scales[name] * runs[column].to_numpy(dtype=float),
            axis.total,
        )
        for name, column in names.items()
        if column in runs
    }
    return _Outcomes(runs["best_val_accuracy"].to_numpy(dtype=float), measures)


def compute_table(
    prepared: Prepared, history: History, epoch: Floats, settings: AnalysisSettings, notes: list[str]
) -> Table:
    """``equal_compute``: a row a pair of methods, way to count compute, budget and measure."""
    runs = prepared.distinct[[*PLACE, "variant", "method", "has_addition"]]
    facts = _Facts.of(prepared.runs)
    rows: list[Row] = []
    said: list[str] = []
    axes = _axes(prepared, history, epoch)
    groups = sorted(runs.groupby(PLACE, sort=True), key=lambda item: -len(item[1]))[: settings.max_rate_groups]
    for axis in axes:
        end, states = _at_end(prepared, axis), dict[float, _Outcomes]()
        for place, group in groups:
            totals = axis.total[group.index]
            known = totals[np.isfinite(totals)]
            if not len(known):
                continue
            equal = bool(np.ptp(known) <= _EQUAL * known.max())
            if equal and axis.name == IMAGES:
                said.append(
                    f"On {place[2]}, each run saw {known[0]:,.0f} training images: equal settings are equal compute."
                )
            pairs = [(one, two) for kind, one, two in pairs_of(group) if kind == 0][: settings.max_method_pairs]
            of_variant = {str(name): own for name, own in group.groupby("variant").groups.items()}
            for first, second in pairs:
                own = (of_variant[name].to_numpy(dtype=np.intp) for name in (first, second))
                pair = _Pair(facts, axis, first, second, *own)
                for row in _rows(pair, history, end, states, equal, settings):
                    rows.append(dict(zip(PLACE, place, strict=True)) | {"compute": axis.name} | row)
    if not any(axis.name == SECONDS for axis in axes):
        said.append("`training_seconds` is in no run: nothing is said of equal training time.")
    if not any(axis.name == IMAGES for axis in axes):
        said.append("`epochs` or `n_train` is in no run: training images are not known.")
    notes += [] if rows else ["No two methods can be compared at equal compute; the table `equal_compute` says why."]
    return _as_table(rows, said, settings)


@dataclass(frozen=True)
class _Facts:
    """Of each run: its configuration and its seed, as numbers in the order of their names, and its learning rate."""

    configuration: NDArray[np.intp]
    replicate: NDArray[np.intp]
    learning_rate: Floats

    @classmethod
    def of(cls, runs: pd.DataFrame) -> _Facts:
        configuration, replicate = (
            pd.factorize(runs[name], sort=True)[0].astype(np.intp) for name in ("configuration", "replicate")
        )
        return cls(configuration, replicate, runs["learning_rate"].to_numpy(dtype=float))


@dataclass(frozen=True)
class _Pair:
    """The runs of two methods on one dataset, by their places."""

    facts: _Facts
    axis: _Axis
    first: str
    second: str
    of_first: Places
    of_second: Places

    def runs(self, total: float | None = None) -> tuple[Places, Places]:
        """Those whose compute is known; those with the budget ``total`` alone."""
        one, two = (self._with(own, total) for own in (self.of_first, self.of_second))
        return one, two

    def _with(self, own: Places, total: float | None) -> Places:
        totals = self.axis.total[own]
        return own[np.isfinite(totals) & ((total is None) | (np.abs(totals - (total or 0)) <= _EQUAL * totals))]

    def best(self, outcomes: _Outcomes, rows: Places) -> Places:
        """The runs of the setting with the best mean of what chooses; none where nothing chooses."""
        of = self.facts.configuration[rows]
        settings, means = means_of(of, outcomes.chooser[rows])
        return rows[of == settings[means.argmax()]] if len(means) else rows[:0]

    def of_seeds(self, rows: Places, values: Floats) -> tuple[Places, Floats]:
        """Each seed that has a value, and its mean."""
        return means_of(self.facts.replicate[rows], values[rows])


def _rows(
    pair: _Pair,
    history: History,
    end: _Outcomes,
    states: dict[float, _Outcomes],
    equal: bool,
    settings: AnalysisSettings,
) -> Iterator[Row]:
    """Rows of one pair: at the end where budgets differ between settings, and within the smaller one before it."""
    one, two = (pair.axis.total[own] for own in pair.runs())
    if not (len(one) and len(two)):
        return
    if not equal:
        for total in sorted({float(value) for value in one if (np.abs(two - value) <= _EQUAL * value).any()}):
            yield from _compared(pair, end, total, total, END, settings)
    smallest = float(min(one.max(), two.max()))
    for share in _SHARES:
        budget = share * smallest
        if len(pair.axis.used) and (share < 1 or abs(one.max() - two.max()) > _EQUAL * smallest):
            if budget not in states:
                states[budget] = _at_budget(history, pair.axis, budget)
            yield from _compared(pair, states[budget], budget, None, DURING, settings)


def _compared(
    pair: _Pair, outcomes: _Outcomes, budget: float, total: float | None, when: str, settings: AnalysisSettings
) -> Iterator[Row]:
    """First - second of each measure, seed by seed; without an interval where they used too different compute."""
    one, two = (pair.best(outcomes, own) for own in pair.runs(total))
    for measure, (values, used) in outcomes.measures.items():
        (seeds, mine), (others, other) = (pair.of_seeds(own, values) for own in (one, two))
        if not (len(mine) and len(other)):
            continue
        shared, at, there = np.intersect1d(seeds, others, assume_unique=True, return_indices=True)
        paired = len(shared) > 0
        if paired:
            mine, other = mine[at], other[there]
        spent = [float(np.nanmean(used[own])) for own in (one, two)]
        margin = np.array([settings.equivalent_within_points])
        found = estimate(mine[None], other[None], margin, settings.level, paired=paired)
        numbers = {key: float(array[0]) for key, array in found.items()}
        n = min(len(mine), len(other))
        words = method_of(n, paired=paired)(bool(np.isfinite(numbers["low"])))
        if abs(spent[0] - spent[1]) > _APART * budget:
            numbers |= dict.fromkeys(("low", "high", "p", "p_equivalence"), np.nan)
            words = {"method": "none", "reason": "the nearest evaluations are too far apart"}
        rates = [number(pair.facts.learning_rate[own[0]]) for own in (one, two)]
        yield numbers | words | {
            "when": when, "budget": budget, "measure": measure, "first": pair.first, "second": pair.second,
            "first_rate": rates[0], "second_rate": rates[1], "first_used": spent[0], "second_used": spent[1], "n_seeds": n,
        }  # fmt: skip


def _as_table(rows: list[Row], notes: list[str], settings: AnalysisSettings) -> Table:
    columns = [
        *plain_columns(
            ("model_name", "Model"), ("selection_name", "Selection"), ("dataset", "Dataset"), ("compute", "Compute"),
            ("when", "When"), ("measure", "Measure"), ("first", "First"), ("first_rate", "Its rate"), ("second", "Second"),
            ("second_rate", "Its rate "), ("n_seeds", "Seeds"),
        ),
        *(Column(name=name, label=label, digits=0) for name, label in
          (("budget", "Compute, at most"), ("first_used", "Used by the first"), ("second_used", "Used by the second"))),
        *difference_columns(),
        *plain_columns(
            ("p", "p"), ("p_holm", "p, Holm"), ("family_size", "Family"), ("p_equivalence", "p of equivalence, Holm"),
            ("verdict", "Verdict"), ("method", "Statistic"), ("reason", "Note"),
        ),
    ]  # fmt: skip
    if rows:
        frame = pd.DataFrame(rows)
        asked = (
            frame["compute"] + frame["when"] + frame.groupby(["first", "second"])["budget"].rank("dense").astype(str)
        )
        rows = correct(frame.assign(contrast=asked), settings).to_dict("records")  # type: ignore[assignment]
    notes = [
        *dict.fromkeys(notes),
        f"First - second, {settings.level:.0%} intervals over seeds. Each method at the setting with its best validation accuracy "
        "within the compute; before the end from the last evaluation within it.",
    ]
    return filled_table("equal_compute", "Differences between methods at equal compute", columns, rows, notes)
