"""Which value of a signal warned of damage, and whether it would have warned of a configuration it was not taken from.

A configuration is damaged when its mean final retention is below a limit. Thresholds are in the signal's own unit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from attndrift.analysis.configurations import Prepared
from attndrift.analysis.dynamics import History
from attndrift.analysis.held_out import best_threshold, confusion, folds_of, held_out_warnings, warning_p
from attndrift.analysis.numbers import Floats, number
from attndrift.analysis.rank_intervals import area_limits, roc_area, why_no_area
from attndrift.analysis.result import Table
from attndrift.analysis.settings import AnalysisSettings
from attndrift.analysis.signal_sources import MOMENTS, SignalSource, signals
from attndrift.analysis.signals import TARGET, Rows, Target, columns, conclude, find_targets, limits_row

WARNS = "warns held out"
MOST_STEPS = 12
"""Moments that :func:`calibrate` tries, at most."""

_WARNING = (
    "signal", "label", "measured", "n_configurations", "n_seeds", "n_damaged", "auc", "low", "high", "unit", "method", "reason",
    "direction", "threshold", "threshold_unit", "sensitivity", "specificity", "held_out_sensitivity",
    "held_out_specificity", "held_out_caught", "held_out_false_alarms", "p", "p_holm", "family_size", "other_threshold",
    "other_sensitivity", "other_specificity", "verdict",
)  # fmt: skip


def early_warning(
    prepared: Prepared, values: dict[str, pd.DataFrame], settings: AnalysisSettings, notes: list[str]
) -> Table:
    """``early_warning``: a row a target, moment and signal. ``values`` as of ``signal_values``."""
    targets = find_targets(prepared, settings, [])
    rows: Rows = []
    for when in MOMENTS:
        for source in signals():
            if source.name in values[when]:
                own = values[when][source.name].to_numpy()
                rows += _rows(targets, source, own, settings, {"when": when})
    for family in _families(rows, *TARGET, "measured"):
        conclude(family, settings, lambda row: WARNS)
    limit = f"{settings.damaged_below_pct:g}%"
    said = [] if rows else [f"No target has configurations on both sides of {limit} retention: nothing to warn of."]
    notes += said
    said += [
        f"Damaged: a mean final retention below {limit}. Thresholds are where sensitivity + specificity is largest; held "
        "out: by the threshold of all other configurations (other: of the other datasets). p: the larger of Fisher's exact test of "
        "the held-out warnings and of Mann and Whitney's, one-sided; Holm within one target and moment, measured signals apart.",
        "Held-out shares have no interval: their configurations share what the thresholds were learned from.",
    ]
    return Table(
        name="early_warning", title=f"Which signal warns of less than {limit} retention",
        columns=columns(*TARGET, *_WARNING), rows=rows, notes=said,
    )  # fmt: skip


def calibrate(
    prepared: Prepared, history: History, settings: AnalysisSettings, *, below_pct: float | None = None
) -> Table:
    """Which value of which signal warned after how many steps: a row a target, signal and step, for alerts.

    The value of a run at a step is the worst one measured so far, after step 0: an alert with ``below`` and ``above`` of
    the row on ``metric`` has fired by that step exactly where it lies beyond the threshold. ``below_pct``: the retention
    (percent) that is to be warned of; by default that of the settings. All signals and steps of a target are one family
    of tests, because the best one is chosen from them (:func:`choose_alerts`). A target without both damaged and other
    configurations has no row.
    """
    if below_pct is not None:
        settings = settings.model_copy(update={"damaged_below_pct": below_pct})
    targets = find_targets(prepared, settings, [])
    rows: Rows = []
    steps = history.values("step")
    known = np.unique(steps[steps > 0])
    chosen = known[np.unique(np.linspace(0, len(known) - 1, MOST_STEPS).round().astype(int))] if len(known) else known
    for source in signals():
        if not source.measured or source.during not in history.frame.columns or source.during.startswith("monitor_"):
            continue
        for step in chosen:
            worst = _worst(history, source, float(step))
            rows += _rows(targets, source, worst, settings, {"when": f"step {step:g}", "step": int(step)})
    for row in rows:
        source = next(one for one in signals() if one.name == row["signal"])
        row |= {"metric": source.during, **_bounds(source, row["threshold"])}
    for family in _families(rows, *TARGET[:-1]):
        conclude(family, settings, lambda row: WARNS)
    limit = f"{settings.damaged_below_pct:g}%"
    return Table(
        name="calibration", title=f"Which value warned of less than {limit} retention, after how many steps",
        columns=columns(*TARGET, "step", "metric", "below", "above", *_WARNING), rows=rows,
        notes=[] if rows else [f"No target has configurations on both sides of {limit} retention and a history."],
    )  # fmt: skip


def choose_alerts(calibration: Table) -> Rows:
    """Of each target and signal the row to make an alert of: the best one held out, at the fewest steps of equal ones.

    Rows that do no better than chance held out are left out; the best signal of each target comes first. Only a row whose
    ``verdict`` is :data:`WARNS` has been shown to warn; the others are what these runs suggest.
    """
    best: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in sorted(calibration.rows, key=lambda row: row["step"]):
        key = (*(row[name] for name in TARGET[:-1]), row["signal"])
        if (
            row["threshold"] is not None
            and _quality(row) > 1
            and (key not in best or _quality(row) > _quality(best[key]) + 1e-9)
        ):
            best[key] = row
    return sorted(best.values(), key=lambda row: (*(row[name] for name in TARGET[:-1]), -_quality(row), row["step"]))


def _families(rows: Rows, *names: str) -> list[Rows]:
    found: dict[tuple[Any, ...], Rows] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in names), []).append(row)
    return list(found.values())


def _quality(row: dict[str, Any]) -> float:
    return float((row["held_out_sensitivity"] or 0.0) + (row["held_out_specificity"] or 0.0))


def _worst(history: History, source: SignalSource, step: float) -> Floats:
    """The worst value of each run up to ``step``, without step 0; NaN where none was measured."""
    steps, values = history.values("step"), history.values(source.during)
    score = -source.expected_sign * (np.abs(values) if source.absolute else values)
    counted = (steps > 0) & (steps <= step) & np.isfinite(score)
    result = np.full(history.n_runs, -np.inf)
    np.maximum.at(result, history.run[counted], score[counted])
    return np.where(np.isfinite(result), -source.expected_sign * result, np.nan)


def _bounds(source: SignalSource, threshold: float | None) -> dict[str, float | None]:
    """``below`` and ``above`` of an alert: one side of a signed signal, both of a size."""
    if threshold is None or source.absolute:
        return {"below": None if threshold is None else -threshold, "above": threshold}
    return {
        "below": threshold if source.expected_sign > 0 else None,
        "above": threshold if source.expected_sign < 0 else None,
    }


def _rows(
    targets: list[Target], source: SignalSource, runs: Floats, settings: AnalysisSettings, place: dict[str, Any]
) -> Rows:
    """One signal at one moment, a row a target that has both damaged and other configurations."""
    found: dict[int, tuple[Floats, np.ndarray]] = {}
    for index, target in enumerate(targets):
        means = target.means(runs)
        known = np.isfinite(means)
        found[index] = -source.expected_sign * means[known], target.kept[known] < settings.damaged_below_pct
    rows: Rows = []
    for index, target in enumerate(targets):
        score, damaged = found[index]
        if damaged.all() or not damaged.any() or len(score) < 3:
            continue
        others = [found[i] for i, other in enumerate(targets) if target.elsewhere(other)]
        row = _row(source, score, damaged, others)
        limits = area_limits(score, damaged, settings.level)
        row |= limits_row(*limits, len(score), "Newcombe or DeLong", why_no_area(score, damaged))
        fixed = target.strength(len(score), settings)
        rows.append({**target.identity, **place, "n_seeds": target.n_seeds, **row, "verdict": fixed})
    return rows


def _row(source: SignalSource, score: Floats, damaged: np.ndarray, others: list[Any]) -> dict[str, Any]:
    """Threshold and what it does: in sample, held out by configuration, and learned from other datasets."""
    sign = -source.expected_sign
    threshold = best_threshold(score, damaged)
    inside = confusion((score > threshold).astype(float), damaged)
    warned = held_out_warnings(score, damaged, folds_of(len(score)))
    held_out = confusion(warned, damaged)
    learned, classes = (np.concatenate([pair[i] for pair in others]) if others else np.zeros(0, bool) for i in (0, 1))
    other = best_threshold(learned, classes) if len(learned) else np.nan
    elsewhere = confusion((score > other).astype(float), damaged) if np.isfinite(other) else {}
    return {
        "signal": source.name, "label": source.label, "measured": source.measured,
        "n_configurations": len(score), "n_damaged": int(damaged.sum()), "auc": roc_area(score, damaged),
        "direction": "above" if sign > 0 else "below", "threshold": number(sign * threshold),
        "threshold_unit": source.unit, "sensitivity": inside["sensitivity"], "specificity": inside["specificity"],
        "held_out_sensitivity": held_out["sensitivity"], "held_out_specificity": held_out["specificity"],
        "held_out_caught": held_out["caught"], "held_out_false_alarms": held_out["false_alarms"], "p": warning_p(warned, score, damaged),
        "other_threshold": number(sign * other), "other_sensitivity": elsewhere.get("sensitivity"),
        "other_specificity": elsewhere.get("specificity"),
    }  # fmt: skip
