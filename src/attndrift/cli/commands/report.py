"""``attndrift report``: the report of a study."""

from __future__ import annotations

import typer

from attndrift.cli.app import app
from attndrift.cli.console import (
    RESULTS,
    AnalysisOption,
    FoldersArgument,
    JsonOption,
    OutputOption,
    WhereOption,
    example,
    need,
    print_json,
)
from attndrift.cli.reporting import output_for, report_on


@app.command(rich_help_panel=RESULTS, epilog=example("attndrift report studies/collapse-21"))
def report(
    folders: FoldersArgument,
    output: OutputOption = None,
    where: WhereOption = None,
    settings: AnalysisOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write report.md and a self-contained report.html, with the figures and every statistic."""
    need("report")
    _, drawn, (markdown, html) = report_on(folders, output_for(folders, output), settings, where=where)
    if as_json:
        print_json({"markdown": markdown, "html": html, "figures": [figure.name for figure in drawn]})
    else:
        typer.echo(f"{markdown}\n{html}")
