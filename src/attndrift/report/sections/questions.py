"""The pretrained model, and one section a research question: findings, figures, tables."""

from __future__ import annotations

from functools import partial

from attndrift.analysis.result import Table
from attndrift.report.blocks import Block, Bullets, Findings, Text
from attndrift.report.evidence import transfer_table
from attndrift.report.last_block import baseline_with_last_block
from attndrift.report.page import Page
from attndrift.report.registry import SECTIONS, SectionSpec, section
from attndrift.report.sections.summary import STRENGTHS


@section("baseline", title="Baseline: the pretrained model", order=200)
def baseline(page: Page) -> list[Block]:
    """The pretrained model before the first step."""
    known = page.analysis.tables
    first = baseline_with_last_block(known["baseline"], known["baseline_layers"])
    return [
        Text(
            "The pretrained model before the first step: mean and sample standard deviation over layers and "
            "heads, then layer by layer (standard deviation over heads), then head by head."
        ),
        *(page.block(table) for table in (first, known["baseline_layers"], known["baseline_heads"])),
        *page.figures("baseline"),
    ]


def _question(page: Page, key: str, tables: tuple[str, ...], statistics: tuple[str, ...]) -> list[Block]:
    """Findings, figures and ``tables`` of one question; ``statistics`` on them stand in a section of their own."""
    findings = sorted(
        (finding for finding in page.analysis.findings if finding.question.lower() == key),
        key=lambda finding: STRENGTHS.index(finding.strength),
    )
    blocks: list[Block] = [Findings(findings)] if findings else [Text("The tables hold nothing on this question.")]
    blocks += page.figures(key)
    if key == "rq3" and page.analysis.data.transfer_sets:
        blocks.append(page.block(transfer_table(page.analysis, page.tables, page.records)))
    empty: list[str] = []
    for name in tables:
        table = page.analysis.tables[name]
        if table.rows:
            blocks.append(page.block(table))
        else:
            empty.append(f"{table.title}: {_why_empty(table)}")
    if any(page.analysis.tables[name].rows for name in statistics):
        blocks.append(Text("The tests behind these sentences are under Statistics."))
    if empty:
        blocks += [Text("Tables without rows:"), Bullets(empty)]
    return blocks


def _why_empty(table: Table) -> str:
    """The notes that say why; the others explain columns that are not there."""
    return " ".join([note for note in table.notes if note.startswith("No ")] or table.notes) or "no rows."


def _register(key: str, order: int, question: str, tables: tuple[str, ...], statistics: tuple[str, ...] = ()) -> None:
    make = partial(_question, key=key, tables=tables, statistics=statistics)
    SECTIONS.register(SectionSpec(key, f"{key.upper()}: {question}", order, make))


_register(
    "rq1", 310, "Does fine-tuning reduce attention entropy?", ("change_per_layer", "dynamics", "timing", "dynamics_runs"),
    ("changes",),
)  # fmt: skip
_register(
    "rq2", 320, "How do the adaptation methods compare in structural preservation?",
    ("configurations", "operating_points", "operating_differences"), ("differences",),
)  # fmt: skip
_register(
    "rq3", 330, "How does structural drift relate to the loss of zero-shot transfer?",
    ("pareto", "early_warning", "interpolation", "interpolation_choice"), ("signals", "selection_rules"),
)  # fmt: skip
_register("rq4", 340, "Do preservation losses reduce the change while the accuracy is kept?", ("sweep_loss",))
_register(
    "rq5", 350, "Which hyperparameters matter most?",
    ("sweep_rate", "sweep_rank", "sweep_freezing", "sweep_targets", "sweep_weight_decay", "sweep_projection"),
    ("changes", "variance_components", "power"),
)  # fmt: skip
