"""Processes that draw figures side by side: started ahead, and each draws the next figure that no other has begun."""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

# What draws is imported inside functions: these processes start before it is imported here.
if TYPE_CHECKING:
    from attndrift.analysis.result import Analysis
    from attndrift.figures.drawn import FigureResult
    from attndrift.figures.source import Source
    from attndrift.figures.writing import Form

MOST_FIGURES = 1000
"""Figures that can be drawn side by side."""
FEW = 4
"""So few figures are drawn before other processes have started."""
_FREE, _TAKEN, _AWAITS = 0, 1, 2
# One more place says whether the analysis is there.
_ANALYSED = MOST_FIGURES


def usual_processes() -> int:
    """How many processes draw the figures of a command: each takes about 250 MB, and a second to start."""
    return min(4, os.cpu_count() or 1)


class AnalysisAwaitedError(Exception):
    """A figure asks for the analysis before it is there."""


class Drawers:
    """A context of ``processes`` - 1 processes that draw beside this one; they start at once.

    Made before the tables are read, they import what draws meanwhile. Where the analysis takes its time, they begin with
    the figures that need none.
    """

    def __init__(self, processes: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._others = processes - 1
        self._draws = 0
        before = set(multiprocessing.active_children())
        self._states = context.Array("b", MOST_FIGURES + 1)
        self._pool = ProcessPoolExecutor(self._others, context, initializer=_start, initargs=(self._states,))
        for _ in range(self._others):
            self._pool.submit(_import_all)
        self._processes = [one for one in multiprocessing.active_children() if one not in before]

    def __enter__(self) -> Drawers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and not self._draws:
            # They only import: a wrong option is answered without waiting for that.
            for process in self._processes:
                process.terminate()
        # Who draws ahead stops after the figure that is being drawn.
        self._states[_ANALYSED] = 1
        self._pool.shutdown(cancel_futures=True)

    def draw(self, source: Source, folder: Path, form: Form, names: Sequence[str]) -> dict[str, FigureResult]:
        """Draw the figures called ``names``. A pending analysis is made in this process meanwhile."""
        self._states[:] = [_FREE] * (MOST_FIGURES + 1)
        self._draws += 1
        job = _Job(copy(source), folder, form, names, ahead=True, number=self._draws)
        job.source.given_analysis = _Awaited()  # type: ignore[assignment]
        begun = [self._pool.submit(_draw_ahead, job) for _ in range(self._others)]
        found = source.analysis
        self._states[_ANALYSED] = 1
        begun += [self._pool.submit(_draw_rest, self._draws, found) for _ in range(self._others)]
        own = _Job(source, folder, form, names)
        drawn = own.draw(self._states)
        for future in begun:
            drawn |= future.result()
        # What another process has put back at the end, as it asked for the analysis.
        return drawn | own.draw(self._states)


class _Awaited:
    """Stands for an analysis that is not there yet."""

    @property
    def result(self) -> Analysis:
        raise AnalysisAwaitedError


@dataclass
class _Job:
    """What is to be drawn; ``ahead``: until the analysis is there; ``number``: counts the draws, to tell a job of an earlier one."""

    source: Source
    folder: Path
    form: Form
    names: Sequence[str]
    ahead: bool = False
    number: int = 0

    def draw(self, states: Any) -> dict[str, FigureResult]:
        """Draw every figure that no other process has begun."""
        # Imported by the process that draws, ahead of its first figure.
        from attndrift.figures.writing import write_figure

        drawn: dict[str, FigureResult] = {}
        while (place := self._take(states)) is not None:
            name = self.names[place]
            try:
                drawn[name] = write_figure(self.source, self.folder, self.form, name)
            except AnalysisAwaitedError:
                states[place] = _AWAITS
        return drawn

    def _take(self, states: Any) -> int | None:
        wanted = (_FREE,) if self.ahead else (_FREE, _AWAITS)
        with states.get_lock():
            if self.ahead and states[_ANALYSED]:
                return None
            found = next((place for place in range(len(self.names)) if states[place] in wanted), None)
            if found is not None:
                states[found] = _TAKEN
            return found


_states: Any
_job: _Job | None = None


def _start(states: Any) -> None:
    """In a process that draws: what it shares with the others. Objects that stay are looked through seldom."""
    global _states
    _states = states
    gc.set_threshold(50_000, 20, 20)


def _import_all() -> None:
    # A new process imports them while the one that started it reads the tables.
    from attndrift.figures.registry import FIGURES

    FIGURES.names()
    gc.freeze()


def _draw_ahead(job: _Job) -> dict[str, FigureResult]:
    global _job
    _job = job
    return job.draw(_states)


def _draw_rest(number: int, analysis: Analysis) -> dict[str, FigureResult]:
    if _job is None or _job.number != number:
        return {}  # another process has drawn ahead in its stead
    _job.source.given_analysis, _job.ahead = analysis, False
    return _job.draw(_states)
