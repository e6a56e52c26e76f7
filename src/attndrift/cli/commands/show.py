"""``attndrift show``: a study or one run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attndrift.cli.app import app
from attndrift.cli.console import STUDIES, JsonOption, example, print_json


@app.command(rich_help_panel=STUDIES, epilog=example("attndrift show studies/demo/runs/E2_tiles_full_lr3e-4_s42"))
def show(run_folder: Annotated[Path, typer.Argument(help="The folder of a run.")], as_json: JsonOption = False) -> None:
    """Show one run: settings, outcome, drift and transfer."""
    from attndrift.cli.show_run import describe_run, print_run

    described = describe_run(run_folder)
    if as_json:
        print_json(described)
    else:
        print_run(described)
