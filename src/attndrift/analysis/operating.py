"""Operating points: each method at its best validation, at its best retention with enough accuracy; the Pareto front.

Only settings that were run are chosen, nothing is interpolated. What was chosen by the validation accuracy has the plain
interval over seeds of its retention; what was chosen by the retention itself has a wider one (:func:`~attndrift.analysis.
intervals.chosen_row`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from attndrift.analysis import intervals
from attndrift.analysis.configurations import Prepared
from attndrift.analysis.contrasts import (
    GROUP,
    Cells,
    Quantity,
    correct,
    difference_columns,
    estimate,
    method_of,
    narrow,
    of_moments,
    pairs_of,
)
from attndrift.analysis.measures import ACCURACIES, retention
from attndrift.analysis.numbers import Floats, number
from attndrift.analysis.result import Table
from attndrift.analysis.settings import AnalysisSettings
from attndrift.analysis.summary import aggregate, cells_of, filled_table, plain_columns, records, single_seed_notes
from attndrift.results.columns import Column

IDENTITY = [*GROUP[:3], "variant", "key_rest", "learning_rate"]
BEST_VALIDATION, BEST_RETENTION = "best validation", "best retention"
_MOST_VARIANTS = 6
_GROUP_COLUMNS = (
    ("model_name", "Model"), ("selection_name", "Selection"), ("dataset", "Dataset"), ("key_rest", "Conditions"),
    ("transfer_set", "Transfer set"), ("rule", "Chosen by"),
)  # fmt: skip
_LEAST = Column(name="least_accuracy", label="Accuracy at least", unit="%", digits=2)


def accuracy_column(frame: pd.DataFrame, first: str, second: str) -> str | None:
    """The one of two accuracy columns that the runs have; None where they have neither."""
    return next((name for name in (first, second) if name in frame.columns and frame[name].notna().any()), None)


@dataclass(frozen=True)
class _Curve:
    """One method over its learning rates: accuracy that chooses, test accuracy, and retention (seeds, rates), percent."""

    cells: Cells
    rates: Floats
    accuracy: Floats
    """of each rate, the mean over seeds of what chooses"""

    def best(self) -> int:
        return int(np.nanargmax(np.where(np.isfinite(self.accuracy), self.accuracy, -np.inf)))

    def reaches(self, least: float) -> NDArray[np.intp]:
        return np.flatnonzero(self.accuracy >= least - 1e-9)

    def values(self, rates: Any, quantity: int) -> tuple[NDArray[Any], Floats]:
        """The seeds that have all ``rates``, and their values (seeds, rates)."""
        values = self.cells.values[:, rates, quantity]
        known = np.isfinite(values).all(axis=1)
        return self.cells.seeds[known], values[known]


def operating_tables(prepared: Prepared, settings: AnalysisSettings) -> list[Table]:
    """``operating_points``, ``operating_differences`` and ``pareto``."""
    notes: list[str] = []
    measures = [*(one.name for one in ACCURACIES), *(retention(name).name for name in prepared.transfer)]
    runs = narrow(prepared.distinct, [*measures, "epochs", "n_train"])
    chooser = accuracy_column(runs, "best_val_accuracy", "test_accuracy")
    if chooser is None:
        notes.append("No validation accuracy is given: no operating point can be chosen.")
    elif chooser == "test_accuracy":
        notes.append("No validation accuracy is given: test accuracy chose, so the accuracies are optimistic.")
    points: list[dict[str, Any]] = []
    differences: list[dict[str, Any]] = []
    groups = list(runs.groupby(GROUP, sort=True)) if chooser else []
    groups.sort(key=lambda item: -len(item[1]))
    if len(groups) > settings.max_rate_groups:
        notes.append(f"{settings.max_rate_groups} of {len(groups)} datasets and conditions, those with most runs.")
    for keys, group in sorted(groups[: settings.max_rate_groups], key=lambda item: item[0]):
        where = dict(zip(GROUP, keys, strict=True))
        for name in [name for name in prepared.transfer if retention(name).name in group]:
            curves = _curves(group, str(chooser), name)
            pairs = [pair for pair in pairs_of(group) if set(pair[1:]) <= set(curves)][: 2 * settings.max_method_pairs]
            points += [where | row | {"transfer_set": name} for row in _points(curves, group, settings)]
            differences += [where | row | {"transfer_set": name} for row in _differences(curves, pairs, settings)]
    return [_points_table(points, notes), _differences_table(differences, settings, notes), pareto_table(prepared)]


def _curves(group: pd.DataFrame, chooser: str, transfer_set: str) -> dict[str, _Curve]:
    kept, test = retention(transfer_set).name, ACCURACIES[1].name
    wanted = [
        Quantity(chooser, "%", "accuracy", 100.0),
        Quantity(kept, "%", "transfer"),
        Quantity(test, "%", "accuracy", 100.0),
    ]
    found: dict[str, _Curve] = {}
    own = group[group[chooser].notna() & group[kept].notna()]
    for variant, part in own.groupby("variant", sort=True):
        cells = Cells.of(part, wanted)
        found[str(variant)] = _Curve(cells, cells.rates, np.nanmean(cells.values[:, :, 0], axis=0))
    return found


def _thresholds(curves: dict[str, _Curve], settings: AnalysisSettings) -> list[float]:
    best = sorted({float(one.accuracy.max()) for one in curves.values()}, reverse=True)
    return sorted({100 * one for one in settings.least_accuracies} | set(best[:_MOST_VARIANTS]))


def _points(curves: dict[str, _Curve], group: pd.DataFrame, settings: AnalysisSettings) -> Iterator[dict[str, Any]]:
    images = {variant: number((part["epochs"] * part["n_train"]).iloc[0]) for variant, part in group.groupby("variant")}
    for variant, curve in curves.items():
        best = curve.best()
        edge = len(curve.rates) > 1 and best in (0, len(curve.rates) - 1)
        note = "one rate tried" if len(curve.rates) == 1 else "at the edge of the rates tried" if edge else ""
        common = {"variant": variant, "n_rates": len(curve.rates), "images_seen": images[variant]}
        given = curve.cells.given.get((float(curve.rates[best]), 1))
        row = intervals.given_row(*given, settings.level) if given else intervals.t_row(
            curve.values([best], 1)[1][:, 0], settings.level
        )  # fmt: skip
        yield common | _at(curve, best, row) | {"rule": BEST_VALIDATION, "note": note}
    for least in _thresholds(curves, settings):
        for variant, curve in curves.items():
            allowed = curve.reaches(least)
            if len(allowed):
                at, row = _best_retention(curve, allowed, settings.level)
                yield (
                    {"variant": variant, "n_rates": len(curve.rates), "images_seen": images[variant]}
                    | _at(curve, at, row)
                    | {
                        "rule": BEST_RETENTION,
                        "least_accuracy": least,
                        "note": "" if len(allowed) > 1 else "one rate has it",
                    }
                )


def _best_retention(curve: _Curve, allowed: NDArray[np.intp], level: float) -> tuple[int, dict[str, Any]]:
    """The allowed rate with the highest mean retention, and its row; of the seeds that have all of them."""
    _, values = curve.values(allowed, 1)
    if curve.cells.given:
        at = int(allowed[int(np.nanargmax(np.nanmean(curve.cells.values[:, allowed, 1], axis=0)))])
        told = curve.cells.moments(float(curve.rates[at]), 1)
        if told:
            return at, intervals.given_row(*told, 1 - (1 - level) / len(allowed)) | {"contenders": len(allowed)}
    if not len(values):
        means = np.nanmean(curve.cells.values[:, allowed, 1], axis=0)
        at = int(allowed[int(np.nanargmax(means))])
        return at, intervals.t_row([], level) | {"mean": float(np.nanmax(means)), "contenders": len(allowed)}
    row = intervals.chosen_row(values, level)
    return int(allowed[row["chosen"]]), row


def _at(curve: _Curve, rate: int, row: dict[str, Any]) -> dict[str, Any]:
    known = {name: row.get(name) for name in ("low", "high", "sd", "method", "reason", "contenders")}
    accuracies = [number(np.nanmean(curve.cells.values[:, rate, q])) if np.isfinite(curve.cells.values[:, rate, q]).any()
                  else None for q in (0, 2)]  # fmt: skip
    return known | {
        "learning_rate": number(curve.rates[rate]) if curve.rates[rate] > 0 else None,
        "n_seeds": row["n"] or int(np.isfinite(curve.cells.values[:, rate, 1]).sum()),
        "accuracy": accuracies[0],
        "test_accuracy": accuracies[1],
        "retention_pct": row["mean"],
    }


def _differences(
    curves: dict[str, _Curve], pairs: list[tuple[int, str, str]], settings: AnalysisSettings
) -> Iterator[dict[str, Any]]:
    """Rows of first - second, not corrected: each at its best validation, and at its best retention."""
    for _, first, second in pairs:
        one, two = curves[first], curves[second]
        named = {"first": first, "second": second}
        places = (one.best(), two.best())
        for quantity, measure in ((1, "retention"), (2, "test accuracy")):
            row = _pair(one, two, places, quantity, 1, settings)
            if row is not None:
                yield named | row | {"rule": BEST_VALIDATION, "measure": measure}
        least = min(float(one.accuracy.max()), float(two.accuracy.max()))
        (at, a), (other, b) = (_best_retention(c, c.reaches(least), settings.level) for c in (one, two))
        chances = a["contenders"] + b["contenders"] - 1
        row = _pair(one, two, (at, other), 1, chances, settings)
        if row is not None:
            yield named | row | {"rule": BEST_RETENTION, "least_accuracy": least, "measure": "retention"}


def _pair(
    one: _Curve, two: _Curve, places: tuple[int, int], quantity: int, chances: int, settings: AnalysisSettings
) -> dict[str, Any] | None:
    """Retention or accuracy of the first less that of the second, in points; ``chances``: settings to choose from."""
    (seeds, mine), (others, other) = (c.values([place], quantity) for c, place in zip((one, two), places, strict=True))
    if not (len(seeds) and len(others)):
        return None
    shared, at, there = np.intersect1d(seeds, others, return_indices=True)
    paired = len(shared) > 0
    if paired:
        mine, other = mine[at], other[there]
    margin, level = np.array([settings.equivalent_within_points]), 1 - (1 - settings.level) / chances
    found = estimate(mine.T, other.T, margin, level, paired=paired)
    numbers = {key: float(array[0]) for key, array in found.items()}
    n = min(len(mine), len(other))
    rates = [c.rates[place] if c.rates[place] > 0 else None for c, place in zip((one, two), places, strict=True)]
    row = numbers | method_of(n, paired=paired)(np.isfinite(numbers["low"])) | {"n_seeds": n}
    if one.cells.given or two.cells.given:
        told = [c.cells.moments(float(c.rates[place]), quantity) for c, place in zip((one, two), places, strict=True)]
        row |= of_moments(told[0], told[1], None, settings.equivalent_within_points, level)
    return row | {"first_rate": rates[0], "second_rate": rates[1], "chances": chances} | {
        name: float(np.minimum(1.0, row[name] * chances)) for name in ("p", "p_equivalence")
    }  # fmt: skip


def _points_table(rows: list[dict[str, Any]], notes: list[str]) -> Table:
    columns = [
        *plain_columns(*_GROUP_COLUMNS), _LEAST, *plain_columns(("variant", "Method"), ("learning_rate", "Rate"), ("n_rates", "Rates tried"), ("n_seeds", "Seeds")),
        Column(name="accuracy", label="Validation accuracy", unit="%", digits=2),
        Column(name="test_accuracy", label="Test accuracy", unit="%", digits=2),
        Column(name="retention_pct", label="Retention", unit="%", digits=1, sd="sd"),
        Column(name="low", label="Low", unit="%", digits=1), Column(name="high", label="High", unit="%", digits=1),
        Column(name="images_seen", label="Training images seen", digits=0),
        *plain_columns(("method", "Statistic"), ("reason", "No interval"), ("note", "Note")),
    ]  # fmt: skip
    notes = [*notes, "Only rates that were run; nothing is interpolated. Intervals are over seeds."]
    if not rows:
        notes.append("No method has both an accuracy and a retention.")
    return filled_table(
        "operating_points",
        "Operating points: best validation, and best retention with enough accuracy",
        columns,
        rows,
        notes,
    )


def _differences_table(rows: list[dict[str, Any]], settings: AnalysisSettings, notes: list[str]) -> Table:
    columns = [
        *plain_columns(*_GROUP_COLUMNS), _LEAST,
        *plain_columns(("first", "First"), ("first_rate", "Its rate"), ("second", "Second"), ("second_rate", "Its rate "), ("measure", "Measure"), ("n_seeds", "Seeds")),
        *difference_columns(),
        *plain_columns(("chances", "Settings to choose from"), ("p", "p"), ("p_holm", "p, Holm"), ("family_size", "Family"), ("p_equivalence", "p of equivalence, Holm"), ("verdict", "Verdict"), ("method", "Statistic"), ("reason", "Note")),
    ]  # fmt: skip
    if rows:
        frame = pd.DataFrame(rows)
        asked = frame.assign(contrast=frame["rule"], measure=frame["measure"] + frame["transfer_set"])
        frame = correct(asked, settings).assign(measure=frame["measure"])
        rows = [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]
    else:
        notes = [*notes, "No two methods of one dataset have both an accuracy and a retention."]
    notes = [
        *notes,
        "First - second, seed by seed; both saw the same number of training images in batches of one size. Best retention: at the accuracy that both reach; interval and p are widened (Bonferroni) for the settings to choose from.",
    ]
    return filled_table(
        "operating_differences", "Differences between methods, each at its own best setting", columns, rows, notes
    )


def on_front(accuracy: Floats, kept: Floats) -> Floats:
    """1.0 where no other point is at least as good in both and better in one; O(n log n)."""
    order = np.lexsort((-kept, -accuracy))
    result = np.zeros(len(accuracy))
    best, best_accuracy = -np.inf, np.nan
    for place in order:
        if kept[place] > best or (kept[place] == best and accuracy[place] == best_accuracy):
            result[place] = 1.0
            best, best_accuracy = kept[place], accuracy[place]
    return result


def pareto_table(prepared: Prepared) -> Table:
    """Configurations by mean test accuracy and mean retention, and which of them no other one dominates."""
    frame = aggregate(prepared.adapted, prepared.measures, IDENTITY)
    columns = plain_columns(
        ("transfer_set", "Transfer set"),
        ("model_name", "Model"),
        ("selection_name", "Selection"),
        ("dataset", "Dataset"),
        ("configuration", "Configuration"),
        ("variant", "Method"),
        ("learning_rate", "Rate"),
        ("n_runs", "Runs"),
        ("n_seeds", "Seeds"),
    )
    columns += [
        Column(name="accuracy", label="Accuracy", unit="%", digits=2, scale=100.0, sd="accuracy_sd"),
        Column(name="retention_pct", label="Retention", unit="%", digits=1, sd="retention_pct_sd"),
        Column(name="entropy_change_pct", label="Entropy change", unit="%", digits=2, signed=True),
        Column(name="entropy_last_layer_change_pct", label="Last block", unit="%", digits=2, signed=True),
        *plain_columns(("pareto", "On the front"), ("note", "Note")),
    ]
    notes: list[str] = []
    parts: list[pd.DataFrame] = []
    accuracy = accuracy_column(frame, "test_accuracy", "best_val_accuracy")
    if accuracy is None:
        notes.append("No accuracy is given.")
    elif accuracy == "best_val_accuracy":
        notes.append("No test accuracy is given: the front is drawn with validation accuracy.")
    for name in prepared.transfer if accuracy else []:
        column = retention(name).name
        if column not in frame.columns:
            continue
        known = frame[frame[accuracy].notna() & frame[column].notna()]
        for _, group in known.groupby(["model_name", "selection_name", "dataset"], sort=True):
            part = group.assign(
                transfer_set=name,
                accuracy=group[accuracy],
                accuracy_sd=group[f"{accuracy}_sd"],
                retention_pct=group[column],
                retention_pct_sd=group[f"{column}_sd"],
            )
            # Means of equal numbers may differ by rounding; such points are equal.
            front = on_front(
                np.round(part["accuracy"].to_numpy(float), 12),
                np.round(part["retention_pct"].to_numpy(float), 10),
            )
            parts.append(
                part.assign(pareto=front > 0).sort_values(["accuracy", "retention_pct"], ascending=False, kind="stable")
            )
    if not parts:
        notes.append("No configuration has both an accuracy and a retention.")
        return Table(name="pareto", title="Accuracy and retention", columns=columns, rows=[], notes=notes)
    whole = pd.concat(parts, ignore_index=True)
    for extra in ("entropy_change_pct", "entropy_last_layer_change_pct"):
        if extra not in whole.columns:
            whole[extra] = np.nan
    notes.append("Configuration means; the front ignores their uncertainty.")
    notes += single_seed_notes(whole)
    return Table(
        name="pareto",
        title="Accuracy and retention",
        columns=columns,
        rows=records(whole[cells_of(columns)]),
        notes=notes,
    )
