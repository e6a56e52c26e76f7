"""``attndrift calibrate``: alerts that a study's own runs have taught."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attndrift.cli.app import app
from attndrift.cli.console import (
    RESULTS,
    FoldersArgument,
    JsonOption,
    WhereOption,
    example,
    fail,
    need,
    print_json,
)
from attndrift.cli.reporting import collect_if_study, output_for


@app.command(rich_help_panel=RESULTS, epilog=example("attndrift calibrate studies/collapse-21 --below 80"))
def calibrate(
    folders: FoldersArgument,
    below: Annotated[
        float, typer.Option("--below", min=1.0, max=100.0, help="Retention (percent) that is to be warned of.")
    ] = 80.0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File for the alerts; default: alerts.json in the folder.")
    ] = None,
    every: Annotated[
        bool, typer.Option("--every-signal", help="An alert a signal, not only the best of each dataset.")
    ] = False,
    where: WhereOption = None,
    as_json: JsonOption = False,
) -> None:
    """Learn from a study which value of which signal warned of lost transfer; writes alerts for other trainings."""
    need("report")
    from attndrift.analysis.alert_rules import alert_rules, describe_alert, write_alert_rules
    from attndrift.analysis.joined import load_studies

    path = output or output_for(folders, None) / "alerts.json"
    for folder in folders:
        collect_if_study(folder)
    rules = alert_rules(load_studies(folders, where).tables, below, every=every)
    if rules["alerts"]:
        write_alert_rules(rules, path, [str(folder) for folder in folders])
    if as_json:
        print_json(rules)
    else:
        for line in [*map(describe_alert, rules["alerts"]), *rules["notes"]]:
            typer.echo(line)
    if not rules["alerts"]:
        fail(
            f"no alert could be learned for a retention below {below:g}%; try another --below, or a study with more runs"
        )
    if not as_json:
        for line in rules["promises_not"]:
            typer.echo(line)
        typer.echo(f'{path}: DriftWatch(monitor, alerts=read_alerts("{path}")), with read_alerts of attndrift.drift')
