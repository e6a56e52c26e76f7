"""The first section: what the study is, and what to know first."""

from __future__ import annotations

from collections import Counter

from attndrift.analysis.result import Analysis
from attndrift.report.blocks import Block, Bullets, Findings, Text
from attndrift.report.page import MANY_ROWS, Page
from attndrift.report.registry import section

STRENGTHS = ("supported", "no evidence", "descriptive")
_FIRST = 5


@section("summary", title="Summary", order=100)
def summary(page: Page) -> list[Block]:
    """How much there is, and the most important findings."""
    analysis, data = page.analysis, page.analysis.data
    counted: Counter[str] = Counter(finding.strength for finding in analysis.findings)
    strengths = ", ".join(f"{counted[name]} {name}" for name in STRENGTHS if counted[name])
    blocks: list[Block] = []
    if page.caution:
        blocks.append(Text(page.caution, warning=True))
    blocks += [
        Text(
            f"{data.n_runs} runs, of which {data.n_analysed} are analysed, in {data.n_configurations} configurations "
            f"({data.label}). Findings: {strengths or 'none'}."
        ),
        Bullets(
            [
                f"{label}: {', '.join(f'`{name}`' for name in names) or 'none'}"
                for label, names in (
                    ("Datasets", data.datasets),
                    ("Models", data.models),
                    ("Selections", data.selections),
                    ("Methods", data.methods),
                    ("Transfer sets", data.transfer_sets),
                )
            ]
        ),
        *_first(analysis),
        *([Bullets(analysis.notes)] if analysis.notes else []),
    ]
    if data.excluded:
        shown = [f"`{e.run_id}` ({e.status or 'no status'}): {e.reason}" for e in data.excluded[:MANY_ROWS]]
        hidden = len(data.excluded) - len(shown)
        if hidden:
            shown.append(f"and {hidden} more, listed in analysis.json")
        blocks += [Text("Not analysed:"), Bullets(shown)]
    return blocks


def _first(analysis: Analysis) -> list[Block]:
    """The findings to read first; each stands under its question again."""
    first = analysis.findings[:_FIRST]
    return [Text("What to know first:"), Findings(first)] if first else []
