"""``attndrift analyze``: the statistics of a study."""

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
    say,
)
from attndrift.cli.digest import print_digest
from attndrift.cli.reporting import load, output_for


@app.command(
    rich_help_panel=RESULTS,
    epilog=example("attndrift analyze studies/a studies/b --where \"method != 'linear_probe'\" --output both"),
)
def analyze(
    folders: FoldersArgument,
    output: OutputOption = None,
    where: WhereOption = None,
    settings: AnalysisOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compute the statistics of a study, or of several: analysis.json, and tables as CSV, Markdown and LaTeX."""
    need("report")
    from attndrift.analysis.storing import write_analysis

    target = output_for(folders, output)
    analysis = load(folders, settings, where, whole=False).analysis.result
    paths = write_analysis(analysis, target)
    if as_json:
        typer.echo(analysis.to_json(), nl=False)
        return
    print_digest(analysis)
    say(f"{len(paths)} files below {target}")
