"""What the findings share: the evidence they are made of, the verdict, and the words for numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from attndrift.analysis.measures import LAST_LAYER
from attndrift.analysis.result import (
    Anova,
    Change,
    Comparison,
    Finding,
    Interval,
    RateCorrelation,
    SelectionRules,
    Signal,
    Strength,
    Table,
    Test,
)
from attndrift.analysis.settings import AnalysisSettings


@dataclass
class Evidence:
    """What the findings are made of."""

    settings: AnalysisSettings
    tables: dict[str, Table]
    changes: list[Change]
    comparisons: list[Comparison]
    rates: list[RateCorrelation]
    anova: list[Anova]
    signals: list[Signal]
    selection_rules: list[SelectionRules]
    transfer_sets: list[str]
    n_seeds: int
    found: list[Finding] = field(default_factory=list)

    def add(
        self,
        identity: str,
        question: str,
        sentence: str,
        strength: Strength,
        *,
        topic: str | None = None,
        weight: float = 0.0,
        **evidence: Any,
    ) -> None:
        slug = re.sub(r"[^a-z0-9]+", "-", identity.lower()).strip("-")
        used = {finding.id for finding in self.found}
        number = 2
        unique = slug
        while unique in used:
            unique, number = f"{slug}-{number}", number + 1
        self.found.append(
            Finding(
                id=unique,
                question=question,
                sentence=sentence,
                strength=strength,
                evidence=evidence,
                topic=topic,
                weight=weight,
            )
        )


def judge(
    n_configurations: int,
    n_cells: int,
    n_seeds: int,
    test: Test | None,
    interval: Interval | None,
    settings: AnalysisSettings,
) -> Strength:
    """What a claim about a direction may be called."""
    if n_cells < 3:
        return "too few"
    if n_configurations < settings.min_configurations or n_seeds < 2:
        return "descriptive"
    if test is None or test.p is None:
        return "descriptive"
    p = test.p_holm if test.p_holm is not None else test.p
    return "supported" if p < settings.alpha and _excludes_zero(interval) else "no evidence"


def _excludes_zero(interval: Interval | None) -> bool:
    if interval is None or interval.low is None or interval.high is None:
        return False
    return interval.low > 0 or interval.high < 0


def number_text(value: float | None, digits: int = 2, signed: bool = True) -> str:
    if value is None or not math.isfinite(value):
        return "not known"
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    return text.lstrip("+-") if float(text) == 0 else text


def spread_text(values: Sequence[float], digits: int = 1, signed: bool = False) -> str:
    """One value, or the lowest and the highest of several."""
    low, high = number_text(min(values), digits, signed), number_text(max(values), digits, signed)
    return low if low == high else f"{low} to {high}"


def p_text(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"


def interval_text(interval: Interval | None, digits: int = 2, scale: float = 1.0) -> str:
    if interval is None or interval.low is None or interval.high is None:
        return f"no interval ({interval.reason})" if interval is not None and interval.reason else "no interval"
    if interval.reason and interval.low == interval.high:
        return f"no interval ({interval.reason})"
    low, high = number_text(interval.low * scale, digits), number_text(interval.high * scale, digits)
    return f"{interval.level:.0%} interval {low} to {high}, {interval.n} {interval.unit}s resampled"


def test_text(test: Test | None) -> str:
    if test is None:
        return "not tested"
    if test.p is None:
        return f"{test.name}: no p value ({test.reason})"
    text = f"{test.name} {p_text(test.p)}"
    if test.p_holm is not None:
        text += f", Holm {p_text(test.p_holm)} among {test.family_size}"
    return text


def evidence_text(interval: Interval | None, test: Test | None) -> str:
    """Interval and test, or in one word that there are too few for either."""
    none = interval is None or interval.low is None
    if none and test is not None and test.p is None and test.n < 3:
        return f"n = {test.n}: no interval, no test"
    return f"{interval_text(interval)}; {test_text(test)}"


def told(test: Test | None) -> dict[str, Any] | None:
    return None if test is None else test.model_dump()


def count_text(part: int, whole: int) -> str:
    return f"in {part} of {whole} cells"


def closing(strength: Strength, supported: str, none: str, label: str) -> str:
    if strength == "supported":
        return f"{supported} ({label})."
    if strength == "no evidence":
        return f"There is no evidence for {none} ({label})."
    label = label.removesuffix(": descriptive only")
    if strength == "descriptive":
        return f"Descriptive only ({label})."
    return f"Too few runs to tell ({label})."


def where_text(model: str, selection: str, items: list[Any], scope: str) -> str:
    """The words that tell one group of runs from the others: model and selection only where several exist."""
    parts = [] if scope == "all datasets" else [scope]
    if len({item.model for item in items}) > 1:
        parts.append(model)
    if len({item.selection for item in items}) > 1:
        parts.append(f"selection {selection}")
    return f" ({', '.join(parts)})" if parts else ""


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def seeds_text(rows: list[dict[str, Any]]) -> str:
    n = min(int(row["n_seeds"]) for row in rows)
    if n == 1:
        return "one seed: descriptive only"
    return f"{n} seeds of one configuration each: descriptive only"


def sweeps_of(table: Table) -> dict[str, list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in table.rows:
        groups.setdefault(str(row["sweep"]), []).append(row)
    return groups


def entropy_text(row: dict[str, Any]) -> str:
    spread = row.get("entropy_change_pct_sd")
    text = number_text(row.get("entropy_change_pct")) + "%"
    text += f" ± {spread:.2f}" if spread is not None else ""
    last = row.get(LAST_LAYER)
    return text + (f", last block {number_text(last)}%" if last is not None else ", last block not measured")


def accuracy_text(row: dict[str, Any]) -> str:
    for name, word in (("test_accuracy", "test"), ("best_val_accuracy", "validation")):
        if row.get(name) is not None:
            return f"{word} accuracy {100 * row[name]:.2f}%"
    return "accuracy not given"
