"""Alerts for other trainings, learned from the runs of a study: the file that ``attndrift calibrate`` writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attndrift.analysis.configurations import prepare
from attndrift.analysis.dynamics import order_history
from attndrift.analysis.early_warning import WARNS, calibrate, choose_alerts
from attndrift.analysis.settings import AnalysisSettings
from attndrift.analysis.signals import TARGET
from attndrift.files import write_json
from attndrift.results.tables import Tables

_KEPT = (
    "model_name", "dataset", "transfer_set", "metric", "below", "above", "step", "n_configurations", "n_seeds",
    "n_damaged", "held_out_caught", "held_out_false_alarms", "p_holm",
)  # fmt: skip

PROMISES_NOT = (
    "Thresholds are those of this study's model, images, batch size and schedule; another training may lose transfer "
    "at other values.",
    "Each configuration was judged by the threshold of the others. The signal and the step were chosen from all of "
    "them, so expect a new run to do somewhat worse.",
)
"""What an alert cannot promise."""


def alert_rules(tables: Tables, below_pct: float, *, every: bool = False) -> dict[str, Any]:
    """The alerts of a study: plain values, as they are written.

    Args:
        below_pct: the retention in percent that is to be warned of.
        every: an alert for each signal that did better than chance; otherwise the best one of each dataset and transfer set.

    Returns:
        ``alerts``: a list, each with ``metric``, ``below`` and ``above`` as of :class:`~attndrift.drift.Alert`, the ``step``
        by which it had fired, how many configurations there were (``n_configurations``), were damaged and were caught
        held out, and ``shown``, whether the test is significant after correction. ``notes``: why there is none.
    """
    prepared = prepare(tables)
    table = calibrate(prepared, order_history(prepared, tables.history), AnalysisSettings(), below_pct=below_pct)
    chosen = choose_alerts(table)
    if not every:
        best: dict[tuple[Any, ...], dict[str, Any]] = {}
        for row in chosen:
            best.setdefault(tuple(row[name] for name in TARGET[:-1]), row)
        chosen = list(best.values())
    notes = list(table.notes)
    if table.rows and not chosen:
        notes.append("No signal did better than chance on configurations that its threshold was not learned from.")
    alerts = [{**{name: row[name] for name in _KEPT}, "shown": row["verdict"] == WARNS} for row in chosen]
    return {"below_retention_pct": below_pct, "alerts": alerts, "notes": notes, "promises_not": list(PROMISES_NOT)}


def describe_alert(alert: dict[str, Any]) -> str:
    """One alert in words."""
    bounds = [f"{side} {alert[side]:.4g}" for side in ("below", "above") if alert[side] is not None]
    others = alert["n_configurations"] - alert["n_damaged"]
    seeds = "one seed" if alert["n_seeds"] == 1 else f"{alert['n_seeds']} seeds"
    text = (
        f"{alert['metric']} {' or '.join(bounds)} by step {alert['step']} ({alert['dataset']}, {alert['transfer_set']}): "
        f"held out, {alert['held_out_caught']} of {alert['n_damaged']} damaged configurations warned of, "
        f"{alert['held_out_false_alarms']} of {others} others (n = {alert['n_configurations']}, {seeds})"
    )
    return text if alert["shown"] else f"{text}. Not significant after correction: a suggestion"


def write_alert_rules(rules: dict[str, Any], path: Path, studies: Sequence[str]) -> None:
    """Write what :func:`attndrift.drift.read_alerts` reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"studies": list(studies), **rules})
