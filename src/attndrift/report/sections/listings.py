"""What is looked up rather than read: layers and maps, all runs, all statistics, further figures."""

from __future__ import annotations

from attndrift.report.blocks import Block, Bullets, Text, View, table_block
from attndrift.report.last_block import by_run, with_last_blocks
from attndrift.report.page import Page
from attndrift.report.registry import section

SETS = ("transfer_agreement", "damage", "corruption", "reported_means", "reported_differences")
"""Tables of the analysis that a study has or has not."""


@section("sets", title="Test sets, damaged runs, reported means", order=380)
def sets(page: Page) -> list[Block]:
    """What a study holds of several test sets, and of rows that are means already."""
    return [page.block(page.analysis.tables[name]) for name in SETS if name in page.analysis.tables]


@section("explore", title="Layers and attention maps", order=400)
def explore(page: Page) -> list[Block]:
    """What the HTML lets a reader choose."""
    return [View("heatmap"), View("maps")]


@section("runs", title="All runs", order=500)
def runs(page: Page) -> list[Block]:
    """Every run."""
    table = with_last_blocks(page.analysis.tables["runs"], by_run(page.tables), "run_id")
    # The page sorts the whole table; a printed one of thousands of rows serves nobody.
    return [View("runs"), table_block(table, caution=page.caution, limit=max(page.row_limit, 2000), sortable=True)]


STATISTICS = (
    "differences",
    "changes",
    "variance_components",
    "power",
    "signals",
    "signal_differences",
    "partial_associations",
    "selection_rules",
)


@section("statistics", title="Statistics", order=600)
def statistics(page: Page) -> list[Block]:
    """Every test and interval."""
    blocks: list[Block] = [Text("The replicates are seeds: an interval says what other seeds would give.")]
    for table in (page.analysis.tables[name] for name in STATISTICS):
        empty = Text(f"{table.title}: no rows; the data does not allow it.")
        blocks.append(page.block(table, folded=True) if table.rows else empty)
    return blocks


@section("figures", title="Further figures", order=700)
def figures(page: Page) -> list[Block]:
    """Figures of no other section, and why others were left out."""
    blocks: list[Block] = [*page.figures("figures"), *page.further_figures()]
    if page.left_out:
        blocks += [Text("Figures left out:"), Bullets([f"`{name}`: {reason}" for name, reason in page.left_out])]
    return blocks
