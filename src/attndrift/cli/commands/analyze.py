"""``attndrift analyze``: the statistics of a study."""

from __future__ import annotations

import typer

from attndrift.cli.app import app
from attndrift.cli.console import RESULTS, AnalysisOption, FolderArgument, JsonOption, OutputOption, example, need
from attndrift.cli.reporting import analysed


@app.command(
    rich_help_panel=RESULTS, epilog=example("attndrift analyze studies/collapse-21 --set damaged_below_pct=60")
)
def analyze(
    folder: FolderArgument, output: OutputOption = None, settings: AnalysisOption = None, as_json: JsonOption = False
) -> None:
    """Compute the statistics of a study: analysis.json, and tables as CSV, Markdown and LaTeX."""
    need("report")
    from attndrift.analysis.storing import write_analysis

    analysis = analysed(folder, settings)
    target = output or folder
    paths = write_analysis(analysis, target)
    if as_json:
        typer.echo(analysis.to_json(), nl=False)
        return
    for finding in analysis.findings:
        typer.echo(f"[{finding.question}] {finding.sentence}")
    typer.echo(f"{len(paths)} files below {target}")
