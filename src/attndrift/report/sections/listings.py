"""What is looked up rather than read: drift over time, attention maps, all runs; tables and figures in the appendix."""

from __future__ import annotations

from dataclasses import replace

from attndrift.report.blocks import Block, Bullets, Findings, Text, View, table_block
from attndrift.report.evidence import transfer_table
from attndrift.report.page import FIRST_FIGURES, Page
from attndrift.report.registry import section

_FIRST_COLUMNS = (
    "variant", "learning_rate", "test_accuracy", "entropy_change_pct", "entropy_last_layer_change_pct", "cka_mean",
    "embedding_drift", "dataset", "seed", "run_id",
)  # fmt: skip
"""Columns of the table of runs that are shown at first, with every retention between accuracy and entropy."""
_MOST_RUNS = 2000


@section("drift", title="Drift over time", order=200)
def drift(page: Page) -> list[Block]:
    """Curves of all methods, and each block of a run that the reader chooses."""
    figure = page.figure("training_dynamics")
    return [*([figure] if figure else []), View("heatmap")]


@section("warning", title="What warned, and what preservation bought", order=250)
def warning(page: Page) -> list[Block]:
    """The signals by their correlation with retention, and the preservation losses."""
    found = (page.figure(name) for name in FIRST_FIGURES[2:])
    return [figure for figure in found if figure is not None]


@section("maps", title="Attention maps before and after", order=300)
def maps(page: Page) -> list[Block]:
    """What the HTML lets a reader choose."""
    return [View("maps")]


@section("runs", title="All runs", order=500)
def runs(page: Page) -> list[Block]:
    """Every run: results first, then settings."""
    table = page.analysis.tables["runs"]
    kept = [column.name for column in table.columns if column.name.endswith("_retention_pct")]
    first = [*_FIRST_COLUMNS[:3], *kept, *_FIRST_COLUMNS[3:7]]
    known = {column.name: column for column in table.columns}
    order = [name for name in (*first, *_FIRST_COLUMNS[7:]) if name in known]
    order += [name for name in known if name not in order]
    table = table.model_copy(update={"columns": [known[name] for name in order], "notes": []})
    block = table_block(table, limit=_MOST_RUNS, shown=(*first, *_FIRST_COLUMNS[7:]))
    return [replace(block, kind="runs")]


@section("all-findings", title="Further findings", order=600, appendix=True)
def all_findings(page: Page) -> list[Block]:
    """What the analysis says beside the five findings."""
    return [Findings(page.analysis.findings)] if page.analysis.findings else []


@section("tables", title="Tables", order=610, appendix=True)
def tables(page: Page) -> list[Block]:
    """Every table of the analysis that has rows; those of one seed carry no uncertainty between seeds."""
    known = page.analysis.tables
    filled = [table for name, table in known.items() if table.rows and name != "runs"]
    blocks: list[Block] = [page.block(table) for table in filled]
    if page.analysis.data.transfer_sets:
        blocks.append(page.block(transfer_table(page.analysis, page.tables, page.records), written=False))
    empty = [table for table in known.values() if not table.rows]
    if empty:
        names = ", ".join(f"`{table.name}`" for table in empty)
        blocks.append(
            Text(f"{len(empty)} tables have no rows, because the runs are too few or hold nothing of them: {names}.")
        )
    return blocks


_QUESTIONS = ("baseline", "rq1", "rq2", "rq3", "rq4", "rq5", "figures")


@section("figures", title="Further figures", order=700, appendix=True)
def figures(page: Page) -> list[Block]:
    """Figures of no section of the body, and why others were left out."""
    blocks: list[Block] = [figure for name in _QUESTIONS for figure in page.figures(name)]
    blocks += [figure for figure in page.further_figures() if figure not in blocks and figure.name not in FIRST_FIGURES]
    if page.left_out:
        blocks += [Text("Not on this page:"), Bullets([f"`{name}`: {reason}" for name, reason in page.left_out])]
    return blocks


@section("excluded", title="Runs that are not analysed, and notes", order=720, appendix=True)
def excluded(page: Page) -> list[Block]:
    """Each excluded run with its reason, and the notes of the analysis."""
    told = [f"`{e.run_id}` ({e.status or 'no status'}): {e.reason}" for e in page.analysis.data.excluded[:_MOST_RUNS]]
    return [Bullets([*told, *page.analysis.notes])] if told or page.analysis.notes else []
