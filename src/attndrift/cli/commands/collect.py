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

    found = collect_study(folder)
    rows = {name: found.rows.get(name, 0) for name in ("runs", "history", "layers")}
    if as_json:
        print_json({**rows, "without_record": found.missing, "read": found.read})
        return
    typer.echo(f"{folder}: {rows['runs']} runs, {rows['history']} evaluations, {rows['layers']} layer values")
    if found.missing:
        typer.echo(f"not run yet, or not finished: {', '.join(found.missing)}")
