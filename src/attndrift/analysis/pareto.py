"""Operating points: best validation, equal accuracy, the accuracy-retention front."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd

from attndrift.analysis.configurations import Prepared
from attndrift.analysis.measures import Measure, retention
from attndrift.analysis.numbers import Floats
from attndrift.analysis.pairs import _pair_order
from attndrift.analysis.result import Table
from attndrift.analysis.settings import AnalysisSettings
from attndrift.analysis.summary import (
    aggregate,
    cells_of,
    plain_columns,
    records,
    single_seed_notes,
    sweep_measures,
)
from attndrift.results.columns import Column

IDENTITY = ["model_name", "selection_name", "dataset", "variant", "key_rest", "learning_rate"]


def _groups(prepared: Prepared) -> pd.DataFrame:
    frame = aggregate(prepared.adapted, prepared.measures, IDENTITY)
    frame["group"] = frame["key_rest"].astype(object)
    return frame


def _accuracy_column(frame: pd.DataFrame, first: str, second: str) -> str | None:
    for name in (first, second):
        if name in frame.columns and frame[name].notna().any():
            return name
    return None


def best_validation_table(prepared: Prepared) -> Table:
    """For every method and dataset the configuration with the best mean validation accuracy."""
    frame = _groups(prepared)
    columns = plain_columns(
        ("model_name", "Model"),
        ("selection_name", "Selection"),
        ("dataset", "Dataset"),
        ("variant", "Method"),
        ("key_rest", "Conditions"),
        ("learning_rate", "Rate"),
        ("n_rates", "Rates tried"),
        ("n_runs", "Runs"),
        ("n_seeds", "Seeds"),
    )
    columns += sweep_measures(prepared.measures) + plain_columns(("note", "Note"))
    chooser = _accuracy_column(frame, "best_val_accuracy", "test_accuracy")
    notes: list[str] = []
    rows: list[dict[str, object]] = []
    if chooser is None:
        notes.append("No validation accuracy is given: no operating point can be chosen.")
    else:
        if chooser == "test_accuracy":
            notes.append(
                "No validation accuracy is given: the choice was made on the test accuracy, so it is optimistic."
            )
        known = frame[frame[chooser].notna()]
        groups = known.groupby(IDENTITY[:-1], sort=False)["learning_rate"]
        known = known.assign(
            n_rates=groups.transform("nunique"), lowest=groups.transform("min"), highest=groups.transform("max")
        )
        best = known.sort_values(
            [*IDENTITY[:-1], chooser, "learning_rate"], ascending=[True] * 5 + [False, True], kind="stable"
        )
        whole = best.drop_duplicates(IDENTITY[:-1]).reset_index(drop=True)
        edge = (whole["learning_rate"] == whole["lowest"]) | (whole["learning_rate"] == whole["highest"])
        remark = np.where(edge & (whole["n_rates"] > 1), "at the edge of the rates tried", "")
        remark = np.where(whole["n_rates"] <= 1, "one rate tried", remark)
        pairs = zip(whole["note"], remark, strict=True)
        whole["note"] = ["; ".join(str(part) for part in pair if part) for pair in pairs]
        rows = records(whole[cells_of(columns)])
        notes += single_seed_notes(whole)
    return Table(
        name="best_validation",
        title="Operating points of best validation accuracy",
        columns=columns,
        rows=rows,
        notes=notes,
    )


def crossings(x: Floats, y: Floats, target: float) -> list[float]:
    """Where the straight lines through the points (x ascending) take the value ``target``; never beyond them."""
    found: list[float] = []
    for i in range(len(x)):
        if y[i] == target:
            found.append(float(x[i]))
        if i + 1 < len(x) and (y[i] - target) * (y[i + 1] - target) < 0:
            share = (target - y[i]) / (y[i + 1] - y[i])
            found.append(float(x[i] + share * (x[i + 1] - x[i])))
    return found


def iso_accuracy_table(prepared: Prepared, settings: AnalysisSettings) -> Table:
    """Every method at equal validation accuracy, interpolated linearly in log10 rate between measured rates.

    Targets are the settings' ``iso_accuracies`` and, for each pair of methods, the highest accuracy
    that both reach. Where an accuracy is reached at several rates the lowest rate counts.
    """
    frame = _groups(prepared)
    carried = [m for m in prepared.measures if m.name != "best_val_accuracy"]
    columns = plain_columns(
        ("model_name", "Model"),
        ("selection_name", "Selection"),
        ("dataset", "Dataset"),
        ("conditions", "Conditions"),
    )
    columns += [
        Column(name="target", label="Validation accuracy", unit="%", digits=2, scale=100.0),
        *plain_columns(("why", "Target"), ("variant", "Method")),
        Column(name="learning_rate", label="Rate (interpolated)"),
        *plain_columns(("n_crossings", "Rates with it"), ("n_rates", "Rates measured"), ("n_seeds", "Seeds")),
        *[m.column() for m in carried],
        Column(name="reason", label="Note"),
    ]
    accuracy = _accuracy_column(frame, "best_val_accuracy", "test_accuracy")
    notes = ["Interpolated linearly in log10 rate between configuration means, never beyond the measured rates."]
    rows: list[dict[str, object]] = []
    if accuracy is None:
        notes.append("No accuracy is given.")
    else:
        if accuracy == "test_accuracy":
            notes.append("No validation accuracy is given: methods are matched on test accuracy.")
        known = _longest(frame[frame[accuracy].notna() & (frame["learning_rate"] > 0)], settings, notes)
        for (model, selection, dataset, rest), group in known.groupby(
            ["model_name", "selection_name", "dataset", "key_rest"], sort=True
        ):
            curves = {
                str(v): part.sort_values("learning_rate", kind="stable")
                for v, part in group.groupby("variant", sort=True)
            }
            sweeps = [v for v in sorted(curves, key=_pair_order) if len(curves[v]) > 1]
            targets = {float(t): "setting" for t in settings.iso_accuracies}
            for first, second in combinations(sweeps[:6], 2):
                reach = min(float(curves[first][accuracy].max()), float(curves[second][accuracy].max()))
                targets.setdefault(reach, f"best that {first} and {second} both reach")
            for target, why in sorted(targets.items()):
                for variant in sweeps:
                    row = _at(curves[variant], accuracy, target, carried)
                    rows.append(
                        {
                            "model_name": str(model),
                            "selection_name": str(selection),
                            "dataset": str(dataset),
                            "conditions": str(rest),
                            "target": target,
                            "why": why,
                            "variant": variant,
                            **row,
                        }
                    )
    if not rows:
        notes.append("No method was run at two or more learning rates.")
    return Table(
        name="iso_accuracy",
        title="Methods at equal validation accuracy",
        columns=columns,
        rows=rows,
        notes=notes,
    )


def _longest(frame: pd.DataFrame, settings: AnalysisSettings, notes: list[str]) -> pd.DataFrame:
    """The rows of the rate sweeps with most rates, as many sweeps as the settings allow."""
    code = frame.groupby(IDENTITY[:-1], sort=False).ngroup().to_numpy()
    size = np.bincount(code) if len(code) else np.zeros(0, dtype=np.intp)
    swept = np.flatnonzero(size > 1)
    if len(swept) <= settings.max_rate_groups:
        return frame
    notes.append(f"{settings.max_rate_groups} of {len(swept)} rate sweeps are shown, those with most rates.")
    kept = swept[np.argsort(-size[swept], kind="stable")][: settings.max_rate_groups]
    return frame[np.isin(code, kept)]


def _at(curve: pd.DataFrame, accuracy: str, target: float, measures: list[Measure]) -> dict[str, object]:
    x = np.log10(curve["learning_rate"].to_numpy(dtype=float))
    y = curve[accuracy].to_numpy(dtype=float)
    found = crossings(x, y, target)
    row: dict[str, object] = {
        "learning_rate": None,
        "n_crossings": len(found),
        "n_rates": len(curve),
        "n_seeds": int(curve["n_seeds"].min()),
        **{m.name: None for m in measures},
        "reason": "",
    }
    if not found:
        place = "above" if target > y.max() else "below" if target < y.min() else "between"
        row["reason"] = (
            f"not reached: measured accuracies are {100 * y.min():.1f}-{100 * y.max():.1f}%, the target is {place}"
        )
        return row
    at = found[0]
    row["learning_rate"] = 10.0**at
    for measure in measures:
        values = curve[measure.name].to_numpy(dtype=float)
        right = int(np.searchsorted(x, at))
        exact = np.flatnonzero(np.isclose(x, at, rtol=0, atol=1e-12))
        if len(exact):
            value = values[exact[0]]
        else:
            share = (at - x[right - 1]) / (x[right] - x[right - 1])
            value = values[right - 1] + share * (values[right] - values[right - 1])
        row[measure.name] = float(value) if np.isfinite(value) else None
    if len(found) > 1:
        row["reason"] = f"reached at {len(found)} rates; the lowest counts"
    return row


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
    frame = _groups(prepared)
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
    accuracy = _accuracy_column(frame, "test_accuracy", "best_val_accuracy")
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
