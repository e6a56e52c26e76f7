"""The numbers that a comparison ends in, by name: what each is, and where it comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from attndrift.compare.measures import NUMBERS, number_name
from attndrift.drift.drift import Drift
from attndrift.metrics.registry import METRICS
from attndrift.results.columns import Column, columns_of
from attndrift.results.measures import MEASURES

TEXT_EMBEDDINGS: Final = "text_embedding_drift"
"""Of the class names of the zero-shot dataset, where there is one."""


def _retention_names() -> dict[str, str]:
    """What the summary holds of each retention measure, and what it is."""
    return {
        number_name(one.name, end): meaning.format(one.label) for one in MEASURES for end, meaning in NUMBERS.items()
    }


def measured_columns() -> list[Column]:
    """The columns of every registered metric, as in the table ``runs``, with the last block of each that has blocks."""
    measured = (metric for metric in METRICS if metric.needs != "labelled images")
    return [column for metric in measured for column in columns_of(replace(metric, last_block=True), "runs")]


def summary_names() -> dict[str, str]:
    """Every name of a comparison's summary, which a condition may use, and what it is.

    >>> summary_names()["cka_mean"]
    'CKA, mean over blocks, 0 .. 1'
    """
    return {column.name: _described(column) for column in measured_columns()} | _retention_names()


def _described(column: Column) -> str:
    bounded = column.statistic not in ("change_pct", "last_layer_change_pct")
    return f"{column.meaning}, {METRICS[column.metric].range}" if bounded else column.meaning


def summarize(
    drift: Drift, transfer: Mapping[str, Any] | None, retained: Sequence[Mapping[str, Any]], *, text_towers: bool
) -> tuple[dict[str, float | None], dict[str, str]]:
    """Every value of the summary, and why those that are None have none.

    Args:
        drift: from BASE to ADAPTED.
        transfer: what :func:`~attndrift.compare.retention.measure_zero_shot` found; None where it was not asked for.
        retained: what :func:`~attndrift.compare.measures.measure_retention` found; empty where it was not asked for.
        text_towers: whether the text towers of the two have the same shapes.
    """
    columns = measured_columns()
    values: dict[str, float | None] = {column.name: drift.number(column) for column in columns}
    values |= {TEXT_EMBEDDINGS: None if transfer is None else transfer[TEXT_EMBEDDINGS]}
    of_measures, why = _retention(transfer, retained)
    values |= of_measures
    reasons = {column.name: drift.reason(column) for column in columns if values[column.name] is None}
    if not text_towers:
        of_text = [column.name for column in columns if METRICS[column.metric].needs == "text weights"]
        reasons |= dict.fromkeys(of_text, "no text tower, or two whose shapes differ")
    if transfer is None:
        reasons |= {TEXT_EMBEDDINGS: "no --zero-shot dataset was given, whose class names are the texts"}
    return values, reasons | why


def _number(row: Mapping[str, Any], end: str) -> float | None:
    """One of the numbers of a measure; the end of an interval is in the interval."""
    side = next((one for one in ("low", "high") if f"_{one}_" in end), None)
    if side is None:
        value: float | None = row[end]
        return value
    interval = row[f"{end.replace(f'_{side}', '')}_interval"]
    return None if interval is None else interval[side]


def _retention(
    transfer: Mapping[str, Any] | None, retained: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, float | None], dict[str, str]]:
    """The numbers of every measure by name, and why those that are None have none."""
    values: dict[str, float | None] = dict.fromkeys(_retention_names())
    reasons = dict.fromkeys(values, "no --retention dataset was given")
    of_zero_shot = [number_name("zero_shot", end) for end in NUMBERS]
    reasons |= dict.fromkeys(of_zero_shot, "no --zero-shot dataset was given")
    rows = [{"measure": "zero_shot", **transfer, "reason": transfer["retention_reason"]}] if transfer else []
    # A set that was named for zero-shot accuracy alone goes before.
    for row in (*retained, *rows):
        for end in NUMBERS:
            name = number_name(row["measure"], end)
            values[name] = _number(row, end)
            reasons[name] = str(row["reason"])
    return values, {name: reasons[name] for name, value in values.items() if value is None}
