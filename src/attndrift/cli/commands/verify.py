"""``attndrift verify``: a study's results beside published values."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attndrift.cli.app import app
from attndrift.cli.console import (
    EXIT_BAD_INPUT,
    EXIT_CONDITION,
    RESULTS,
    JsonOption,
    complain,
    example,
    need,
    print_json,
)


@app.command(
    rich_help_panel=RESULTS, epilog=example("attndrift verify dose-response-84 --results studies/dose-response-84")
)
def verify(
    study: Annotated[
        str,
        typer.Argument(
            metavar="PRESET", help="A preset with published values, or a study file with NAME.expected.yaml beside it."
        ),
    ],
    results: Annotated[
        Path | None,
        typer.Option("--results", help="A study folder, or any folder of tables. [default: studies/PRESET]"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare results with published values: published, ours, difference, within tolerance or not, and what is missing.

    Exit code 3: something is out of tolerance. 2: the preset has no published values, there are no results, or nothing
    could be compared.
    """
    need("report")
    from attndrift.analysis.verification import verify as verify_results
    from attndrift.cli.reporting import collect_if_study
    from attndrift.cli.verification_table import print_verification
    from attndrift.results.tables import read_tables
    from attndrift.study.expected_values import expected_values
    from attndrift.study.loading import load_study

    try:
        expected, planned = expected_values(study), load_study(study)
        folder = results or Path("studies") / planned.name
        if results is None and not folder.is_dir():
            raise ValueError(
                f"{folder}: no results are there. `attndrift run {study}` makes them, --results names another folder"
            )
        collect_if_study(folder)
        found = verify_results(planned, expected, read_tables(folder, names=("runs",)))
    except (ValueError, OSError) as error:
        complain(error)
        raise typer.Exit(EXIT_BAD_INPUT) from None
    if as_json:
        print_json({"results": str(folder)} | found.to_json())
    else:
        print_verification(found)
    if found.out_of_tolerance:
        raise typer.Exit(EXIT_CONDITION)
    if found.nothing_compared:
        complain(
            f"nothing was compared: {folder} has no number that any of the {len(found.rows)} published values can be "
            f"compared with, and the verdicts say why. `attndrift run {study}` makes results, --results names others"
        )
        raise typer.Exit(EXIT_BAD_INPUT)
