"""Running a study from the command line: what is shown while it runs, and how it ends."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

import typer

from attndrift.cli.console import EXIT_INTERRUPTED, fail, say
from attndrift.cli.study_options import PROCESSES


def launch(
    study: Any, where: str | Path, *, engine: str, options: Any, take_over: bool = False, verbose: bool = False
) -> Any:
    """Run ``study`` in ``where``, showing its runs, and return what became of them; a study that cannot go on ends the command."""
    from attndrift.cli.progress import StudyConsole
    from attndrift.cli.run_table import StudyTable
    from attndrift.study.driver import DriverReplaced
    from attndrift.study.executor import Executor
    from attndrift.study.launchers import make_engine
    from attndrift.study.runner import run_study

    chosen = make_engine(engine, options)
    table, lines = StudyTable(verbose=verbose), StudyConsole(verbose=verbose)
    reporter, live = (lines, lines.progress) if engine == PROCESSES else (table, table)
    try:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ:
            if options.time_limit is not None:
                fail("--time-limit: not where a launcher's processes train each run together; the launcher has one")
            if engine != PROCESSES or options.jobs > 1:
                fail("a launcher's processes train each run together, one run after the other: no --engine, no --jobs")
            return _run_distributed(study, where, lines, take_over=take_over)
        for line in _how_to_watch(study, where):
            say(line)
        with live:
            return run_study(study, where, Executor(), reporter, engine=chosen, take_over=take_over)
    except DriverReplaced as error:
        fail(str(error))
    except KeyboardInterrupt:
        typer.secho("\nattndrift: stopped; the same command goes on where this one was", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _how_to_watch(study: Any, where: str | Path) -> list[str]:
    """The commands that show the study while it runs."""
    from attndrift.study.storage_url import is_url
    from attndrift.trackers import TRACKERS

    lines = [f"watch it in another terminal: attndrift watch {shlex.quote(str(where))}"]
    for name in dict.fromkeys(name for run in study.runs for name in run.settings.trackers):
        tracker = TRACKERS[name]
        if tracker.show and not ("{runs}" in tracker.show and is_url(str(where))):
            places = {"runs": shlex.quote(str(Path(where) / "runs")), "study": shlex.quote(study.name)}
            lines.append(f"{tracker.label}: {tracker.show.format(**places)}")
    return lines


def _run_distributed(study: Any, where: str | Path, reporter: Any, *, take_over: bool) -> Any:
    """A launcher has started several processes, which train each run together."""
    from attndrift.study.distributed import DistributedSession, RankFailure
    from attndrift.study.executor import Executor
    from attndrift.study.runner import run_study

    try:
        with DistributedSession() as session, Executor(session=session) as execute:
            if session.rank == 0:
                with reporter.progress:
                    return run_study(study, where, execute, reporter, take_over=take_over)
            execute.run_worker()
    except RankFailure as error:
        fail(str(error))
    raise typer.Exit  # the main process reports
