"""The statistics tables as a page prints them: a test and an interval are one cell each."""

from __future__ import annotations

from typing import Any

import pandas as pd

from attndrift.analysis.measures import Measure, outcomes
from attndrift.analysis.result import Analysis, Table
from attndrift.analysis.statistics_tables import statistics_tables
from attndrift.analysis.summary import records
from attndrift.results.columns import Column

_PRINTED = ("changes", "comparisons", "rate_correlations", "anova", "signals", "selection_rules")

# The CSV tables hold these.
_LEFT_OUT = {
    "expected_sign",
    *(f"cells_{name}" for name in ("n", "mean", "sd", "d_z", "cohen_d", "reason")),
    *(f"configurations_{name}" for name in ("n", "sd", "below_zero", "above_zero", "reason")),
}
_OF_A_MEASURE = {"low", "high", "first_mean", "second_mean", "configurations_mean"}
_LABELS = {
    "low": "interval",
    "roc_low": "ROC area interval",
    "roc_auc": "ROC area",
    "roc_reason": "ROC area, note",
    "f": "F",
    "d_z": "d_z",
}


def printed_statistics(analysis: Analysis) -> dict[str, Table]:
    """``changes, comparisons, rate_correlations, anova, signals, selection_rules``, each as one table for a page."""
    found = statistics_tables(analysis)
    measures = {measure.name: measure for measure in outcomes(analysis.data.transfer_sets)}
    result: dict[str, Table] = {}
    for name in _PRINTED:
        table = found[name]
        rows = _a_column_a_rule(table.rows) if name == "selection_rules" else table.rows
        rows = [_printed_row(row, measures) for row in rows]
        names = list(dict.fromkeys(key for row in rows for key in row))
        columns = [Column(name=key, label=_label(key)) for key in names]
        result[name] = table.model_copy(update={"columns": columns, "rows": rows})
    return result


def _label(name: str) -> str:
    text = _LABELS.get(name, name.replace("_", " "))
    return text[:1].upper() + text[1:] if text.islower() else text


def _a_column_a_rule(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Selections side by side: a row a margin, a column a rule."""
    if not rows:
        return []
    frame = pd.DataFrame(rows).drop(columns=["n_tied", "reason"])
    keys = [name for name in frame.columns if name not in ("rule", "retention_pct")]
    rules = list(dict.fromkeys(frame["rule"]))
    wide = frame.pivot(index=keys, columns="rule", values="retention_pct")[rules].astype(float)
    return records(wide.reset_index())


def _printed_row(row: dict[str, Any], measures: dict[str, Measure]) -> dict[str, Any]:
    measure = measures.get(str(row.get("measure")))
    scale = measure.scale if measure else 1.0
    parts = {
        f"{name}_{end}" for name in row if f"{name}_p" in row for end in ("n", "p", "p_holm", "family_size", "reason")
    }
    printed: dict[str, Any] = {}
    for name, value in row.items():
        if name in _LEFT_OUT or name in parts or name.endswith(("high", "interval_reason")):
            continue
        if f"{name}_p" in row:
            printed[name] = _test_text(row, name)
        elif name.endswith("low"):
            printed[name] = _interval_text(row, name.removesuffix("low"), scale)
        elif name == "measure" and measure is not None:
            printed[name] = measure.label
        elif name in _OF_A_MEASURE and value is not None:
            printed[name] = value * scale
        else:
            printed[name] = value
    return printed


def _test_text(row: dict[str, Any], name: str) -> str:
    """``-4.21, p 0.012 (Holm 0.07, family of 15)``, or why there is none."""
    statistic, p, corrected = row[name], row[f"{name}_p"], row[f"{name}_p_holm"]
    reason = f" ({row[f'{name}_reason']})" if p is None and row[f"{name}_reason"] else ""
    if statistic is None:
        return f"–{reason}"
    if p is None:
        return f"{statistic:.4g}{reason}"
    holm = f" (Holm {_p(corrected)}, family of {row[f'{name}_family_size']})" if corrected is not None else ""
    return f"{statistic:.4g}, p {_p(p)}{holm}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _interval_text(row: dict[str, Any], prefix: str, scale: float) -> str:
    low, high, reason = row[f"{prefix}low"], row[f"{prefix}high"], row[f"{prefix}interval_reason"]
    if low is None or high is None:
        return f"– ({reason})" if reason else "–"
    return f"[{low * scale:.4g}, {high * scale:.4g}]"
