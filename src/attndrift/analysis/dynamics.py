"""What happens during training: evaluations in order, first epoch, onset of collapse, convergence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from attndrift.analysis.configurations import Prepared
from attndrift.analysis.means import seed_counts
from attndrift.analysis.numbers import Floats
from attndrift.analysis.result import Table
from attndrift.analysis.settings import AnalysisSettings
from attndrift.analysis.summary import plain_columns, records, seed_note
from attndrift.methods.registry import PRETRAINED
from attndrift.results.means import SEEDS, seeds_behind

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


_RUNS = plain_columns(
    ("run_id", "Run"), ("configuration", "Configuration"), ("dataset", "Dataset"), ("variant", "Method"),
    ("learning_rate", "Rate"), ("seed", "Seed"), ("collapsed", "Collapsed"), ("onset_step", "Onset, step"),
    ("onset_epoch", "Onset, epoch"), ("best_val_accuracy", "Best validation accuracy"),
    ("final_val_accuracy", "Last validation accuracy"), ("converged_step_best", "Near best, step"),
    ("converged_epoch_best", "Near best, epoch"), ("converged_step_final", "Near last, step"),
    ("converged_epoch_final", "Near last, epoch"), ("reason", "Note"),
)  # fmt: skip
_CONFIGURATIONS = plain_columns(
    ("configuration", "Configuration"), ("dataset", "Dataset"), ("variant", "Method"), ("learning_rate", "Rate"),
    ("n_runs", "Runs"), ("n_seeds", "Seeds"), ("n_collapsed", "Collapsed runs"), ("median_onset_step", "Median onset, step"),
    ("median_onset_epoch", "Median onset, epoch"), ("median_converged_epoch_best", "Median epoch near best"),
    ("median_converged_epoch_final", "Median epoch near last"), ("note", "Note"),
)  # fmt: skip


def dynamics_tables(
    prepared: Prepared, history: History, epoch: Floats, settings: AnalysisSettings, notes: list[str]
) -> list[Table]:
    """Onset of collapse and convergence: ``dynamics`` (a row a configuration) and ``dynamics_runs`` (a row a run)."""
    whole = _dynamics(prepared, history, epoch, settings)
    frame = whole[(prepared.runs["method"] != PRETRAINED).to_numpy()]
    said: list[str] = []
    if frame["collapsed"].isna().all():
        said.append("The history holds no entropy change after step 0: the onset of collapse is unknown.")
    if frame["final_val_accuracy"].isna().all():
        said.append("The history holds no validation accuracy: convergence is unknown.")
    notes += said
    said.append(
        f"Collapse begins at the first evaluation with an entropy change of {settings.collapse_onset_pct:g}% or "
        f"lower; converged is the first evaluation within {settings.convergence_points:g} points of the best (final) "
        "validation accuracy. Both are resolved no finer than the evaluations."
    )
    title = "Onset of collapse and convergence"
    runs = records(frame[[column.name for column in _RUNS]])
    medians = [*said, "The median onset is over the collapsed runs alone."]
    return [
        Table(name="dynamics", title=title, columns=_CONFIGURATIONS, rows=_per_configuration(frame), notes=medians),
        Table(name="dynamics_runs", title=f"{title}, run by run", columns=_RUNS, rows=runs, notes=said),
    ]


def _dynamics(prepared: Prepared, history: History, epoch: Floats, settings: AnalysisSettings) -> pd.DataFrame:
    """When each run collapsed and converged; nulls with a reason."""
    step, entropy = history.values("step"), history.values("entropy_change_pct")
    accuracy = history.values("val_accuracy")
    measured = np.isfinite(accuracy) & (step > 0)
    best = np.full(history.n_runs, -np.inf)
    np.maximum.at(best, history.run[measured], accuracy[measured])
    final = history.take("val_accuracy", history.last(measured))
    tracked = history.last(np.isfinite(entropy) & (step > 0)) >= 0
    onset = history.first((entropy <= settings.collapse_onset_pct) & (step > 0))
    frame = prepared.runs[
        ["run_id", "configuration", "dataset", "variant", "learning_rate", "seed", "replicate"]
    ].copy()
    frame[SEEDS] = seeds_behind(prepared.runs)
    frame["collapsed"] = pd.array(onset >= 0, dtype="boolean")
    frame.loc[~tracked, "collapsed"] = pd.NA
    frame["best_val_accuracy"], frame["final_val_accuracy"] = np.where(np.isfinite(best), best, np.nan), final
    places = {"onset": onset}
    for name, reference in (("best", best), ("final", final)):
        # Accuracies are multiples of 1/n: the margin is meant to include its own end.
        near = accuracy >= reference[history.run] - settings.convergence_points / 100 - 1e-9
        places[f"converged_{name}"] = history.first(measured & near)
    for name, rows in places.items():
        kind, _, reference_name = name.partition("_")
        end = f"_{reference_name}" if reference_name else ""
        frame[f"{kind}_step{end}"] = history.take("step", rows)
        frame[f"{kind}_epoch{end}"] = np.where(rows >= 0, epoch[rows], np.nan) if len(epoch) else np.nan
    never = np.where(onset >= 0, "", f"entropy change never at {settings.collapse_onset_pct:g}%")
    reasons = np.where(tracked, never, "no entropy in the history").astype(object)
    missing = np.where(np.isfinite(final), "", "no validation accuracy in the history").astype(object)
    frame["reason"] = ["; ".join(filter(None, pair)) for pair in zip(reasons, missing, strict=True)]
    return frame


def _per_configuration(frame: pd.DataFrame) -> list[dict[str, object]]:
    groups = frame.groupby("configuration", sort=False)
    medians = groups[["onset_step", "onset_epoch", "converged_epoch_best", "converged_epoch_final"]].median()
    whole = pd.concat(
        [
            groups[["dataset", "variant", "learning_rate"]].first(),
            pd.DataFrame({"n_runs": groups.size(), "n_seeds": seed_counts(frame)}),
            groups["collapsed"].sum(min_count=1).rename("n_collapsed"),
            medians.add_prefix("median_"),
        ],
        axis=1,
    ).reset_index()
    whole["note"] = whole["n_seeds"].map(seed_note)
    return records(whole[[column.name for column in _CONFIGURATIONS]])
