"""``attndrift run``: a study, or what it would do."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from attndrift.cli.app import app
from attndrift.cli.console import STUDIES, JsonOption, example, fail, need, print_json, say
from attndrift.cli.launching import launch
from attndrift.cli.study_options import PROCESSES, StudyOptions, with_study_options

if TYPE_CHECKING:
    from attndrift.study.check_findings import Check
    from attndrift.study.settings import Study


@app.command(
    rich_help_panel=STUDIES,
    epilog=example("attndrift run collapse-21 --dataset pets=critters --set model=embedded --set epochs=3"),
)
@with_study_options
def run(
    asked: StudyOptions,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the study, print the runs, their size and cost; run nothing.")
    ] = False,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="Object store: replace the driver that works on the study there.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print every evaluation.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a study; what is done already is kept, what was interrupted goes on."""
    need(*asked.extras())
    from attndrift.sanitize import sanitize_line
    from attndrift.study.check import check_study, fetch_downloads
    from attndrift.study.check_findings import counted, download_lines, problem_message

    study, options = asked.load(), asked.launching()
    where = asked.folder(study)
    # Of the processes of a launcher the first alone checks, speaks and downloads; the others wait for it.
    if int(os.environ.get("RANK", "0")) == 0:
        found = check_study(study, where, engine=asked.engine, options=options)
        if found.out_of_reach or (found.problems and not dry_run):
            fail(problem_message(found))
        for line in [*found.left_out, *download_lines(found)]:
            say(line)
        if dry_run:
            _dry_run(study, found, elsewhere=asked.engine != PROCESSES, as_json=as_json)
            return
        if asked.engine == PROCESSES:
            # Once and here: several processes would download the same files, and fail one after the other.
            fetch_downloads(study, found)
    outcome = launch(study, where, engine=asked.engine, options=options, take_over=take_over, verbose=verbose)
    if as_json:
        print_json({"folder": where, "runs": outcome.statuses})
    else:
        counts = ", ".join(f"{outcome.count(s)} {s}" for s in dict.fromkeys(outcome.statuses.values()))
        written = ", ".join(f"{name}.parquet" for name in outcome.tables)
        typer.echo(sanitize_line(f"{where}: {counts}. Tables: {written}"))
    if outcome.count("failed"):
        names = [name for name, status in outcome.statuses.items() if status == "failed"]
        fail(f"{counted(len(names), 'run')} failed ({', '.join(names[:3])}); see log.txt in {where}/runs")


def _dry_run(study: Study, found: Check, *, elsewhere: bool, as_json: bool) -> None:
    """Print the runs. Exit code 1 where the study, or one of its runs, cannot run."""
    from attndrift.study.check_findings import counted, problem_message
    from attndrift.study.plan import plan, print_plan

    planned = plan(study, elsewhere=elsewhere)
    if as_json:
        print_json([row.to_json() for row in planned])
    else:
        print_plan(study, planned)
    if found.problems:
        fail(problem_message(found))
    cannot = [row.run_id for row in planned if row.note]
    if cannot:
        fail(f"{counted(len(cannot), 'run')} cannot run as planned ({', '.join(cannot[:3])}); see above")
