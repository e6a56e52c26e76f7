"""``attndrift show``: a study or one run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attndrift.cli.app import app
from attndrift.cli.console import STUDIES, JsonOption, example, print_json


@app.command(rich_help_panel=STUDIES, epilog=example("attndrift show studies/demo"))
def show(
    folder: Annotated[Path, typer.Argument(help="A study folder, or the folder of a run.")], as_json: JsonOption = False
) -> None:
    """Show a study's runs, or one run: settings, outcome, drift and transfer."""
    from attndrift.cli.showing import describe_run, describe_study, print_run, print_study
    from attndrift.study.collect import STUDY

    if (folder / STUDY).is_file():
        runs = describe_study(folder)
        print_json(runs) if as_json else print_study(runs)
        return
    described = describe_run(folder)
    if as_json:
        print_json(described)
    else:
        print_run(described)
