"""Interpolation sweeps: theta = (1 - alpha) theta0 + alpha theta1 (Wortsman et al. 2022).

Which alpha keeps a wanted retention is chosen by rules that see no label of the transfer set; what
each choice really retains is read off the measured sweep.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from attndrift.analysis.configurations import Prepared
from attndrift.analysis.held_out import falling_curve
from attndrift.analysis.numbers import Floats, number
from attndrift.analysis.result import Table
from attndrift.analysis.settings import AnalysisSettings
from attndrift.analysis.summary import plain_columns, records
from attndrift.results.columns import Column
from attndrift.results.measures import MEASURES, column_stem, set_and_measure
from attndrift.results.tables import transfer_outcomes

_CALIBRATION = 4


def interpolation_tables(
    prepared: Prepared, interpolation: pd.DataFrame, settings: AnalysisSettings, notes: list[str]
) -> list[Table]:
    """The sweeps with their retention, and the choices of alpha with how well they did."""
    names = transfer_outcomes(interpolation)
    frame = interpolation[interpolation["run_id"].isin(prepared.every["run_id"])]
    frame = frame.sort_values(["run_id", "alpha"], kind="stable").reset_index(drop=True)
    frame = frame.merge(
        prepared.every[["run_id", "configuration", "variant", "dataset", "learning_rate", "seed"]],
        on="run_id",
        how="left",
    )
    for name in names:
        frame[f"{column_stem(name)}_retention_pct"] = _retention(frame, prepared, name, notes)
    transfer = [column_stem(name) for name in names]
    columns = plain_columns(
        ("run_id", "Run"), ("configuration", "Configuration"), ("alpha", "alpha"), ("dataset", "Dataset"), ("variant", "Method")
    )  # fmt: skip
    columns.append(_share("test_accuracy", "Test accuracy"))
    columns += [_share(f"{stem}_accuracy", _label(n)) for n, stem in zip(names, transfer, strict=True)]
    columns += [
        _share(f"{stem}_agreement", f"{n}: pretrained prediction kept", 1)
        for n, stem in zip(names, transfer, strict=True) if frame[f"{stem}_agreement"].notna().any()
    ]  # fmt: skip
    columns += [
        Column(name=f"{stem}_retention_pct", label=f"{n} retention", unit="%", digits=1)
        for n, stem in zip(names, transfer, strict=True)
    ]
    columns += [
        Column(name="entropy_change_pct", label="Entropy change", unit="%", digits=2, signed=True),
        Column(name="cka_mean", label="CKA, mean over blocks", digits=3),
        Column(name="embedding_drift", label="Embedding drift", digits=3),
        Column(name="weight_drift", label="Weight drift", digits=4),
    ]
    empty = [] if len(frame) else ["No interpolation sweep was made; `attndrift interpolate RUN` makes one."]
    sweeps = Table(
        name="interpolation",
        title="Interpolation between pretrained and adapted weights",
        columns=columns,
        rows=records(frame[[c.name for c in columns]]),
        notes=empty,
    )
    return [sweeps, _choices(prepared, frame, names, settings, list(empty))]


def _label(outcome: str) -> str:
    name, measure = set_and_measure(outcome)
    return f"{name} {MEASURES[measure].label}"


def _share(name: str, label: str, digits: int = 2) -> Column:
    """A column of shares 0..1, printed in percent."""
    return Column(name=name, label=label, unit="%", digits=digits, scale=100.0)


def _retention(frame: pd.DataFrame, prepared: Prepared, name: str, notes: list[str]) -> Floats:
    """100 accuracy / pretrained accuracy; the pretrained one from the run, else from alpha = 0."""
    stem = column_stem(name)
    accuracy = frame[f"{stem}_accuracy"].to_numpy(dtype=float)
    column, kept = f"{stem}_pretrained", f"{stem}_retention_pct"
    start = frame[frame["alpha"] == 0].set_index("run_id")[f"{stem}_accuracy"]
    base = frame["run_id"].map(start).to_numpy(dtype=float)
    if column in prepared.every.columns:
        runs = prepared.every.set_index("run_id")
        given = frame["run_id"].map(runs[column]).to_numpy(dtype=float)
        base = np.where(np.isfinite(base), base, given)
        # A run with a pretrained accuracy but no retention was judged too close to chance.
        withheld = (
            frame["run_id"].map(runs[column].notna() & runs[kept].isna()).to_numpy(dtype=bool)
            if kept in runs.columns
            else np.zeros(len(frame), dtype=bool)
        )
        if withheld.any():
            notes.append(f"Sweeps of runs whose retention on `{name}` is null have none along alpha either.")
        base = np.where(withheld, np.nan, base)
    with np.errstate(divide="ignore", invalid="ignore"):
        result = 100.0 * accuracy / base
    return np.where(np.isfinite(result), result, np.nan)


@dataclass(frozen=True)
class _Rule:
    name: str
    column: str
    meaning: str
    calibrated: bool


RULES = (
    _Rule("agreement", "{}_agreement",
          "largest alpha at which at least the wanted share of the transfer images, without their labels, keeps the pretrained "
          "model's prediction; retention is no lower than that share where right predictions change no more often than wrong ones",
          False),
    _Rule("cka", "cka_mean", "largest alpha with a mean CKA of at least the wanted share", False),
    _Rule("embedding_drift", "embedding_drift", "largest alpha with an embedding drift of at most 1 - the wanted share", False),
    _Rule("calibrated embedding_drift", "embedding_drift",
          "largest alpha whose embedding drift, read through the other runs' (drift, retention) pairs, reaches it", True),
    _Rule("calibrated cka", "cka_mean",
          "largest alpha whose mean CKA, read through the other runs' (CKA, retention) pairs, reaches it", True),
)  # fmt: skip


def largest_alpha(alpha: Floats, keeps: Floats, wanted: float) -> float | None:
    """The largest alpha such that ``keeps``, linear between measured alphas, is at least ``wanted`` all the way to it.

    None where even the smallest measured alpha does not keep it.
    """
    known = np.isfinite(keeps)
    alpha, keeps = alpha[known], keeps[known]
    if not len(alpha) or keeps[0] < wanted:
        return None
    below = np.flatnonzero(keeps < wanted)
    if not len(below):
        return float(alpha[-1])
    i = int(below[0])
    share = (keeps[i - 1] - wanted) / (keeps[i - 1] - keeps[i])
    return float(alpha[i - 1] + share * (alpha[i] - alpha[i - 1]))


def _choices(
    prepared: Prepared, frame: pd.DataFrame, names: list[str], settings: AnalysisSettings, notes: list[str]
) -> Table:
    columns = plain_columns(("run_id", "Run"), ("configuration", "Configuration"), ("transfer_set", "Transfer set"))
    columns += [
        Column(name="wanted_pct", label="Wanted retention", unit="%", digits=0),
        *plain_columns(("rule", "Rule")),
        Column(name="alpha", label="alpha", digits=3),
        Column(name="retention_pct", label="Retention there", unit="%", digits=1),
        Column(name="error_points", label="Retention - wanted", unit="points", digits=1, signed=True),
        _share("test_accuracy", "Test accuracy there"),
        Column(name="best_alpha", label="Best alpha (labels)", digits=3),
        _share("best_test_accuracy", "Test accuracy at it"),
        *plain_columns(("retained", "Reached it"), ("reason", "Note")),
    ]
    rows: list[dict[str, object]] = []
    for run_id, sweep in frame.groupby("run_id", sort=True):
        alpha = sweep["alpha"].to_numpy(dtype=float)
        accuracy = sweep["test_accuracy"].to_numpy(dtype=float)
        for name in names:
            kept = sweep[f"{column_stem(name)}_retention_pct"].to_numpy(dtype=float)
            if len(sweep) < 2 or not np.isfinite(kept).any():
                continue
            for wanted in settings.wanted_retentions_pct:
                best = largest_alpha(alpha, kept, wanted)
                for rule in RULES:
                    at, reason = _apply(rule, str(run_id), sweep, prepared, name, wanted)
                    there = _between(alpha, kept, at)
                    rows.append(
                        {
                            "run_id": str(run_id),
                            "configuration": str(sweep["configuration"].iloc[0]),
                            "transfer_set": name,
                            "wanted_pct": wanted,
                            "rule": rule.name,
                            "alpha": at,
                            "retention_pct": there,
                            "error_points": None if there is None else there - wanted,
                            "test_accuracy": _between(alpha, accuracy, at),
                            "best_alpha": best,
                            "best_test_accuracy": _between(alpha, accuracy, best),
                            "retained": None if there is None else there >= wanted - 1e-9,
                            "reason": reason,
                        }
                    )
    notes += [f"Rule `{rule.name}`: {rule.meaning}." for rule in RULES]
    notes.append(
        "No rule sees a label of the transfer set for the run in question; the calibrated ones use the measured "
        "retention "
        "of other configurations. Values between measured alphas are linear, none lies beyond them."
    )
    return Table(
        name="interpolation_choice",
        title="The alpha chosen for a wanted retention",
        columns=columns,
        rows=rows,
        notes=notes,
    )


def _between(alpha: Floats, values: Floats, at: float | None) -> float | None:
    known = np.isfinite(values)
    if at is None or not known.any() or not alpha[known][0] <= at <= alpha[known][-1]:
        return None
    return number(np.interp(at, alpha[known], values[known]))


def _apply(
    rule: _Rule, run_id: str, sweep: pd.DataFrame, prepared: Prepared, transfer_set: str, wanted: float
) -> tuple[float | None, str]:
    alpha = sweep["alpha"].to_numpy(dtype=float)
    column = rule.column.format(column_stem(transfer_set))
    signal = sweep[column].to_numpy(dtype=float)
    if not np.isfinite(signal).any():
        return None, f"`{column}` was not measured along alpha"
    if not rule.calibrated:
        keeps = 100 * (1 - signal) if rule.column == "embedding_drift" else 100 * signal
    else:
        curve = _calibration(rule.column, run_id, sweep, prepared, transfer_set)
        if isinstance(curve, str):
            return None, curve
        keeps = np.interp(signal if rule.column != "cka_mean" else -signal, *curve)
        keeps = np.where(np.isfinite(signal), keeps, np.nan)
    at = largest_alpha(alpha, keeps, wanted)
    return (at, "") if at is not None else (None, "the rule allows no measured alpha")


def _calibration(
    column: str, run_id: str, sweep: pd.DataFrame, prepared: Prepared, transfer_set: str
) -> tuple[Floats, Floats] | str:
    """A falling curve through the other configurations' (drift, retention), isotonic, starting at (none, 100)."""
    kept = f"{column_stem(transfer_set)}_retention_pct"
    runs = prepared.adapted
    if kept not in runs.columns:
        return f"no other run has a retention on {transfer_set}"
    own = prepared.every.loc[prepared.every["run_id"] == run_id]
    other = runs[
        (runs["configuration"] != sweep["configuration"].iloc[0]) & (runs["model_name"] == own["model_name"].iloc[0])
    ]
    other = other[other[column].notna() & other[kept].notna()]
    means = other.groupby("configuration", sort=True)[[column, kept]].mean()
    if len(means) < _CALIBRATION:
        return f"{len(means)} other configurations have both: the calibration needs {_CALIBRATION}"
    x = means[column].to_numpy(dtype=float)
    start, x = (-1.0, -x) if column == "cka_mean" else (0.0, x)
    return falling_curve(np.r_[start, x], np.r_[100.0, means[kept].to_numpy(dtype=float)])
