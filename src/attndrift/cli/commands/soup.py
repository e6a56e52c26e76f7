"""``attndrift soup``: the mean weights of runs that differ in their seed or rate alone."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from attndrift.cli.app import app
from attndrift.cli.console import STUDIES, JsonOption, example, need, print_json
from attndrift.cli.reporting import collect_if_study


class Over(StrEnum):
    """What the runs of a soup differ in."""

    seed = "seed"
    learning_rate = "learning_rate"


@app.command(rich_help_panel=STUDIES, epilog=example("attndrift soup studies/seeds --over seed"))
def soup(
    folder: Annotated[Path, typer.Argument(help="The folder of a study with finished runs.")],
    over: Annotated[Over, typer.Option("--over", help="What the runs of a soup differ in.")] = Over.seed,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Leave out runs that lower the soup's validation accuracy.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Average the weights of runs that differ in seed or rate alone, and measure each soup as a run."""
    need("study", "report")
    from attndrift.study.soups import make_soups

    made = make_soups(folder, over.value, greedy=greedy, progress=lambda text: typer.echo(text, err=True))
    collect_if_study(folder)
    if as_json:
        print_json({"soups": [{name: one[name] for name in ("run_id", "parents", "used", "row")} for one in made]})
        return
    for one in made:
        accuracy = one["row"].get("test_accuracy")
        said = "" if accuracy is None else f", test accuracy {100 * accuracy:.2f}%"
        typer.echo(f"{one['run_id']}: of {len(one['used'])} runs{said}")
