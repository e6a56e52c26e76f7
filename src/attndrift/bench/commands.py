"""``attndrift bench``: one command a benchmark. Parse, call, print; each benchmark is a file beside this one.

A benchmark returns a :class:`attndrift.bench.result.Result`, and its command here hands that to ``_deliver``.
Nothing that is slow to import is imported before a command runs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from attndrift.bench.result import Result

app = typer.Typer(
    name="bench",
    help="Measure costs as ratios against a named alternative, in one run.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    epilog="Example:  [bold]attndrift bench capture --pairs 15 --json[/bold]",
)

PairsOption = Annotated[int, typer.Option("--pairs", min=3, help="Interleaved pairs; medians are over these.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
OutputOption = Annotated[Path | None, typer.Option("--output", "-o", help="Also write the result to this JSON file.")]


def _deliver(result: Result, output: Path | None, as_json: bool) -> None:
    """Write the result where that was asked for, and print it."""
    from attndrift.bench.result import print_result, write_result
    from attndrift.files import plain

    found = result.to_json()
    if output is not None:
        write_result(found, output)
    if as_json:
        typer.echo(json.dumps(plain(found), indent=1, ensure_ascii=False))
    else:
        print_result(found)


def _say(line: Any) -> None:
    """Progress, beside the result."""
    typer.echo(line, err=True)


@app.command(epilog="Example:  [bold]attndrift bench capture --pairs 15 --json[/bold]")
def capture(
    model: Annotated[str, typer.Option("--model", help="The model to observe.")] = "config:vit-base-patch32",
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images a forward pass.")] = 32,
    pairs: PairsOption = 7,
    output: OutputOption = None,
    as_json: JsonOption = False,
) -> None:
    """What observing costs: the forward pass with all four metrics, against the bare one and against eager maps."""
    from attndrift.bench.capture import capture as measure

    _deliver(measure(model=model, batch=batch, pairs=pairs), output, as_json)


@app.command(epilog="Example:  [bold]attndrift bench analysis --runs 1000[/bold]")
def analysis(
    runs: Annotated[int, typer.Option("--runs", min=100, help="Runs of the synthetic study.")] = 10_000,
    pairs: PairsOption = 3,
    output: OutputOption = None,
    as_json: JsonOption = False,
) -> None:
    """What the analysis of a large study costs, in time and memory, against a plain one."""
    from attndrift.bench.analysis import analysis as measure

    _deliver(measure(runs=runs, pairs=pairs, progress=_say), output, as_json)
