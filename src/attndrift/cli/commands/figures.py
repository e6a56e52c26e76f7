"""``attndrift figures``: the figures of a study."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

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
from attndrift.cli.reporting import draw, drawers_for, load, output_for


@app.command(
    rich_help_panel=RESULTS,
    epilog=example("attndrift figures studies/collapse-21 --format pdf --width 85mm --only pareto_front"),
)
def figures(
    folders: FoldersArgument,
    output: OutputOption = None,
    form: Annotated[
        list[str] | None, typer.Option("--format", help="png, svg or pdf; default: png and svg. Repeatable.")
    ] = None,
    width: Annotated[
        str, typer.Option("--width", help="Of each figure: 85mm, 17cm, 3.3in; type keeps its size.")
    ] = "85mm",
    only: Annotated[list[str] | None, typer.Option("--only", help="A figure's name. Repeatable.")] = None,
    where: WhereOption = None,
    settings: AnalysisOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw the figures of a study (PNG, SVG or PDF), each with the table that it shows."""
    need("report")
    target = output_for(folders, output)
    target = target if output else target / "figures"
    with drawers_for(target, only=only) as drawers:
        # Here, as other processes start meanwhile.
        from attndrift.figures.canvas import parse_width
        from attndrift.figures.draw import DEFAULT_FORMATS

        options: dict[str, Any] = {"only": only, "formats": form or DEFAULT_FORMATS, "width": parse_width(width)}
        drawn = draw(load(folders, settings, where), target, drawers, **options)
    if as_json:
        print_json([dataclasses.asdict(figure) for figure in drawn])
        return
    for figure in drawn:
        typer.echo(f"{figure.name}: " + (f"left out, {figure.left_out}" if figure.left_out else str(figure.files[0])))
