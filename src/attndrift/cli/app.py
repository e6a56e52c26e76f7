"""The application that the commands register with."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from attndrift.registry import unknown_name
from attndrift.version import __version__


class _Commands(TyperGroup):
    """The commands; an unknown one gets the hint that every unknown name gets."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            ctx.fail(unknown_name("command", args[0], self.commands, "`attndrift --help` shows every command"))
        return super().resolve_command(ctx, args)


app = typer.Typer(
    name="attndrift",
    cls=_Commands,
    help="See what fine-tuning does to CLIP: its attention, representation, weights and zero-shot transfer.",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Read before every command: ``--version`` ends here."""
