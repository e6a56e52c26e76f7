"""The first screen: verdict, caveats, the front of accuracy and retention, a table of methods, five findings."""

from __future__ import annotations

from attndrift.analysis.digest import OVERVIEW_HEADINGS, overview_rows
from attndrift.analysis.measures import LAST_LAYER
from attndrift.analysis.result import Table
from attndrift.report.blocks import Block, Findings, Overview
from attndrift.report.page import Page
from attndrift.report.registry import section

_NOTE = "Bold: best validation (test, where there is none). Redder: further from the best accuracy, or from the pretrained model."
_STEPS = 5


@section("summary", title="Summary", order=100)
def summary(page: Page) -> list[Block]:
    """What a reader knows after ten seconds."""
    first, table = page.analysis.digest, page.analysis.tables["overview"]
    over = {row["over"] for row in table.rows} - {""}
    interval = (
        f" [low, high]: {page.analysis.settings.level:.0%} interval over {', '.join(sorted(over))}." if over else ""
    )
    note = f"Retention: share of the pretrained accuracy on the transfer set.{interval} Entropy: change of attention entropy. CKA: 1 is the pretrained representation. {_NOTE}"
    blocks: list[Block] = [
        Overview(first.verdict, first.caveats, OVERVIEW_HEADINGS, overview_rows(table), _tints(table), note,
                 page.figure("pareto_front"))
    ]  # fmt: skip
    return [*blocks, Findings(first.findings)] if first.findings else blocks


def _tints(table: Table) -> list[list[int]]:
    """0..5 for each printed cell: how far it is from the best accuracy, or from the pretrained model."""
    top = max((row["test_accuracy"] for row in table.rows if row["test_accuracy"] is not None), default=0.0)
    far = {
        "test_accuracy": lambda value: (top - value) / 25.0,
        "retention_pct": lambda value: (100.0 - value) / 100.0,
        "entropy_change_pct": lambda value: abs(value) / 20.0,
        LAST_LAYER: lambda value: abs(value) / 40.0,
        "cka_mean": lambda value: (1.0 - value) / 0.5,
    }

    def tint(name: str, value: float | None) -> int:
        return 0 if value is None else max(0, min(_STEPS, round(_STEPS * far[name](value))))

    return [[0, 0, *(tint(name, row[name]) for name in far)] for row in table.rows]
