"""A section of the report, of the metric of this package."""

from __future__ import annotations

from attndrift.report.blocks import Block, Text
from attndrift.report.page import Page
from attndrift.report.registry import section


@section("shares", title="Largest shares", order=450)
def shares(page: Page) -> list[Block]:
    """One sentence; the figures of the section follow it."""
    said = f"{len(page.tables.runs)} runs tell how much of the attention one patch has."
    return [Text(said), *page.figures("shares")]
