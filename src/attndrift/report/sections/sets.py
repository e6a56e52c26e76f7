"""Retention over many transfer sets, where there are several."""

from __future__ import annotations

from attndrift.report.blocks import Block
from attndrift.report.page import Page
from attndrift.report.registry import section


@section("sets", title="Retention over transfer sets", order=150)
def sets(page: Page) -> list[Block]:
    """Targets by sets, accuracy against the mean over each suite, and the table of means and worst sets."""
    table = page.analysis.tables.get("suites")
    return [] if table is None else [*page.figures("sets"), page.block(table)]
