"""One live table of all runs of a study, for engines that have many under way on several machines."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from attndrift.cli.progress import MARKS, evaluation_text, print_line
from attndrift.sanitize import sanitize, sanitize_line
from attndrift.study.settings import NamedRun, Study

WAITING, RUNNING = "waiting", "running"
_ORDER = {RUNNING: 0, "failed": 1, WAITING: 2}


@dataclass
class Row:
    """What is known of one run.

    Attributes:
        state: ``waiting``, ``running``, or how it ended.
        node: the machine that it was last begun on.
        starts: how often it was begun; more than once where a worker or a node died.
        done, total: optimiser steps; total is 0 while it is not known.
        doing: the phase that it is in, or why it ended as it did.
        measured: what was measured last, by column of the history.
        began, ended: by this process's monotonic clock.
    """

    name: str
    state: str = WAITING
    node: str = ""
    starts: int = 0
    done: int = 0
    total: int = 0
    doing: str = ""
    measured: dict[str, float] = field(default_factory=dict)
    began: float | None = None
    ended: float | None = None

    # -- the reporter of a run -----------------------------------------------------------------

    def started(self, node: str, attempt: int) -> None:
        """The run has been begun on ``node``, for the ``attempt``-th time."""
        self.node, self.starts, self.state, self.began = node, attempt, RUNNING, time.monotonic()

    def step(self, done: int, total: int) -> None:
        """``done`` of ``total`` optimiser steps are done."""
        self.done, self.total = done, total

    def evaluated(self, step: int, total: int, values: Mapping[str, float]) -> None:
        """What was measured after ``step``."""
        self.measured |= values

    def phase(self, what: str) -> None:
        """The run is at ``what`` now."""
        self.doing = what

    def say(self, message: str) -> None:
        """Lines of the log stay in the log."""

    def seconds(self) -> float | None:
        """How long it has been under way since it was last begun."""
        return None if self.began is None else (self.ended or time.monotonic()) - self.began


class StudyTable:
    """Reports a study as a table that is drawn again and again; in lines where there is no terminal.

    A context manager: the table is live inside it, and is left as it was last.
    """

    def __init__(self, *, verbose: bool = False, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.verbose = verbose
        self.rows: dict[str, Row] = {}
        self.title = ""
        self._started = time.monotonic()
        self._live = Live(
            console=self.console, get_renderable=self.render, refresh_per_second=2, vertical_overflow="crop"
        )

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self._live.stop()

    def say(self, message: str) -> None:
        """Print a line about the study as a whole."""
        print_line(self.console, message)

    def begin(self, study: Study, done: int) -> None:
        """The study starts; ``done`` of its runs are finished already."""
        self.title, self._started = study.name, time.monotonic()
        self.rows = {run.run_id: Row(run.run_id) for run in study.runs}
        kept = f", {done} of them done already" if done else ""
        self.console.print(f"{study.name}: {len(self.rows)} runs{kept}", highlight=False)

    @contextmanager
    def run(self, run: NamedRun) -> Iterator[Row]:
        """Yield the reporter of one run; several may be under way."""
        row = self.rows[run.run_id]
        row.state, row.began = RUNNING, time.monotonic()
        yield row if self.console.is_terminal and not self.verbose else _Printing(row, self.console, self.verbose)
        if row.state == RUNNING:
            row.state = WAITING

    def ended(self, run: NamedRun, status: str, detail: str) -> None:
        """A run has ended."""
        row = self.rows[run.run_id]
        row.state, row.ended = status, time.monotonic()
        row.doing = detail if status != "kept" else ""
        if not self.console.is_terminal:
            over = sum(one.ended is not None for one in self.rows.values())
            again = f", begun {row.starts} times" if row.starts > 1 else ""
            note = f" ({escape(sanitize(row.doing))})" if row.doing else ""
            self.console.print(
                f"{MARKS.get(status, '·')} {over:>3}/{len(self.rows)} {row.name}: {status}{note}{again}  "
                f"[dim]{(time.monotonic() - self._started) / 60:.1f} min[/]",
                highlight=False,
                soft_wrap=True,
            )

    def render(self) -> RenderableType:
        """The table as it is now: what is under way first, then what failed, what waits, what is done."""
        table = Table(box=None, pad_edge=False, expand=False)
        for name in ("", "run", "machine", "starts", "steps", "", "time", "measured", ""):
            table.add_column(name, no_wrap=True, overflow="ellipsis")
        rows = sorted(self.rows.values(), key=lambda row: (_ORDER.get(row.state, 3), -(row.ended or 0.0)))
        room = max(3, self.console.size.height - 4)
        for row in rows[:room]:
            seconds = row.seconds()
            table.add_row(
                Text.from_markup(MARKS.get(row.state, "·")),
                row.name,
                Text(sanitize_line(row.node)),
                str(row.starts or ""),
                f"{row.done}/{row.total}" if row.total else "",
                ProgressBar(total=row.total, completed=row.done, width=20) if row.total else "",
                "" if seconds is None else f"{seconds / 60:.1f} min",
                evaluation_text(row.measured),
                Text(sanitize_line(row.doing if row.state in (RUNNING, "failed", "diverged", "busy") else row.state)),
            )
        counts: dict[str, int] = {}
        for row in rows:
            counts[row.state] = counts.get(row.state, 0) + 1
        told = ", ".join(f"{count} {state}" for state, count in counts.items())
        minutes = (time.monotonic() - self._started) / 60
        hidden = f"; {len(rows) - room} more are not shown" if len(rows) > room else ""
        return Group(table, Text(f"{self.title}: {told}; {minutes:.1f} min{hidden}"))


class _Printing(Row):
    """A row that also prints a line an evaluation, or all lines of its run's log (``verbose``)."""

    def __init__(self, row: Row, console: Console, verbose: bool) -> None:
        self.__dict__ = row.__dict__
        self._console, self._verbose, self._printed = console, verbose, -1

    def evaluated(self, step: int, total: int, values: Mapping[str, float]) -> None:
        """Print what was measured, unless it was: some launchers say it again."""
        super().evaluated(step, total, values)
        if not self._verbose and step > self._printed:
            print_line(self._console, f"step {step}/{total}: {evaluation_text(values)}", self.name)
        self._printed = max(step, self._printed)

    def say(self, message: str) -> None:
        """Print a line of the run's log, where that was asked for."""
        if self._verbose:
            print_line(self._console, message, self.name)
