"""``attndrift list``: what is known by name."""

from __future__ import annotations

from typing import Annotated

import typer

from attndrift.cli.app import app
from attndrift.cli.console import NAMES, JsonOption, example, fail, print_json


@app.command("list", rich_help_panel=NAMES, epilog=example("attndrift list presets"))
def list_(
    what: Annotated[str, typer.Argument(help="models, datasets, metrics, methods or presets; default: all.")] = "all",
    as_json: JsonOption = False,
) -> None:
    """List what is known by name: models, datasets, metrics, methods and presets."""
    from attndrift.cli.catalogue import catalogue, print_catalogue

    found = catalogue()
    if what != "all":
        if what not in found:
            fail(f"nothing is listed as {what!r}; choose from {', '.join(found)}")
        found = {what: found[what]}
    if as_json:
        print_json(found)
    else:
        print_catalogue(found)
