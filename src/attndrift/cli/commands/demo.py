"""``attndrift demo``: the 21 runs, small, without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attndrift.cli.app import app
from attndrift.cli.console import STUDIES, OnlyOption, example, fail, need, number_option, say
from attndrift.cli.digest import print_digest
from attndrift.cli.launching import launch
from attndrift.cli.reporting import report_on
from attndrift.cli.study_options import PROCESSES

DEMO_JOBS = 4
"""Most runs of the demo at a time: each takes about half a gigabyte."""


@app.command(rich_help_panel=STUDIES, epilog=example("attndrift demo"))
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Study folder.")] = Path("studies/demo"),
    only: OnlyOption = None,
    jobs: Annotated[
        int | None, number_option("--jobs", "-j", least=1, help="Runs at a time; default: one a core, at most 4.")
    ] = None,
) -> None:
    """Run the 21 runs on the small embedded model and generated images, then report on them. No network needed."""
    need("study", "report")
    from attndrift.study.check_findings import counted
    from attndrift.study.launchers import Options
    from attndrift.study.launchers.processes import jobs_that_fit
    from attndrift.study.loading import load_study

    study = load_study("demo")
    if only:
        study = study.select(only)
    settings = [one.settings for one in study.runs]
    jobs = jobs or jobs_that_fit(settings, at_most=DEMO_JOBS)
    outcome = launch(study, output, engine=PROCESSES, options=Options(jobs=jobs))
    analysis, _, (_, html) = report_on([output], output, processes=jobs)
    print_digest(analysis)
    say(f"report: {html}\nfigures: {output / 'figures'}\ntables: {output / 'tables'}")
    if outcome.count("failed"):
        fail(f"{counted(outcome.count('failed'), 'run')} failed; see log.txt in {output / 'runs'}")
