"""What happens during training: evaluations in order, first epoch, onset of collapse, convergence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from attndrift.analysis.configurations import Prepared
from attndrift.analysis.numbers import Floats
from attndrift.analysis.result import Table
from attndrift.analysis.settings import AnalysisSettings
from attndrift.analysis.summary import plain_columns, records, seed_note
from attndrift.methods.registry import PRETRAINED

EPOCH_SLACK = 1e-6


@dataclass
class History:
    """Evaluations of the analysed runs, ordered by run (a row number of ``prepared.runs``) and step."""

    frame: pd.DataFrame
    order: NDArray[np.intp]
    run: NDArray[np.intp]
    n_runs: int

    def __len__(self) -> int:
        return len(self.order)

    def values(self, column: str) -> Floats:
        """One column, ordered; a copy, so that the whole table is never copied."""
        return self.frame[column].to_numpy(dtype=float)[self.order]

    def first(self, mask: NDArray[np.bool_]) -> NDArray[np.intp]:
        """Row of the first evaluation of each run where ``mask`` holds; -1 where it never does."""
        result = np.full(self.n_runs, -1, dtype=np.intp)
        rows = np.flatnonzero(mask)
        codes, where = np.unique(self.run[rows], return_index=True)
        result[codes] = rows[where]
        return result

    def last(self, mask: NDArray[np.bool_]) -> NDArray[np.intp]:
        """Row of the last evaluation of each run where ``mask`` holds; -1 where it never does."""
        result = np.full(self.n_runs, -1, dtype=np.intp)
        rows = np.flatnonzero(mask)
        result[self.run[rows]] = rows
        return result

    def take(self, column: str, rows: NDArray[np.intp]) -> Floats:
        """Values of ``column`` at ``rows``; NaN where a row is -1."""
        values = self.values(column)
        if not len(values):
            return np.full(len(rows), np.nan)
        return np.where(rows >= 0, values[rows], np.nan)


def order_history(prepared: Prepared, history: pd.DataFrame) -> History:
    """Order ``history`` by the rows of ``prepared.runs`` and by step; rows of other runs are left out."""
    position = pd.Index(prepared.runs["run_id"].astype(object))
    codes, names = pd.factorize(history["run_id"])
    of_name = position.get_indexer(pd.Index(names).astype(object))
    run = of_name[codes] if len(codes) else np.zeros(0, dtype=np.intp)
    step = history["step"].to_numpy(dtype=np.int64)
    rows = np.lexsort((step, run))
    rows = rows[run[rows] >= 0]
    return History(history, rows, run[rows].astype(np.intp), len(prepared.runs))


def epochs_from_steps(history: History, prepared: Prepared) -> Floats:
    """Epochs of the evaluations; where they are null, the step's share of the last step times planned epochs."""
    epoch = history.values("epoch").copy()
    missing = ~np.isfinite(epoch)
    if missing.any():
        step = history.values("step")
        last = np.zeros(history.n_runs)
        np.maximum.at(last, history.run, step)
        planned = prepared.runs["epochs"].to_numpy(dtype=float)
        with np.errstate(divide="ignore", invalid="ignore"):
            epoch[missing] = (step / last[history.run] * planned[history.run])[missing]
    return epoch


def first_epoch_rows(history: History, epoch: Floats) -> NDArray[np.intp]:
    """The last evaluation within the first epoch, after the first step; where there is none, the first after it."""
    step = history.values("step")
    inside = history.last((step > 0) & (epoch <= 1 + EPOCH_SLACK))
    later = history.first((step > 0) & np.isfinite(epoch) & (epoch <= 1.5 + EPOCH_SLACK))
    return np.where(inside >= 0, inside, later)


@dataclass
class _Dynamics:
    """The row in the history, -1 where there is none, of what is told of each run, and its accuracies."""

    tracked: NDArray[np.intp]
    onset: NDArray[np.intp]
    validated: NDArray[np.intp]
    near_best: NDArray[np.intp]
    near_final: NDArray[np.intp]
    best: Floats
    final: Floats


def _find_dynamics(history: History, settings: AnalysisSettings) -> _Dynamics:
    step, entropy = history.values("step"), history.values("entropy_change_pct")
    accuracy = history.values("val_accuracy")
    measured = np.isfinite(accuracy) & (step > 0)
    validated = history.last(measured)
    best = np.full(history.n_runs, -np.inf)
    np.maximum.at(best, history.run[measured], accuracy[measured])
    final = history.take("val_accuracy", validated)

    def near(reference: Floats) -> NDArray[np.intp]:
        # Accuracies are multiples of 1/n: the margin is meant to include its own end.
        target = reference[history.run] - settings.convergence_points / 100 - 1e-9 if len(step) else accuracy
        return history.first(measured & (accuracy >= target))

    return _Dynamics(
        tracked=history.last(np.isfinite(entropy) & (step > 0)),
        onset=history.first((entropy <= settings.collapse_onset_pct) & (step > 0)),
        validated=validated,
        near_best=near(best),
        near_final=near(final),
        best=np.where(np.isfinite(best), best, np.nan),
        final=final,
    )


def _dynamics_frame(
    prepared: Prepared, history: History, epoch: Floats, found: _Dynamics, settings: AnalysisSettings
) -> pd.DataFrame:
    runs = prepared.runs
    frame = pd.DataFrame(
        {
            "run_id": runs["run_id"].astype(object),
            "configuration": runs["configuration"],
            "dataset": runs["dataset"].astype(object),
            "variant": runs["variant"],
            "learning_rate": runs["learning_rate"],
            "seed": runs["seed"],
            "replicate": runs["replicate"],
            "collapsed": pd.array(np.where(found.tracked >= 0, found.onset >= 0, False), dtype="boolean"),
            "onset_step": history.take("step", found.onset),
            "onset_epoch": _take(epoch, found.onset),
            "best_val_accuracy": found.best,
            "final_val_accuracy": found.final,
            "converged_step_best": history.take("step", found.near_best),
            "converged_epoch_best": _take(epoch, found.near_best),
            "converged_step_final": history.take("step", found.near_final),
            "converged_epoch_final": _take(epoch, found.near_final),
        }
    )
    frame.loc[found.tracked < 0, "collapsed"] = pd.NA
    frame["reason"] = _reasons(found.tracked, found.onset, found.validated, settings)
    return frame


def dynamics_tables(
    prepared: Prepared, history: History, epoch: Floats, settings: AnalysisSettings, notes: list[str]
) -> list[Table]:
    """Onset of collapse and convergence: ``dynamics`` (a row a configuration) and ``dynamics_runs`` (a row a run)."""
    found = _find_dynamics(history, settings)
    adapted = (prepared.runs["method"] != PRETRAINED).to_numpy()
    frame = _dynamics_frame(prepared, history, epoch, found, settings)[adapted]
    table_notes: list[str] = []
    if not (found.tracked[adapted] >= 0).any():
        table_notes.append("The history holds no entropy change after step 0: the onset of collapse is unknown.")
    if not (found.validated[adapted] >= 0).any():
        table_notes.append("The history holds no validation accuracy: convergence is unknown.")
    notes += table_notes
    table_notes.append(
        f"Collapse begins at the first evaluation with an entropy change of {settings.collapse_onset_pct:g}% or "
        f"lower; converged is the first evaluation within {settings.convergence_points:g} points of the best (final) "
        "validation accuracy. Both are resolved no finer than the evaluations."
    )
    per_run = plain_columns(
        ("run_id", "Run"),
        ("configuration", "Configuration"),
        ("dataset", "Dataset"),
        ("variant", "Method"),
        ("learning_rate", "Rate"),
        ("seed", "Seed"),
        ("collapsed", "Collapsed"),
        ("onset_step", "Onset, step"),
        ("onset_epoch", "Onset, epoch"),
        ("best_val_accuracy", "Best validation accuracy"),
        ("final_val_accuracy", "Last validation accuracy"),
        ("converged_step_best", "Near best, step"),
        ("converged_epoch_best", "Near best, epoch"),
        ("converged_step_final", "Near last, step"),
        ("converged_epoch_final", "Near last, epoch"),
        ("reason", "Note"),
    )
    return [
        _per_configuration(frame, table_notes),
        Table(
            name="dynamics_runs",
            title="Onset of collapse and convergence, run by run",
            columns=per_run,
            rows=records(frame[[c.name for c in per_run]]),
            notes=table_notes,
        ),
    ]


def _take(values: Floats, rows: NDArray[np.intp]) -> Floats:
    return np.where(rows >= 0, values[rows], np.nan) if len(values) else np.full(len(rows), np.nan)


def _reasons(
    tracked: NDArray[np.intp],
    onset: NDArray[np.intp],
    validated: NDArray[np.intp],
    settings: AnalysisSettings,
) -> list[str]:
    result = []
    for has_entropy, has_onset, has_validation in zip(tracked >= 0, onset >= 0, validated >= 0, strict=True):
        parts = []
        if not has_entropy:
            parts.append("no entropy in the history")
        elif not has_onset:
            parts.append(f"entropy change never at {settings.collapse_onset_pct:g}%")
        if not has_validation:
            parts.append("no validation accuracy in the history")
        result.append("; ".join(parts))
    return result


def _per_configuration(frame: pd.DataFrame, notes: list[str]) -> Table:
    columns = plain_columns(
        ("configuration", "Configuration"),
        ("dataset", "Dataset"),
        ("variant", "Method"),
        ("learning_rate", "Rate"),
        ("n_runs", "Runs"),
        ("n_seeds", "Seeds"),
        ("n_collapsed", "Collapsed runs"),
        ("median_onset_step", "Median onset, step"),
        ("median_onset_epoch", "Median onset, epoch"),
        ("median_converged_epoch_best", "Median epoch near best"),
        ("median_converged_epoch_final", "Median epoch near last"),
        ("note", "Note"),
    )
    groups = frame.groupby("configuration", sort=False)
    medians = groups[["onset_step", "onset_epoch", "converged_epoch_best", "converged_epoch_final"]].median()
    medians.columns = pd.Index([f"median_{name}" for name in medians.columns])
    whole = pd.concat(
        [
            groups[["dataset", "variant", "learning_rate"]].first(),
            pd.DataFrame({"n_runs": groups.size(), "n_seeds": groups["replicate"].nunique()}),
            groups["collapsed"].sum(min_count=1).rename("n_collapsed"),
            medians,
        ],
        axis=1,
    ).reset_index()
    whole["note"] = whole["n_seeds"].map(seed_note)
    notes = [*notes, "The median onset is over the collapsed runs alone."]
    return Table(
        name="dynamics",
        title="Onset of collapse and convergence",
        columns=columns,
        rows=records(whole[[c.name for c in columns]]),
        notes=notes,
    )
