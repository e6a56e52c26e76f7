"""What a study shows while it runs: bars with the time left in a terminal, plain lines elsewhere."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from attndrift.sanitize import sanitize, sanitize_line
from attndrift.study.settings import NamedRun, Study

MARKS = {"finished": "[green]✓[/]", "kept": "[green]=[/]", "diverged": "[yellow]~[/]", "failed": "[red]✗[/]"}


def print_line(console: Console, message: str, run: str = "") -> None:
    """Print a line about a study as a whole, or of the log of ``run``."""
    shown = escape(sanitize(message))
    console.print(f"  {run}: {shown}" if run else shown, highlight=False, soft_wrap=not run or not console.is_terminal)


def evaluation_text(values: Mapping[str, float]) -> str:
    """What an evaluation has come to, in a few words.

    >>> evaluation_text({"val_accuracy": 0.742, "monitor_zero_shot_retention_pct": 51.04, "cka_mean": 0.8049})
    'accuracy 74.2%, retention 51.0%, CKA 0.805'
    """
    return ", ".join(form.format(values[name]) for name, form in _EVALUATED.items() if name in values)


_EVALUATED = {
    "val_accuracy": "accuracy {:.1%}",
    "monitor_zero_shot_retention_pct": "retention {:.1f}%",
    "cka_mean": "CKA {:.3f}",
}


class RunReporter:
    """Moves a run's bar, which says what was measured last; without a terminal, prints a line an evaluation."""

    def __init__(self, study: StudyConsole, name: str, bar: TaskID) -> None:
        self._study, self._name, self._bar = study, name, bar
        self._phase, self._known = "", dict[str, float]()

    def evaluated(self, step: int, total: int, values: Mapping[str, float]) -> None:
        """What was measured after ``step`` of ``total``."""
        self._known |= values
        self._describe()
        if not shows_bars(self._study.console) and not self._study.verbose:
            print_line(self._study.console, f"step {step}/{total}: {evaluation_text(values)}", self._name)

    def _describe(self) -> None:
        known = evaluation_text(self._known)
        what = f"  {self._name}: {escape(sanitize_line(self._phase))}{known and f' ({known})'}"
        self._study.progress.update(self._bar, description=what)

    def started(self, node: str, attempt: int) -> None:
        """The run has been begun on ``node``, for the ``attempt``-th time."""
        if attempt > 1:
            self._study.console.print(
                f"  {self._name}: goes on, on {escape(sanitize_line(node))} (start {attempt})", highlight=False
            )

    def step(self, done: int, total: int) -> None:
        """``done`` of ``total`` optimiser steps are done."""
        self._study.progress.update(self._bar, completed=done, total=total)

    def phase(self, what: str) -> None:
        """Say what the run is doing now."""
        self._phase = what
        self._describe()

    def say(self, message: str) -> None:
        """Print a line of the run's log, where that was asked for."""
        if self._study.verbose:
            print_line(self._study.console, message, self._name)


def shows_bars(console: Console) -> bool:
    """Whether ``console`` can redraw: a terminal, or a notebook with ``ipywidgets``; elsewhere lines are printed."""
    if console.is_jupyter:
        return importlib.util.find_spec("ipywidgets") is not None
    return console.is_terminal


class StudyConsole:
    """Reports a study on a terminal or in a notebook, or in plain lines where neither can redraw.

    ``of_run`` is what it yields for a run.
    """

    of_run = RunReporter

    def __init__(self, *, verbose: bool = False, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.verbose = verbose
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=self.console,
            transient=True,
            disable=not shows_bars(self.console),
        )
        self._runs_bar = self.progress.add_task("", total=None, visible=False)
        self._started = time.monotonic()
        self._total = self._done = self._worked = 0

    def say(self, message: str) -> None:
        """Print a line about the study as a whole."""
        print_line(self.console, message)

    def begin(self, study: Study, done: int) -> None:
        """The study starts; ``done`` of its runs are finished already."""
        self._total = len(study.runs)
        self._started = time.monotonic()
        self.progress.update(self._runs_bar, description=study.name, total=self._total, visible=True)
        kept = f", {done} of them done already" if done else ""
        self.console.print(f"{study.name}: {self._total} runs{kept}", highlight=False)

    @contextmanager
    def run(self, run: NamedRun) -> Iterator[RunReporter]:
        """Yield the reporter of one run; several may be under way."""
        bar = self.progress.add_task(f"  {run.run_id}", total=None)
        try:
            yield self.of_run(self, run.run_id, bar)
        finally:
            self.progress.remove_task(bar)

    def ended(self, run: NamedRun, status: str, detail: str) -> None:
        """A run has ended."""
        self._done += 1
        self._worked += status != "kept"
        self.progress.update(self._runs_bar, completed=self._done)
        elapsed = time.monotonic() - self._started
        left = ""
        if self._worked and self._done < self._total:
            minutes = elapsed / self._worked * (self._total - self._done) / 60
            left = f", about {minutes:.0f} min left" if minutes >= 1 else ", under a minute left"
        note = f" ({sanitize(detail)})" if detail and status != "kept" else ""
        line = f"{MARKS.get(status, '·')} {self._done:>3}/{self._total} {run.run_id}: {status}{escape(note)}"
        self.console.print(line + f"  [dim]{elapsed / 60:.1f} min{left}[/]", highlight=False, soft_wrap=True)


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A bar with the time left, for work of several parts: yields a function of (what, done, total)."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=30), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(
        *columns,
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not shows_bars(console),
    ) as bar:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield show
