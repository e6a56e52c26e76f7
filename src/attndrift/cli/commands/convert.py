"""``attndrift convert``: pickled weights to safetensors."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from attndrift.cli.app import app
from attndrift.cli.console import MODELS, JsonOption, example, print_json


@app.command(rich_help_panel=MODELS, epilog=example("attndrift convert openai/clip-vit-large-patch14-336 clip-l14-336"))
def convert(
    model: Annotated[str, typer.Argument(help="NAME or NAME@REVISION on the hub, or a folder, with pickled weights.")],
    folder: Annotated[Path, typer.Argument(help="The new model folder; must not be there yet.")],
    time_limit: Annotated[str, typer.Option("--time-limit", help="End the reading after this time.")] = "30m",
    as_json: JsonOption = False,
) -> None:
    """Convert pickled weights to safetensors, in a process of its own, and check that every tensor is equal."""
    from attndrift.models.convert import convert as convert_model
    from attndrift.study.check_findings import counted
    from attndrift.study.time_limit import parse_time

    found = convert_model(model, folder, seconds=parse_time(time_limit))
    if as_json:
        print_json(dataclasses.asdict(found))
    else:
        commit = "" if found.commit is None else f" at commit {found.commit}"
        held = f"{counted(found.tensors, 'tensor')}, {found.bytes:,} bytes, equal to those of {model}{commit}"
        typer.echo(f"{found.folder}: {held}")
