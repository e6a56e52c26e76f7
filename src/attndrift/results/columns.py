"""The columns of tables: what each is called, what it holds, and how it is printed.

A measured column says which metric it holds and what of it (:class:`Column`, ``metric`` and ``statistic``); its words,
unit and range are the metric's facts.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from pydantic.fields import FieldInfo

from attndrift.metrics.registry import METRICS, Metric
from attndrift.own_settings import OwnSettings, plain_kinds
from attndrift.registry import members_of

MAX_COLUMNS = 2_000
"""Columns of one table. The widest of ours have some hundred; each more takes memory in every row."""

Kind = Literal["string", "int", "float", "bool"]
Statistic = Literal["value", "baseline", "final", "change_pct", "last_layer_change_pct", "mean", "last"]


@dataclass(frozen=True)
class Column:
    """One column of a table: what it holds, and how it is printed."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "use_attribute_docstrings": True}

    name: str
    label: str = ""
    unit: str = ""
    digits: int | None = None
    """decimals when printed; null: four significant digits"""
    scale: float = 1.0
    """multiplies for print only, never in CSV or JSON"""
    signed: bool = False
    sd: str | None = None
    """name of the column that holds the standard deviation"""
    kind: Kind = "float"
    meaning: str = ""
    low: float | None = None
    """lower end of the closed range of its values; null: none"""
    high: float | None = None
    required: bool = False
    short_label: str = ""
    metric: str = ""
    """the metric whose numbers it holds"""
    statistic: Statistic | None = None
    """what of that metric: its value, its change, ..."""
    worse: Literal["lower", "higher"] | None = None
    """the side on which an adapted model is harmed"""


def metric_columns(table: Literal["runs", "history"]) -> tuple[Column, ...]:
    """The measured columns of a table, metric by metric.

    >>> [column.name for column in metric_columns("runs") if column.metric == "entropy"]
    ['entropy_baseline', 'entropy_final', 'entropy_change_pct', 'entropy_last_layer_change_pct']
    >>> [column.name for column in metric_columns("history") if column.metric in ("cka", "weight_drift")]
    ['cka_mean', 'cka_last', 'weight_drift']
    """
    return tuple(column for metric in METRICS for column in columns_of(metric, table))


def own_setting_columns() -> tuple[Column, ...]:
    """The columns of the settings that registered methods, heads, losses and retention measures bring, in the table ``runs``.

    >>> {"lora_rank", "vera_rank"} <= {column.name for column in own_setting_columns() if column.kind == "int"}
    True
    """
    found: dict[str, Column] = {}
    for kind in ("method", "head", "loss", "measure"):
        for owner in members_of(kind):
            for column in _setting_columns(owner.Settings):
                found.setdefault(column.name, column)
    return tuple(found.values())


@functools.cache
def _setting_columns(settings: type[OwnSettings]) -> tuple[Column, ...]:
    # Once a class: every table that is read asks for its columns some ten times.
    return tuple(_setting_column(name, field) for name, field in settings.model_fields.items())


def _setting_column(name: str, field: FieldInfo) -> Column:
    kinds = plain_kinds(field.annotation)
    kind: Kind = next((word for of, word in _KINDS if of in kinds), "string")
    low = next((float(end) for part in field.metadata for end in (getattr(part, "ge", None), getattr(part, "gt", None))
                if isinstance(end, (int, float))), None)  # fmt: skip
    return Column(name, kind=kind, meaning=field.description or "", low=low)


_KINDS: tuple[tuple[type, Kind], ...] = ((bool, "bool"), (float, "float"), (int, "int"))


def columns_of(metric: Metric, table: Literal["runs", "history"]) -> list[Column]:
    """The columns of one metric in a table; none for what is seen on request alone."""
    short, name = metric.short_label or metric.label, metric.name
    unit = f", {metric.unit}" if metric.unit else ""
    value = Column(
        name, metric.label, unit=metric.unit, digits=metric.digits, low=metric.low, high=metric.high, metric=name,
        statistic="value", worse=metric.worse, meaning=metric.meaning, short_label=short,
    )  # fmt: skip
    if metric.own:
        over = ", mean over layers" if metric.structural else ""
        change = Column(
            f"{name}_change_pct", f"{metric.label} change", unit="%", digits=2, signed=True, metric=name,
            statistic="change_pct", worse=metric.worse, short_label=short,
            meaning=f"change of {'the layer mean of ' if over else ''}{name}, percent",
        )  # fmt: skip
        found = [replace(value, meaning=f"{metric.label}{over}{unit}" if over else metric.meaning), change]
        if table == "runs":
            ends: dict[Statistic, str] = {"baseline": "pretrained", "final": "adapted"}
            found[:1] = [
                replace(value, name=f"{name}_{end}", label=f"{metric.label}, {state}", statistic=end,
                        meaning=f"{metric.label}, {state}{over}{unit}")
                for end, state in ends.items()
            ]  # fmt: skip
        if metric.structural and metric.last_block:
            found.append(
                replace(
                    change, name=f"{name}_last_layer_change_pct", label=f"{metric.label} change, last block",
                    statistic="last_layer_change_pct", short_label=f"{short}, last block",
                    meaning=f"change of the last block's {name}, percent",
                )
            )  # fmt: skip
        return found
    if metric.compared and metric.per_layer:
        found = [replace(value, name=f"{name}_mean", label=f"{metric.label}, mean over blocks", statistic="mean",
                         short_label=f"{short}, mean", meaning=f"{metric.label}, mean over blocks")]  # fmt: skip
        if metric.last_block:
            found.append(
                replace(value, name=f"{name}_last", label=f"{metric.label}, last block", statistic="last",
                        short_label=f"{short}, last block", meaning=f"{metric.label} of the last block")
            )  # fmt: skip
        return found
    return [value] if metric.compared else []
