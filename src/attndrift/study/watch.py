"""How the runs of a study stand, read again and again from where they are kept, also while other machines run them.

Only what changed is read: a history that grew is read from where it ended before. Nothing is written, and no lock taken.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

from attndrift.files import read_json
from attndrift.metrics.registry import METRICS
from attndrift.results.columns import metric_columns
from attndrift.study.collect import HISTORY, RUNS_FOLDER, STUDY, StudyFolderError, described_runs
from attndrift.study.object_storage import ObjectStorage
from attndrift.study.record import RECORD, SETTINGS, read_record
from attndrift.study.schemas import HistoryRow, check_form
from attndrift.study.storage_url import is_url

ACCURACY, RETENTION = "val_accuracy", "monitor_zero_shot_retention_pct"
QUIET_SECONDS = 600.0
"""A run that has written nothing for so long is called `quiet`: it may have been killed, or measure something large."""

_FILES = (SETTINGS, RECORD, HISTORY)


def watched_columns() -> dict[str, str]:
    """The columns of a history that are shown, the most telling first, with their labels and units.

    >>> list(watched_columns())
    ['val_accuracy', 'monitor_zero_shot_retention_pct', 'cka_mean', 'embedding_drift', 'entropy_change_pct']
    """
    shown = {ACCURACY: "accuracy", RETENTION: "retention, %"}
    headlines = [column for column in metric_columns("history") if METRICS[column.metric].headline]
    for structural in (False, True):
        for column in headlines:
            if METRICS[column.metric].own is structural and column.statistic in _STATISTICS[structural]:
                label = METRICS[column.metric].short_label or METRICS[column.metric].label
                shown[column.name] = label + (", %" if column.unit == "%" else "")
    return shown


_STATISTICS = {True: ("change_pct",), False: ("mean", "value")}


class Threshold(Protocol):
    """What must not happen: ``cka_mean<0.9``."""

    @property
    def name(self) -> str:
        """The column."""

    def test(self, value: float) -> bool:
        """Whether it has happened with ``value``."""


@dataclass
class WatchedRun:
    """What is known of one run.

    Attributes:
        status: ``waiting``, ``running``, ``quiet``, ``finished``, ``diverged`` or ``failed``.
        epochs: done, of ``total_epochs``; None where the settings do not say it.
        series: the values of each column of :func:`watched_columns` so far, in the order of the steps.
        crossed: columns whose last value has crossed a threshold.
        seconds: since the run wrote something, None where it has not begun.
        problem: why it failed or diverged, or what is wrong with its files.
    """

    run_id: str
    status: str = "waiting"
    epochs: float = 0.0
    total_epochs: float | None = None
    series: dict[str, list[float]] = field(default_factory=dict)
    crossed: list[str] = field(default_factory=list)
    seconds: float | None = None
    problem: str = ""

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self.status in ("finished", "diverged", "failed")


@dataclass
class WatchedStudy:
    """All runs of a study at one moment."""

    name: str
    where: str
    runs: list[WatchedRun]
    read_at: float

    def counts(self) -> dict[str, int]:
        """Runs by status."""
        return dict(Counter(run.status for run in self.runs))

    @property
    def done(self) -> bool:
        """Whether every run has ended."""
        return all(run.done for run in self.runs)


class StudyWatch:
    """Reads the study at ``where``, a folder or a URL, each time :meth:`read` is called.

    A context manager: copies from a store are removed at its end. ``thresholds`` mark values: see :attr:`WatchedRun.crossed`. Raises :class:`~attndrift.study.collect.StudyFolderError`
    where there is no study.
    """

    def __init__(self, where: str, thresholds: Sequence[Threshold] = ()) -> None:
        self.where, self.thresholds = where, thresholds
        self._source: _Folder | _Store = _Store(where) if is_url(where) else _Folder(Path(where))
        self._columns = watched_columns()
        self._histories: dict[str, _History] = {}
        self._ended: dict[str, tuple[float, WatchedRun]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._source.close()

    def read(self) -> WatchedStudy:
        """The study as it is now."""
        content, changed = self._source.study()
        runs = described_runs(content, self.where)
        now = time.time()
        found = [self._run(run, changed.get(run["run_id"], {}), now) for run in runs]
        return WatchedStudy(str(content.get("name")), self.where, found, now)

    def _run(self, described: dict[str, Any], times: dict[str, float], now: float) -> WatchedRun:
        name = described["run_id"]
        recorded = times.get(RECORD, 0.0)
        if name in self._ended and self._ended[name][0] == recorded:
            return self._ended[name][1]
        epochs = described.get("settings", {}).get("epochs")
        run = WatchedRun(name, total_epochs=epochs if isinstance(epochs, (int, float)) else None)
        if not times:
            return run
        run.seconds = max(0.0, now - max(times.values()))
        run.status = "running" if run.seconds < QUIET_SECONDS else "quiet"
        folder = self._source.local(name)
        try:
            if HISTORY in times:
                history = self._histories.setdefault(name, _History(tuple(self._columns)))
                history.read(folder / HISTORY)
                run.series, run.epochs = history.series, history.epochs
            record = read_record(folder) if RECORD in times else None
        except (ValueError, OSError) as error:
            run.problem = str(error)
            return run
        if record is not None:
            run.status, run.problem = str(record["status"]), str(record.get("problem") or "")
        last = {column: values[-1] for column, values in run.series.items() if values}
        run.crossed = [one.name for one in self.thresholds if one.name in last and one.test(last[one.name])]
        # A failed run is tried again by the next command: its files may change with its record still there.
        if run.done and run.status != "failed":
            self._ended[name] = recorded, run
        return run


class _History:
    """The series of one ``history.jsonl``, of which only what is new is read."""

    def __init__(self, columns: tuple[str, ...]) -> None:
        self._columns = columns
        self._forget()

    def _forget(self) -> None:
        self._offset, self._inode, self._line = 0, 0, 0
        self.epochs = 0.0
        self.series: dict[str, list[float]] = {column: [] for column in self._columns}

    def read(self, path: Path) -> None:
        """Read what was added. Raises ``ValueError`` for a line of another form, ``OSError`` where it cannot be read."""
        with path.open("rb") as file:
            found = path.stat()
            if (
                found.st_ino != self._inode or found.st_size < self._offset
            ):  # written anew: by a resumed run, or at the end
                self._forget()
                self._inode = found.st_ino
            if found.st_size == self._offset:
                return
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):  # half written yet
                    break
                self._offset += len(line)
                self._line += 1
                self._add(line, f"{path}:{self._line}")

    def _add(self, line: bytes, where: str) -> None:
        try:
            content = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{where}: not JSON ({error})") from None
        row = check_form(HistoryRow, content, where)
        self.epochs = float(row.get("epoch") or 0.0)
        for column, values in self.series.items():
            if isinstance(row.get(column), (int, float)):
                values.append(float(row[column]))


class _Folder:
    """A study folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / STUDY).is_file():
            raise StudyFolderError(f"{folder}: not a study folder (no {STUDY}); `attndrift run STUDY` makes one")

    def study(self) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
        """What ``study.json`` holds, and when each run's files changed."""
        content = read_json(self.folder / STUDY)
        return content, {run["run_id"]: dict(self._times(run["run_id"])) for run in content["runs"]}

    def _times(self, run_id: str) -> Iterator[tuple[str, float]]:
        for name in (*_FILES, "log.txt"):
            path = self.local(run_id) / name
            if path.is_file() and not path.is_symlink():
                yield name, path.stat().st_mtime

    def local(self, run_id: str) -> Path:
        """The folder of a run."""
        return self.folder / RUNS_FOLDER / run_id

    def close(self) -> None:
        """There is nothing to remove."""


class _Store:
    """A study in an object store, of which changed files are copied into a temporary folder."""

    def __init__(self, url: str) -> None:
        self.store = ObjectStorage(url).store
        self._known: dict[str, tuple[Any, ...]] = {}
        if self.store.read(self.store.path(STUDY)) is None:
            raise StudyFolderError(f"{url}: no study there (no {STUDY}); `attndrift run STUDY --output URL` makes one")
        self._scratch = tempfile.TemporaryDirectory(prefix="attndrift-watch-")

    def study(self) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
        """See :meth:`_Folder.study`."""
        wanted: dict[str, Path] = {}
        times: dict[str, dict[str, float]] = {}
        for name, version, modified in self.store.versions(RUNS_FOLDER):
            run_id, _, file = name.partition("/")
            if file not in _FILES:
                continue
            times.setdefault(run_id, {})[file] = modified
            if self._known.get(name) != version:
                self._known[name] = version
                wanted[self.store.path(RUNS_FOLDER, name)] = self.local(run_id) / file
        study = Path(self._scratch.name) / STUDY
        self.store.fetch({**wanted, self.store.path(STUDY): study})
        return read_json(study), times

    def local(self, run_id: str) -> Path:
        """The copy of a run's folder."""
        return Path(self._scratch.name) / RUNS_FOLDER / run_id

    def close(self) -> None:
        """Remove the copies."""
        self._scratch.cleanup()
