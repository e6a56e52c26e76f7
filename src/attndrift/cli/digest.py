"""The first screen of a report in a terminal: verdict, caveats, table and findings, in 80 columns."""

from __future__ import annotations

import textwrap
from typing import Any

import typer

from attndrift.sanitize import sanitize_line

WIDTH = 80


def print_digest(analysis: Any) -> None:
    """Print what the page of a report shows first, and nothing else."""
    from attndrift.analysis.digest import overview_rows

    first = analysis.digest
    typer.secho(_wrapped(first.verdict), bold=True)
    if first.caveats:
        typer.echo(_wrapped("Note: " + " ".join(first.caveats)))
    rows = overview_rows(analysis.tables["overview"])
    if rows:
        typer.echo()
        headings = ["Method", "Rate", "Test %", "Retention %", "Entropy", "Last", "CKA"]
        widths = [
            max(len(row[place]) for row in (headings, *(one.cells for one in rows))) for place in range(len(headings))
        ]
        typer.echo(_line(headings, widths))
        for row in rows:
            typer.secho(_line(row.cells, widths), bold=row.best)
        typer.echo(_wrapped(_KEY))
    if first.findings:
        typer.echo()
    for place, finding in enumerate(first.findings, 1):
        typer.echo(_wrapped(f"{place}. {finding.sentence}", indent="   "))


_KEY = (
    "Test: accuracy. Retention: of the pretrained accuracy. Entropy, last: its change in %, all blocks and the last. "
    "Bold: best validation (or test)."
)


def _line(cells: Any, widths: list[int]) -> str:
    parts = [
        text.ljust(width) if place == 0 else text.rjust(width)
        for place, (text, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return sanitize_line("  ".join(parts).rstrip())


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(
        sanitize_line(text), WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
