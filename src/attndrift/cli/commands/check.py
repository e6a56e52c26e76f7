"""``attndrift check``: whether a study can run."""

from __future__ import annotations

import typer

from attndrift.cli.app import app
from attndrift.cli.console import EXIT_PROBLEM, STUDIES, JsonOption, example, need, print_json
from attndrift.cli.study_options import StudyOptions, with_study_options


@app.command(rich_help_panel=STUDIES, epilog=example("attndrift check collapse-21"))
@with_study_options
def check(asked: StudyOptions, as_json: JsonOption = False) -> None:
    """Say whether a study can run: models, images, prompts, packages, engine, device, disk. Exit code 1: it cannot."""
    need(*asked.extras())
    from attndrift.study.check import check_study
    from attndrift.study.check_findings import print_check

    study = asked.load()
    found = check_study(study, asked.folder(study), engine=asked.engine, options=asked.launching(), full=True)
    if as_json:
        print_json(found.to_json())
    else:
        print_check(found)
    if found.problems:
        raise typer.Exit(EXIT_PROBLEM)
