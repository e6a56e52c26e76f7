"""What every command needs: exit codes, messages, JSON, and the options that several of them have."""

from __future__ import annotations

import errno
import json
import re
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from attndrift.plain_digits import decimal_number, whole_number

EXIT_PROBLEM = 1
EXIT_BAD_INPUT = 2
EXIT_CONDITION = 3
EXIT_DEFECT = 70
EXIT_INTERRUPTED = 130

STUDIES, RESULTS, MODELS, NAMES = "Studies", "Results", "Models", "Names"
"""The groups of commands, in the order of ``attndrift --help``."""

FolderArgument = Annotated[Path, typer.Argument(help="A study folder, or any folder that holds the tables.")]
FoldersArgument = Annotated[
    list[Path],
    typer.Argument(help="A study folder, or any folder that holds the tables; several are analysed as one study."),
]
WhereOption = Annotated[
    str | None,
    typer.Option(
        "--where",
        help="Only these runs, e.g. \"model == 'ViT-B/16' and learning_rate < 1e-4\": columns of the table runs.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
OutputOption = Annotated[Path | None, typer.Option("--output", "-o", help="Where to write.")]
AnalysisOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="NAME=VALUE of the analysis (docs/analysis-schema.md), e.g. level=0.9. Repeatable."),
]
OnlyOption = Annotated[
    list[str] | None, typer.Option("--only", help="A run's name or its label (E2, A1, ...). Repeatable.")
]

_NO_PLACE = {
    errno.ENOSPC: "make room, or choose another place with --output",
    errno.EDQUOT: "make room, or choose another place with --output",
    errno.EROFS: "make it writable, or choose another place with --output",
    errno.EPERM: "make it writable, or choose another place with --output",
    errno.EACCES: "make it writable, or choose another place with --output",
}


def number_option(*names: str, help: str, least: int = 0, decimal: bool = False) -> Any:
    """An option that takes a number of at least ``least``, in plain digits: not ``1_0``, ``nan`` or full-width digits."""

    def read(text: str) -> float:
        # A default comes as it is.
        try:
            value = (decimal_number if decimal else whole_number)(str(text))
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        if value < least:
            raise typer.BadParameter(f"{text} is not in the range x>={least}.")
        return value

    return typer.Option(
        *names, parser=read, metavar="FLOAT" if decimal else "INTEGER", help=f"{help} At least {least}."
    )


def example(text: str) -> str:
    """The last line of a command's help."""
    return f"Example:  [bold]{text}[/bold]"


def complain(message: object) -> None:
    """Print a message on stderr, in red, without secrets."""
    from attndrift.sanitize import sanitize

    typer.secho(f"attndrift: {sanitize(message)}", fg=typer.colors.RED, err=True)


def fail(message: str) -> NoReturn:
    """End the command with a message and exit code 1."""
    complain(message)
    raise typer.Exit(EXIT_PROBLEM)


def need(*extras: str) -> None:
    """End the command with the one line that installs what is missing of ``extras``, if anything is."""
    from attndrift.extras import require

    require(*extras, what="this command")


def say(message: str) -> None:
    """Print a line of progress on stderr, so that stdout holds results alone."""
    typer.echo(message, err=True)


def print_json(value: Any) -> None:
    """Print plain values as JSON."""
    from attndrift.files import plain

    # A name may hold bytes that are no text; in JSON they are escapes, as in the files.
    text = json.dumps(plain(value), indent=1, ensure_ascii=False)
    typer.echo(text.encode("utf-8", "backslashreplace").decode("utf-8"))


def remedy(error: BaseException) -> str:
    """What to do where a place cannot be written to, as the end of a message; empty for other errors."""
    if not isinstance(error, OSError):
        return ""
    # Arrow's errors have the number in their text alone.
    said = re.search(r"errno (\d+)", str(error), re.IGNORECASE)
    advice = _NO_PLACE.get(error.errno or int(said[1] if said else 0))
    return f". To go on, {advice}; nothing that was finished is lost, and the same command goes on" if advice else ""
