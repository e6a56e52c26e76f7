"""``attndrift import``: foreign records into the tables."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from attndrift.cli.app import app
from attndrift.cli.console import RESULTS, JsonOption, example, need, print_json


@app.command(
    "import",
    rich_help_panel=RESULTS,
    epilog=example(
        "attndrift import their-results/ --output imported --rename lr=learning_rate --scale test_accuracy=0.01"
    ),
)
def import_(
    tables: Annotated[
        list[Path],
        typer.Argument(help="A folder, or files: runs, history, layers, interpolation as Parquet, CSV, TSV or JSON."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the tables; must not hold tables.")],
    rename: Annotated[
        list[str] | None, typer.Option("--rename", help="THEIRS=OURS: a column's name. Repeatable.")
    ] = None,
    scale: Annotated[
        list[str] | None, typer.Option("--scale", help="COLUMN=FACTOR, e.g. percent to 0..1: =0.01. Repeatable.")
    ] = None,
    null: Annotated[
        list[str] | None, typer.Option("--null", help="A word that means null in any column. Repeatable.")
    ] = None,
    values: Annotated[
        list[str] | None, typer.Option("--map", help="COLUMN:THEIRS=OURS: a value's name. Repeatable.")
    ] = None,
    constants: Annotated[
        list[str] | None, typer.Option("--set", help="COLUMN=VALUE: a column with one value. Repeatable.")
    ] = None,
    decimal: Annotated[str | None, typer.Option("--decimal", help="How decimals are written: point or comma.")] = None,
    number_rows: Annotated[
        bool, typer.Option("--number-rows", help="Name runs that have no name by the number of their row.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Say what would come in and what is missing; write nothing.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace tables that are in the folder.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring foreign records into the tables, checking columns, types and units."""
    need("report")
    from attndrift.importing import options as said
    from attndrift.importing.importer import import_tables

    options = said.ImportOptions(
        rename=said.parse_renames(rename or []),
        scale=said.parse_scales(scale or []),
        values=said.parse_values(values or []),
        constants=said.parse_constants(constants or []),
        nulls=null or (),
        decimal=said.parse_decimal(decimal),
        number_rows=number_rows,
    )
    report = import_tables(
        tables[0] if len(tables) == 1 else tables,
        output,
        options,
        check_only=check,
        overwrite=overwrite,
    )
    if as_json:
        print_json(dataclasses.asdict(report))
    else:
        typer.echo(str(report))
