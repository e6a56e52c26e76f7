"""Published values beside ours, for people: a table for each kind of run, the reasons, and what is missing."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from attndrift.analysis.measures import outcomes
from attndrift.analysis.numbers import format_rate
from attndrift.analysis.verification import MISSING, NOT_COMPARABLE, NOT_MEASURED, OUT
from attndrift.results.columns import metric_columns

if TYPE_CHECKING:
    from attndrift.analysis.verification import Checked, Verification

_SHOWN = 6
_UNCOMPARED = (NOT_MEASURED, NOT_COMPARABLE)
"""Verdicts whose reasons are printed beside the names."""
_STYLES = {OUT: "red", MISSING: "dim", NOT_MEASURED: "dim", NOT_COMPARABLE: "dim"}


def print_verification(found: Verification, console: Console | None = None) -> None:
    """Print the rows of every condition that has a result, the counts, the reasons, and what is missing."""
    console = console or Console()
    labels, shared = _labels(found.rows), _shared(found.rows)
    _say(console, f"{found.study}: {_condition(shared)}" if shared else found.study)
    empty: list[str] = []
    for where, group in groupby(found.rows, key=lambda row: dict(row.where)):
        own, condition = list(group), _condition({name: v for name, v in where.items() if name not in shared})
        if all(row.ours is None and row.verdict != NOT_MEASURED for row in own):
            empty.append(f"{condition} ({len(own)})")
            continue
        table = Table(title=condition, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("quantity", overflow="fold")
        for name in ("published", "ours", "difference", "tolerance"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("verdict")
        for row in own:
            table.add_row(labels[row.quantity], *_cells(row), style=_STYLES.get(row.verdict, ""))
        console.print()
        console.print(table)
    console.print()
    counted = ", ".join(f"{count} {verdict}" for verdict, count in found.counts.items())
    _say(console, f"{len(found.rows)} published values: {counted}.")
    for title, names in (
        ("Published values without a result", empty),
        ("Planned runs without a result", found.missing),
        ("Results of no planned run", found.others),
    ):
        if names:
            rest = f"; {len(names) - _SHOWN} more (--json)" if len(names) > _SHOWN else ""
            _say(console, f"{title}: {'; '.join(names[:_SHOWN])}{rest}.")
    _say(
        console,
        f"Tolerance: {found.level:.0%} interval of the difference over seeds (Welch), and the rounding. For some:",
    )
    for why in dict.fromkeys(row.why for row in found.rows if row.verdict not in _UNCOMPARED and row.why):
        _say(console, f"- {why}")
    for verdict in _UNCOMPARED:
        reasons = [(row.why, labels[row.quantity]) for row in found.rows if row.verdict == verdict]
        for why in dict.fromkeys(why for why, _ in reasons):
            named = ", ".join(dict.fromkeys(name for one, name in reasons if one == why))
            _say(console, f"{verdict.capitalize()}: {named}: {why}.")
    for source in dict.fromkeys(row.source for row in found.rows):
        _say(console, f"Source: {source}")


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _shared(rows: list[Checked]) -> dict[str, Any]:
    """Settings that all conditions have alike, where there are several conditions."""
    first = dict(rows[0].where) if rows else {}
    if all(dict(row.where) == first for row in rows):
        return {}
    return {name: value for name, value in first.items() if all(row.where.get(name) == value for row in rows)}


def _condition(where: dict[str, Any]) -> str:
    words = []
    for name, value in where.items():
        text = format_rate(value) if name == "learning_rate" else str(value)
        words.append(text if name in ("dataset", "method", "model") else f"{name.replace('_', ' ')} {text}")
    return ", ".join(words) or "all runs"


def _labels(rows: list[Checked]) -> dict[str, str]:
    """What each quantity is called in reports; its name where that has no label."""
    sets = {row.quantity.removeprefix("transfer_").rpartition("_zero_shot_")[0] for row in rows}
    known = {measure.name: measure.label for measure in outcomes(sorted(sets - {""}))}
    known |= {column.name: column.label for column in metric_columns("runs")}
    return {row.quantity: known.get(row.quantity, row.quantity.replace("_", " ")) for row in rows}


def _cells(row: Checked) -> list[str]:
    def text(value: float | None, sign: str = "") -> str:
        printed = "" if value is None else f"{value:{sign}.{row.digits}f}"
        # A rounded zero with a sign looks like a difference.
        return printed.lstrip("+-") if printed and float(printed) == 0 else printed

    def with_spread(mean: float | None, sd: float | None) -> str:
        return text(mean) + ("" if sd is None or mean is None else f" ± {sd:.{row.sd_digits}f}")

    verdict = row.verdict if row.found in (0, row.runs) else f"{row.verdict}, {row.found} of {row.runs} runs"
    numbers = [with_spread(row.published, row.published_sd), with_spread(row.ours, row.ours_sd)]
    return [*numbers, text(row.difference, "+"), text(row.tolerance), verdict]
