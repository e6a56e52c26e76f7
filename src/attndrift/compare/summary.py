"""The numbers that a comparison ends in, by name: what each is, and where it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from attndrift.drift.drift import Drift
from attndrift.metrics.registry import METRICS
from attndrift.results.columns import Column, columns_of

TEXT_EMBEDDINGS: Final = "text_embedding_drift"
"""Of the class names of the zero-shot dataset, where there is one."""

_ZERO_SHOT: Final = {
    "zero_shot_base_accuracy": "zero-shot accuracy of BASE, 0 .. 1",
    "zero_shot_adapted_accuracy": "zero-shot accuracy of ADAPTED, 0 .. 1",
    "zero_shot_change_points": "change of the zero-shot accuracy, percentage points",
    "retention_pct": "100 x zero-shot accuracy of ADAPTED / BASE, percent",
    "retention_low_pct": "lower end of the retention's 95% interval, percent",
}


def measured_columns() -> list[Column]:
    """The columns of every registered metric, as in the table ``runs``, with the last block of each that has blocks."""
    return [column for metric in METRICS for column in columns_of(replace(metric, last_block=True), "runs")]


def summary_names() -> dict[str, str]:
    """Every name of a comparison's summary, which a condition may use, and what it is.

    >>> summary_names()["cka_mean"]
    'CKA, mean over blocks, 0 .. 1'
    """
    return {column.name: _described(column) for column in measured_columns()} | _ZERO_SHOT


def _described(column: Column) -> str:
    bounded = column.statistic not in ("change_pct", "last_layer_change_pct")
    return f"{column.meaning}, {METRICS[column.metric].range}" if bounded else column.meaning


def summarize(
    drift: Drift, transfer: Mapping[str, Any] | None, *, text_towers: bool
) -> tuple[dict[str, float | None], dict[str, str]]:
    """Every value of the summary, and why those that are None have none.

    Args:
        drift: from BASE to ADAPTED.
        transfer: what :func:`~attndrift.compare.retention.measure_zero_shot` found; None where it was not asked for.
        text_towers: whether the text towers of the two have the same shapes.
    """
    columns = measured_columns()
    values: dict[str, float | None] = {column.name: drift.number(column) for column in columns}
    values |= _zero_shot(transfer)
    reasons = {column.name: drift.reason(column) for column in columns if values[column.name] is None}
    if not text_towers:
        of_text = [column.name for column in columns if METRICS[column.metric].needs == "text weights"]
        reasons |= dict.fromkeys(of_text, "the text towers of the two models have different shapes")
    absent = "no --zero-shot dataset was given"
    why = absent if transfer is None else transfer["retention_reason"]
    reasons |= {TEXT_EMBEDDINGS: f"{absent}, whose class names are the texts"} if transfer is None else {}
    return values, reasons | {name: why for name in _ZERO_SHOT if values[name] is None}


def _zero_shot(transfer: Mapping[str, Any] | None) -> dict[str, float | None]:
    if transfer is None:
        return dict.fromkeys((*_ZERO_SHOT, TEXT_EMBEDDINGS))
    interval = transfer["retention_pct_interval"]
    numbers = (
        *(transfer[name] for name in ("base_accuracy", "adapted_accuracy", "change_points", "retention_pct")),
        None if interval is None else interval["low"],
    )
    return dict(zip(_ZERO_SHOT, numbers, strict=True)) | {TEXT_EMBEDDINGS: transfer[TEXT_EMBEDDINGS]}
