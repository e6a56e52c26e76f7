"""What happened first during training: the loss of zero-shot transfer, or the change of attention."""

from __future__ import annotations

import numpy as np
import pandas as pd

from attndrift.analysis.configurations import Prepared
from attndrift.analysis.dynamics import History
from attndrift.analysis.numbers import Floats
from attndrift.analysis.result import Table
from attndrift.analysis.settings import AnalysisSettings
from attndrift.analysis.summary import plain_columns, records
from attndrift.methods.registry import PRETRAINED

MONITOR, ENTROPY = "monitor_zero_shot_retention_pct", "entropy_change_pct"
BEFORE, AFTER, SAME, NEVER = "before", "after", "same evaluation", "never"


def timing_table(prepared: Prepared, history: History, epoch: Floats, settings: AnalysisSettings) -> Table:
    """A row a run with both histories: when the monitor lost the transfer, and whether the entropy fell earlier."""
    runs, step = prepared.runs, history.values("step")
    monitor, entropy = (
        history.values(name) if name in history.frame.columns else np.full(len(step), np.nan)
        for name in (MONITOR, ENTROPY)
    )
    # The monitor is measured less often: an entropy between two of its values cannot be called earlier.
    trained = (step > 0) & np.isfinite(monitor) & np.isfinite(entropy)
    lost = history.first(trained & (monitor < settings.damaged_below_pct))
    fell = history.first(trained & (entropy <= settings.collapse_onset_pct))
    both = history.last(trained) >= 0
    order = np.select([lost < 0, fell < 0, fell < lost, fell == lost], ["", NEVER, BEFORE, SAME], AFTER)
    frame = pd.DataFrame(
        {name: runs[name] for name in ("run_id", "model_name", "dataset", "variant", "learning_rate", "seed")}
    ).assign(
        lost=lost >= 0,
        lost_step=history.take("step", lost),
        lost_epoch=_at(epoch, lost),
        fell_step=history.take("step", fell),
        fell_epoch=_at(epoch, fell),
        order=order,
    )[both & (runs["method"] != PRETRAINED).to_numpy()]
    columns = plain_columns(
        ("run_id", "Run"), ("model_name", "Model"), ("dataset", "Dataset"), ("variant", "Method"),
        ("learning_rate", "Rate"), ("seed", "Seed"), ("lost", "Transfer lost"), ("lost_step", "Transfer lost, step"),
        ("lost_epoch", "Transfer lost, epoch"), ("fell_step", "Entropy fell, step"),
        ("fell_epoch", "Entropy fell, epoch"), ("order", "Entropy fell, against the loss"),
    )  # fmt: skip
    notes = [
        f"Lost: the zero-shot monitor retains less than {settings.damaged_below_pct:g}%. Fell: an entropy change of "
        f"{settings.collapse_onset_pct:g}% or lower. Only evaluations that measured both count.",
    ]
    if not len(frame):
        notes.append("No run has both a zero-shot monitor and an entropy in its history.")
    return Table(
        name="timing", title="Which came first: lost transfer or fallen entropy",
        columns=columns, rows=records(frame[[c.name for c in columns]]), notes=notes,
    )  # fmt: skip


def _at(values: Floats, rows: np.ndarray) -> Floats:
    return np.where(rows >= 0, values[rows], np.nan) if len(values) else np.full(len(rows), np.nan)
