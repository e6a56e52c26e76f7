"""``attndrift list``: what is known by name."""

from __future__ import annotations

from typing import Annotated

import typer

from attndrift.cli.app import app
from attndrift.cli.console import NAMES, JsonOption, example, fail, print_json


@app.command("list", rich_help_panel=NAMES, epilog=example("attndrift list presets"))
def list_(
    what: Annotated[
        str, typer.Argument(help="One kind, such as models, datasets, metrics, methods, presets; default: all.")
    ] = "all",
    as_json: JsonOption = False,
) -> None:
    """List what is known by name: models, datasets, metrics, methods, presets, and what packages add."""
    from attndrift.cli.catalogue import KINDS, catalogue, print_catalogue
    from attndrift.registry import unknown_name

    if what != "all" and what not in KINDS:
        fail(unknown_name("kind of names", what, KINDS, "`attndrift list` shows all of them"))
    found = catalogue(KINDS if what == "all" else [what])
    if as_json:
        print_json(found)
    else:
        print_catalogue(found)
