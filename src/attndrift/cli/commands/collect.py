"""``attndrift collect``: the tables of a study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attndrift.cli.app import app
from attndrift.cli.console import STUDIES, JsonOption, example, need, print_json


@app.command(rich_help_panel=STUDIES, epilog=example("attndrift collect studies/collapse-21"))
def collect(folder: Annotated[Path, typer.Argument(help="A study folder.")], as_json: JsonOption = False) -> None:
    """Write the tidy tables (Parquet) of a study from its run folders."""
    need("study")
    from attndrift.study.collect import collect as collect_study

    tables, missing = collect_study(folder)
    if as_json:
        print_json({"runs": len(tables.runs), "history": len(tables.history), "layers": len(tables.layers),
                     "without_record": missing})  # fmt: skip
        return
    typer.echo(
        f"{folder}: {len(tables.runs)} runs, {len(tables.history)} evaluations, {len(tables.layers)} layer values"
    )
    if missing:
        typer.echo(f"not run yet, or not finished: {', '.join(missing)}")
