"""Columns and tables that follow from each other: what contradicts is named, with run, both values and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from attndrift.metrics.registry import structure_metrics
from attndrift.results.columns import metric_columns
from attndrift.results.tables import TableError, Tables, transfer_sets

_KEYS = {
    "losses": ["run_id", "loss"],
    "history": ["run_id", "step"],
    "layers": ["run_id", "step", "layer", "head", "metric"],
    "interpolation": ["run_id", "alpha"],
}


def check_keys(frame: pd.DataFrame, table: str, where: str) -> None:
    """Raise :class:`TableError` where two rows are of one run and step (and layer, head and metric)."""
    keys = [name for name in _KEYS.get(table, []) if name in frame.columns]
    if len(keys) < 2:
        return
    twice = frame.duplicated(keys)
    if twice.any():
        row = frame.loc[twice, keys].iloc[0]
        what = ", ".join(f"{name} {value}" for name, value in row.items() if not pd.isna(value))
        raise TableError(f"{where}: {int(twice.sum())} rows are there twice, first {what}; keep one of them")


def _resolution(values: pd.Series[Any]) -> float:
    """Half of the last digit that the values were rounded to."""
    numbers = values.dropna().to_numpy(dtype=float)
    for digits in range(9):
        if np.allclose(numbers, np.round(numbers, digits), rtol=0, atol=1e-10):
            return 0.5 * 10.0**-digits
    return 0.0


def check_derived(runs: pd.DataFrame, where: str) -> None:
    """Raise :class:`TableError` where a column contradicts those that it follows from, beyond their rounding."""
    for name in transfer_sets(runs):
        start = f"transfer_{name}_zero_shot"
        _compare(runs, where, f"{start}_retention_pct", f"{start}_accuracy", f"{start}_pretrained", of_change=False)
    for metric in structure_metrics():
        _compare(runs, where, f"{metric}_change_pct", f"{metric}_final", f"{metric}_baseline", of_change=True)
    for small, large in (("trainable_parameters", "total_parameters"), ("selected_epoch", "epochs")):
        if small in runs.columns and large in runs.columns:
            wrong = (pd.to_numeric(runs[small]) > pd.to_numeric(runs[large])).fillna(False).astype(bool)
            if wrong.any():
                row = runs.loc[wrong].iloc[0]
                raise TableError(
                    f"{where}: run `{row['run_id']}` has `{small}` {row[small]} above `{large}` {row[large]}"
                )


def check_series(frame: pd.DataFrame, axis: str, where: str) -> None:
    """As :func:`check_derived`, for tables with a row a step or alpha: changes are relative to the row at 0 of the run."""
    if axis not in frame.columns:
        return
    start = frame[pd.to_numeric(frame[axis], errors="coerce") == 0].drop_duplicates("run_id").set_index("run_id")
    pairs = [(f"{metric}_change_pct", metric, True) for metric in structure_metrics()]
    pairs.append(("monitor_zero_shot_retention_pct", "monitor_zero_shot_accuracy", False))
    for derived, value, of_change in pairs:
        if {derived, value} <= set(frame.columns):
            before = f"{value} at {axis} 0"
            base = frame["run_id"].map(start[value].astype("float64"))
            _compare(frame.assign(**{before: base}), where, derived, value, before, of_change=of_change)


def _compare(runs: pd.DataFrame, where: str, derived: str, final: str, base: str, *, of_change: bool) -> None:
    if not {derived, final, base} <= set(runs.columns):
        return
    given, after, before = (runs[name].astype("float64") for name in (derived, final, base))
    if given.isna().all():
        return
    safe = before.where(before > 0)
    expected = 100 * (after - before if of_change else after) / safe
    # What rounding of all three can change at most, and a little for another order of averaging.
    slack = 100 * (_resolution(after) / safe + _resolution(before) * after.abs() / safe**2) + _resolution(given)
    wrong = ((given - expected).abs() > 1.05 * slack + 0.5 + 0.02 * expected.abs()).fillna(False)
    if not wrong.any():
        return
    first = wrong.to_numpy().argmax()
    ratio = float((given[wrong] / expected[wrong]).median())
    unit = f"; it is a hundredth of it, so that --scale {derived}=100 may be meant" if abs(ratio - 0.01) < 0.002 else ""
    formula = f"100 x (`{final}` / `{base}`{' - 1' if of_change else ''})"
    raise TableError(
        f"{where}: in {int(wrong.sum())} of {len(runs)} rows `{derived}` contradicts {formula}: in row {first} it is "
        f"{given.iloc[first]:g}, and those give {expected.iloc[first]:.4g}{unit}. Correct it, or set one of them aside "
        f"(--rename {derived}=their_{derived})"
    )


def check_across(tables: Tables, sources: Mapping[str, str], hints: list[str]) -> None:
    """Compare ``runs`` with the tables beside it.

    Raises :class:`TableError` where a run contradicts its whole history; whatever may have another reason (a history
    that was cut short, other images) is said in ``hints``.
    """
    runs = tables.runs.set_index("run_id")
    said: Said = []
    if "history" in sources:
        said += _against_history(runs, tables.history)
    if "interpolation" in sources:
        for alpha, ends in ((0.0, ("pretrained", "baseline")), (1.0, ("accuracy", "final"))):
            rows = tables.interpolation[tables.interpolation["alpha"] == alpha].drop_duplicates("run_id")
            shared = ["test_accuracy", *(column.name for column in metric_columns("history"))] if alpha == 1 else []
            pairs = _ends(runs, rows, ends) + [(name, name) for name in shared if name in runs.columns]
            said += [
                (False, text)
                for one in pairs
                for text in _differing(runs, rows, *one, f"`interpolation` at alpha {alpha:g}")
            ]
    if "layers" in sources:
        said += [(False, text) for text in _against_layers(runs, tables.layers)]
    for definite, text in said:
        if definite:
            raise TableError(f"{sources['runs']}: {text}")
    hints += [text for _, text in said]
    hints += _two_baselines(tables.runs)


def _ends(runs: pd.DataFrame, rows: pd.DataFrame, ends: tuple[str, str]) -> list[tuple[str, str]]:
    """Columns of ``runs`` and of a table with a row a run that hold the same end: pretrained, or adapted."""
    pairs = [
        (f"transfer_{name}_zero_shot_{ends[0]}", f"transfer_{name}_zero_shot_accuracy") for name in transfer_sets(runs)
    ]
    pairs += [(f"{metric}_{ends[1]}", metric) for metric in structure_metrics()]
    return [(one, other) for one, other in pairs if one in runs.columns and other in rows.columns]


def _tolerance(one: pd.Series[Any], other: pd.Series[Any]) -> pd.Series[Any]:
    """What rounding, and another order of averaging, can change at most."""
    least = 0.1 if str(one.name).endswith("_pct") else 0.002
    return 1.05 * (_resolution(one) + _resolution(other)) + 0.005 * one.abs() + least


def _differing(runs: pd.DataFrame, rows: pd.DataFrame, ours: str, theirs: str, place: str) -> list[str]:
    """In words, where the column ``ours`` of ``runs`` is not the column ``theirs`` of ``rows``, which has a row a run."""
    if runs[ours].isna().all() or rows[theirs].isna().all():
        return []
    given = runs[ours].astype("float64").reindex(rows["run_id"]).reset_index(drop=True)
    other = rows[theirs].astype("float64").reset_index(drop=True)
    wrong = ((given - other).abs() > _tolerance(given, other)).fillna(False)
    if not wrong.any():
        return []
    first = int(wrong.to_numpy().argmax())
    return [
        _contradiction(
            int(wrong.sum()), rows["run_id"].iloc[first], ours, given[first], f"{place} has {other[first]:.4g}"
        )
    ]


def _contradiction(count: int, run: str, column: str, value: float, other: str) -> str:
    return (
        f"`{column}` of {count} runs contradicts another table: that of `{run}` is {value:.4g}, and {other}. Correct one, or set "
        f"one aside (--rename runs.{column}=their_{column})"
    )


Said = list[tuple[bool, str]]
"""Contradictions in words, and whether nothing but a wrong number can be the reason."""


def _against_history(runs: pd.DataFrame, history: pd.DataFrame) -> Said:
    start = history[history["step"] == 0].drop_duplicates("run_id")
    said: Said = [
        (True, text)
        for metric in structure_metrics()
        for text in _differing(runs, start, f"{metric}_baseline", metric, "`history` at step 0")
    ]
    later = history[history["step"] > 0]
    if later.empty:
        return said
    planned = runs["epochs"].astype("float64")
    reached = later["epoch"].astype("float64").groupby(later["run_id"]).max().reindex(runs.index)
    whole = reached >= planned - 1e-6
    return said + _best_of_history(runs, later, whole) + _end_of_history(runs, later, whole)


def _best_of_history(runs: pd.DataFrame, later: pd.DataFrame, whole: pd.Series[bool]) -> Said:
    groups = later["val_accuracy"].astype("float64").groupby(later["run_id"])
    most, validated = groups.max().reindex(runs.index), groups.count().reindex(runs.index)
    best = runs["best_val_accuracy"].astype("float64")
    slack = 1.05 * (_resolution(best) + _resolution(most)) + 1e-6
    every_epoch = whole & (validated >= runs["epochs"].astype("float64"))
    # A history may leave evaluations out, so that its best one is too low; it cannot be too high.
    too_low, too_high = best < most - slack, best > most + slack
    said: Said = []
    sure = (too_low | (too_high & every_epoch)) & runs["guard"].isna()
    for wrong, definite in ((sure, True), ((too_low | too_high) & ~sure, False)):
        if wrong.any():
            run = str(runs.index[int(wrong.to_numpy().argmax())])
            other = f"the highest `val_accuracy` of `history` is {most[run]:.4g}"
            said.append((definite, _contradiction(int(wrong.sum()), run, "best_val_accuracy", best[run], other)))
    return said


def _end_of_history(runs: pd.DataFrame, later: pd.DataFrame, whole: pd.Series[bool]) -> Said:
    """Compare each run with its rows that it may report: that of its selected epoch and its last; all, where that is not told."""
    selected = later["run_id"].map(runs["selected_epoch"].astype("float64"))
    at_selected = (later["epoch"].astype("float64") - selected).abs() < 1e-6
    told = at_selected.groupby(later["run_id"]).transform("any")
    last = later["step"] == later.groupby("run_id")["step"].transform("max")
    reported = later[at_selected | last.fillna(False) | ~told]
    # A guard may put earlier weights back after the last row.
    definite = (whole | told.groupby(later["run_id"]).any().reindex(runs.index, fill_value=False)) & runs[
        "guard"
    ].isna()
    pairs = [(f"{metric}_final", metric) for metric in structure_metrics()]
    pairs += [(column.name, column.name) for column in metric_columns("history") if column.name in runs.columns]
    said: Said = []
    for ours, theirs in pairs:
        if runs[ours].isna().all() or reported[theirs].isna().all():
            continue
        given = reported["run_id"].map(runs[ours].astype("float64")).rename(ours)
        value = reported[theirs].astype("float64")
        excess = (given - value).abs() - _tolerance(given, value)
        nearest = excess.groupby(reported["run_id"]).min()
        for sure in (True, False):
            wrong = [run for run in nearest[nearest > 0].index if bool(definite[run]) == sure]
            if wrong:
                row = reported[(reported["run_id"] == wrong[0]) & value.notna()].iloc[-1]
                other = f"`history` has {row[theirs]:.4g} at step {row['step']}"
                said.append(
                    (sure, _contradiction(len(wrong), wrong[0], ours, runs[ours].astype("float64")[wrong[0]], other))
                )
    return said


def _against_layers(runs: pd.DataFrame, layers: pd.DataFrame) -> list[str]:
    """What the layer means at step 0 contradict, in words, where they are of all layers from the first on."""
    means = layers[layers["head"].isna() & (layers["step"] == 0) & layers["value"].notna()]
    said: list[str] = []
    for metric in structure_metrics():
        groups = means[means["metric"] == metric].groupby("run_id")
        whole = groups["layer"].nunique() == groups["layer"].max()
        rows = groups["value"].mean().astype("float64")[whole].rename(metric).reset_index()
        said += _differing(runs, rows, f"{metric}_baseline", metric, "the mean over `layers` at step 0")
    return said


def _two_baselines(runs: pd.DataFrame) -> list[str]:
    """In words, where one pretrained model has two accuracies on the same images of a transfer set."""
    said = []
    for name in transfer_sets(runs):
        column, n = (f"transfer_{name}_zero_shot_{end}" for end in ("pretrained", "n"))
        given = runs[runs[column].notna()]
        if given.empty:
            continue
        groups = given.groupby([given["model"].fillna(""), given[n].fillna(-1)])[column]
        apart = groups.max() - groups.min() > 0.02 * groups.max() + 2 * _resolution(given[column])
        if apart.any():
            low, high = groups.min()[apart].iloc[0], groups.max()[apart].iloc[0]
            said.append(
                f"`{column}` lies in {low:.4g} .. {high:.4g} for one model; it is what the pretrained model has, so that it "
                "depends on nothing but model, images and prompts"
            )
    return said
