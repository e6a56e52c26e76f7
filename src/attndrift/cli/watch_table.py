"""A study under way as a table that fits the terminal, with a sparkline a signal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from attndrift.cli.progress import MARKS
from attndrift.sanitize import sanitize_line
from attndrift.study.watch import ACCURACY, WatchedRun, WatchedStudy, watched_columns

_BARS = "▁▂▃▄▅▆▇█"
_ORDER = {"running": 0, "quiet": 1, "failed": 2, "diverged": 3, "waiting": 4}
_VALUE, _SPARK, _GAP = 7, 8, 2


def sparkline(values: Sequence[float], width: int) -> str:
    """The last ``width`` values as bars, the lowest of all the shortest.

    >>> sparkline([0.0, 0.5, 1.0], 8)
    '▁▄█'
    """
    if not values or not width:
        return ""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return "".join(_BARS[int((value - low) / span * (len(_BARS) - 1))] for value in values[-width:])


def iter_changes(study: WatchedStudy, read: Callable[[], WatchedStudy], every: float) -> Iterator[str]:
    """A line a new evaluation and a new status, from now until all runs have ended."""
    columns, seen = watched_columns(), dict[str, str]()
    while True:
        for run in study.runs:
            line = " ".join(["".join(_two_lines(run, columns).plain.splitlines()[-1:]).strip(), run.status])
            if run.seconds is not None and seen.get(run.run_id) != line:
                seen[run.run_id] = line
                yield sanitize_line(f"{run.run_id}: {line}")
        if study.done:
            yield _told(study)
            return
        time.sleep(every)
        study = read()


def watch_table(study: WatchedStudy, console: Console) -> RenderableType:
    """The study's runs: what is under way first, then what failed, what waits, what is done."""
    runs = sorted(study.runs, key=lambda run: _ORDER.get(run.status, 5))
    columns = {
        name: label for name, label in watched_columns().items() if any(run.series.get(name) for run in study.runs)
    }
    longest = max((len(run.run_id) for run in runs), default=0)
    shown, spark = _fitting(columns, longest, console.width)
    narrow = len(shown) < min(3, len(columns))
    room = max(3, (console.size.height - 4) // (2 if narrow else 1)) if console.is_terminal else len(runs)
    seen = runs[:room]
    lines = [_two_lines(run, columns) for run in seen] if narrow else [_table(seen, columns, shown, spark, longest)]
    hidden = f"; {len(runs) - room} more are not shown" if len(runs) > room else ""
    problems = [Text(sanitize_line(f"{run.run_id}: {run.problem}"), style="red") for run in seen if run.problem][:3]
    return Group(*lines, *problems, Text(_told(study) + hidden))


def _told(study: WatchedStudy) -> str:
    counts = ", ".join(f"{count} {status}" for status, count in study.counts().items())
    return sanitize_line(f"{study.name}: {counts}")


def _table(runs: Sequence[WatchedRun], columns: dict[str, str], shown: list[str], spark: int, longest: int) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0))
    table.add_column("")
    table.add_column("run", no_wrap=True, min_width=longest)
    table.add_column("epochs", no_wrap=True)
    for name in shown:
        table.add_column(columns[name], no_wrap=True)
    for run in runs:
        cells = (_cell(run, name, spark) for name in shown)
        table.add_row(_mark(run), sanitize_line(run.run_id), _progress(run), *cells)
    return table


def _two_lines(run: WatchedRun, columns: dict[str, str]) -> Text:
    """A run where names leave no room for columns: the name, and below it what there is."""
    parts = [f"{columns[name]} {run.series[name][-1]:.4g}" for name in list(columns)[:3] if run.series.get(name)]
    text = Text.assemble(_mark(run), f" {sanitize_line(run.run_id)}\n    ", "  ".join([_progress(run), *parts]))
    return text.append(" !", style="bold red") if run.crossed else text


def _mark(run: WatchedRun) -> Text:
    return Text.from_markup(MARKS.get(run.status, "[cyan]▶[/]" if run.status == "running" else "·"))


def _progress(run: WatchedRun) -> str:
    """Epochs done, and what the mark alone does not say."""
    if run.seconds is None:
        return run.status
    epochs = f"{run.epochs:.3g}/{run.total_epochs:g}" if run.total_epochs and run.series.get(ACCURACY) else ""
    return f"{epochs} quiet".strip() if run.status == "quiet" else epochs


def _fitting(columns: dict[str, str], name: int, width: int) -> tuple[list[str], int]:
    """The columns that fit beside the names, and how long their sparklines are."""
    left = width - name - 14
    for least, spark in ((3, _SPARK), (3, _SPARK // 2), (1, 0)):
        for count in range(len(columns), least - 1, -1):
            kept = list(columns)[:count]
            if sum(max(_VALUE + spark + bool(spark), len(columns[one])) + _GAP for one in kept) <= left:
                return kept, spark
    return [], 0


def _cell(run: WatchedRun, name: str, spark: int) -> Text:
    values = run.series.get(name, [])
    if not values:
        return Text("")
    text = f"{values[-1]:.4g}".ljust(_VALUE) + (f" {sparkline(values, spark)}" if spark else "")
    return Text(f"{text.rstrip()} !", style="bold red") if name in run.crossed else Text(text)
