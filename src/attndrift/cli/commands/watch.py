"""``attndrift watch``: how a study stands, while it runs."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from attndrift.cli.app import app
from attndrift.cli.console import STUDIES, JsonOption, example, need, print_json
from attndrift.cli.study_options import is_s3


@app.command(rich_help_panel=STUDIES, epilog=example('attndrift watch studies/demo --threshold "cka_mean<0.9"'))
def watch(
    study: Annotated[str, typer.Argument(help="A study folder, or a URL (s3://...).")],
    html: Annotated[Path | None, typer.Option("--html", help="Write one page that refreshes itself here.")] = None,
    every: Annotated[float, typer.Option("--every", min=1.0, help="Seconds between two looks.")] = 5.0,
    threshold: Annotated[
        list[str] | None, typer.Option("--threshold", help='Mark where it holds: "cka_mean<0.9". Repeatable.')
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Look once, and end.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Watch a study while it runs, here or elsewhere: accuracy, retention and drift of each run."""
    need("study", *(["s3"] if is_s3(study) else []), *(["report"] if html else []))
    from rich.console import Console
    from rich.live import Live

    from attndrift.cli.watch_table import iter_changes, watch_table
    from attndrift.compare.conditions import parse_condition
    from attndrift.study.watch import StudyWatch, WatchedStudy, watched_columns

    thresholds = [parse_condition(text, watched_columns(), "--threshold") for text in threshold or []]
    console = Console()
    with StudyWatch(study, thresholds) as source:

        def read() -> WatchedStudy:
            found = source.read()
            if html:
                from attndrift.report.watch_page import write_watch_page

                write_watch_page(found, html, every=every, thresholds={one.name: one.number for one in thresholds})
            return found

        found = read()
        if as_json:
            print_json(asdict(found))
            return
        if html:
            typer.echo(html)
        if once or found.done:
            console.print(watch_table(found, console))
            return
        if not console.is_terminal:  # a log gets a line when something has changed
            for line in iter_changes(found, read, every):
                typer.echo(line)
            return
        with Live(watch_table(found, console), console=console, auto_refresh=False) as live:
            while not found.done:
                time.sleep(every)
                found = read()
                live.update(watch_table(found, console), refresh=True)
