"""``attndrift figures``: the figures of a study."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from attndrift.cli.app import app
from attndrift.cli.console import (
    RESULTS,
    AnalysisOption,
    FolderArgument,
    JsonOption,
    OutputOption,
    example,
    need,
    print_json,
)
from attndrift.cli.reporting import analysed


@app.command(rich_help_panel=RESULTS, epilog=example("attndrift figures studies/collapse-21 --only pareto_front"))
def figures(
    folder: FolderArgument,
    output: OutputOption = None,
    only: Annotated[list[str] | None, typer.Option("--only", help="A figure's name. Repeatable.")] = None,
    settings: AnalysisOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw the figures of a study (PNG and SVG), each with the table that it shows."""
    need("report")
    from attndrift.figures.draw import draw_figures
    from attndrift.results.tables import read_tables

    analysis = analysed(folder, settings)
    drawn = draw_figures(read_tables(folder), output or folder / "figures", maps=folder, analysis=analysis, only=only)
    if as_json:
        print_json([dataclasses.asdict(figure) for figure in drawn])
        return
    for figure in drawn:
        typer.echo(f"{figure.name}: " + (f"left out, {figure.left_out}" if figure.left_out else str(figure.files[0])))
