"""What retention each signal would have chosen among the runs near the best validation accuracy."""

from __future__ import annotations

import numpy as np
import pandas as pd

from attndrift.analysis.configurations import Prepared
from attndrift.analysis.measures import retention
from attndrift.analysis.numbers import Floats
from attndrift.analysis.result import Table
from attndrift.analysis.settings import AnalysisSettings
from attndrift.analysis.signal_sources import SignalSource, signals
from attndrift.analysis.signals import Rows, columns

_IDS = 20
ORACLE, RANDOM = "oracle", "random"


def selection_rules(prepared: Prepared, settings: AnalysisSettings) -> Table:
    """``selection_rules``: a row a target, margin and rule; the rule picks the run where its signal is least (or most)."""
    rows: Rows = []
    sources = signals()
    columns_used = {
        "run_id",
        "best_val_accuracy",
        "model_name",
        "selection_name",
        "dataset",
        *(s.final for s in sources),
    }
    columns_used |= {retention(name).name for name in prepared.transfer}
    adapted = prepared.adapted[[name for name in prepared.runs.columns if name in columns_used]]
    for name in prepared.transfer:
        for key, runs in adapted.groupby(["model_name", "selection_name", "dataset"], sort=True):
            usable = runs[runs[retention(name).name].notna() & runs["best_val_accuracy"].notna()]
            place = dict(zip(("model_name", "selection_name", "dataset"), map(str, key), strict=True))
            for margin in settings.selection_margins:
                rows += [{**place, "transfer_set": name, **row} for row in _choices(usable, name, margin, sources)]
    notes = [
        "One choice from one set of runs: descriptive. Random is the expected retention of an even draw, oracle the best "
        "one; runs that tie give the mean of the tied ones."
    ]
    if not rows:
        notes.insert(0, "No run has both a validation accuracy and a retention.")
    names = ("margin_points", "best_validation", "n_runs", "rule", "retention_pct", "n_tied", "run_ids", "reason")
    return Table(
        name="selection_rules", title="Retention that each rule chooses among runs near the best validation accuracy",
        columns=columns("model_name", "selection_name", "dataset", "transfer_set", *names), rows=rows, notes=notes,
    )  # fmt: skip


def _choices(runs: pd.DataFrame, transfer_set: str, margin: float, sources: tuple[SignalSource, ...]) -> Rows:
    """The oracle, a random draw, and every rule, among the runs within ``margin`` points of the best validation."""
    if runs.empty:
        return []
    accuracy = runs["best_val_accuracy"].to_numpy(dtype=float)
    # Accuracies are multiples of 1/n: the margin is meant to include its own end.
    near = runs[accuracy >= accuracy.max() - margin / 100 - 1e-9]
    kept = near[retention(transfer_set).name].to_numpy(dtype=float)
    alone = "one run: there is nothing to choose" if len(near) == 1 else None
    place = {"margin_points": margin, "best_validation": float(accuracy.max()), "n_runs": len(near)}
    empty = {"n_tied": None, "run_ids": None, "reason": alone}
    rows: Rows = [
        {**place, "rule": ORACLE, "retention_pct": float(kept.max()), **empty},
        {**place, "rule": RANDOM, "retention_pct": float(kept.mean()), **empty},
    ]
    sized = {source.final for source in sources if source.absolute}
    run_ids = near["run_id"].tolist()
    for source in sources:
        values = source.values(near, source.final)
        if np.isnan(values).all() or (source.final in sized and not source.absolute):
            continue
        rows.append({**place, **_choice(source, values, kept, run_ids)})
    return rows


def _choice(source: SignalSource, values: Floats, kept: Floats, run_ids: list[str]) -> dict[str, object]:
    # The least drift; of an accuracy, which nobody would minimise, the highest.
    sign = 1 if source.name.endswith("accuracy") else source.expected_sign
    row: dict[str, object] = {"rule": f"{'highest' if sign > 0 else 'lowest'} {source.name}"}
    missing = int(np.isnan(values).sum())
    if missing:
        reason = f"the signal is missing in {missing} of {len(values)} runs"
        return {**row, "retention_pct": None, "n_tied": 0, "run_ids": None, "reason": reason}
    tied = np.flatnonzero(sign * values == (sign * values).max())
    return {
        **row, "retention_pct": float(kept[tied].mean()), "n_tied": len(tied),
        "run_ids": ", ".join(str(run_ids[place]) for place in tied[:_IDS]),
        "reason": f"{len(tied)} runs tie: their mean retention" if len(tied) > 1 else None,
    }  # fmt: skip
