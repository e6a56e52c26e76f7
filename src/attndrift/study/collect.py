"""From run folders to the tidy tables."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from filelock import FileLock

from attndrift.files import MAX_JSON_BYTES, parse_json, read_json, refuse_links, warn_left_out
from attndrift.formats import check_format
from attndrift.losses.names import parse_losses
from attndrift.results.columns import MAX_COLUMNS
from attndrift.sanitize import printable
from attndrift.study.leftovers import remove_half_written
from attndrift.study.record import RECORD, read_record
from attndrift.study.schemas import HistoryRow, SoupFile, StudyFile, SweepFile, check_form
from attndrift.study.settings import NAME_PATTERN

if TYPE_CHECKING:
    from attndrift.results.tables import Tables
    from attndrift.study.collected import Collected, CollectedRun

# Imports inside functions: these packages take time to load, which only who needs them pays.

STUDY = "study.json"
RUNS_FOLDER = "runs"
HISTORY = "history.jsonl"
SWEEP = "interpolation.json"
SOUPS = "soups.json"
LOCK = ".study.lock"
"""Held by whoever writes ``study.json`` or the tables."""


class StudyFolderError(ValueError):
    """A folder that is not a study folder, or one that cannot be read; the message says what to do."""


def planned_runs(folder: Path) -> list[str]:
    """Run names of the study in ``folder``, in the order of the study."""
    path = folder / STUDY
    if not path.is_file():
        raise StudyFolderError(f"{folder}: not a study folder (no {STUDY}); `attndrift run STUDY` makes one")
    return [str(run["run_id"]) for run in described_runs(read_json(path), path)]


def described_runs(content: Any, where: Path | str) -> list[dict[str, Any]]:
    """The runs of what stands in a ``study.json``, called ``where``.

    Raises :class:`StudyFolderError` where that is not a study's, :class:`~attndrift.formats.FormatError` where it is
    one of another version.
    """
    runs = content.get("runs") if isinstance(content, dict) else None
    if not isinstance(runs, list) or not all(isinstance(run, dict) and "run_id" in run for run in runs):
        raise StudyFolderError(f"{where}: not the description of a study; restore it, or choose another folder")
    check_format("study", content, where)
    for run in runs:
        if not isinstance(run["run_id"], str) or not re.fullmatch(NAME_PATTERN, run["run_id"]):
            raise StudyFolderError(
                f"{where}: {printable(run['run_id'])[:200]!r} is not the name of a run; the file was changed by hand"
            )
    try:
        check_form(StudyFile, content, where)
    except ValueError as error:
        raise StudyFolderError(f"{error}; restore it, or choose another folder") from error
    name, count = Counter(run["run_id"] for run in runs).most_common(1)[0] if runs else ("", 1)
    if count > 1:
        raise StudyFolderError(f"{where}: the run {name} stands there {count} times; the file was changed by hand")
    return runs


def _history(folder: Path) -> Iterator[dict[str, Any]]:
    path = folder / HISTORY
    if not path.is_file():
        return
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_JSON_BYTES + 1):
            number += 1
            where = f"{path}:{number}"
            if len(line) > MAX_JSON_BYTES:
                raise StudyFolderError(f"{where}: a line of more than {MAX_JSON_BYTES:,} bytes")
            yield check_form(HistoryRow, parse_json(line, where), where)


def _layer_rows(
    run_id: str, step: int, layers: dict[str, Any]
) -> Iterator[tuple[str, int, int, int | None, str, float]]:
    for metric, values in layers.items():
        for layer, value in enumerate(values["layer"], 1):
            yield run_id, step, layer, None, metric, value
        for layer, heads in enumerate(values.get("head", ()), 1):
            for head, value in enumerate(heads, 1):
                yield run_id, step, layer, head, metric, value


def _loss_rows(run_id: str, record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    active = record.get("loss_active_fractions", {})
    for loss, weight in parse_losses(record["row"].get("loss")).items():
        yield {"run_id": run_id, "loss": loss, "weight": weight, "active_fraction": active.get(loss)}


@dataclass
class _RunRows:
    """The rows of one run in every table; ``whole`` says that nothing of it was left out."""

    runs: list[dict[str, Any]]
    losses: list[dict[str, Any]]
    history: list[dict[str, Any]] = field(default_factory=list)
    layers: list[tuple[str, int, int, int | None, str, float]] = field(default_factory=list)
    interpolation: list[dict[str, Any]] = field(default_factory=list)
    whole: bool = True


def _run_rows(folder: Path, name: str) -> _RunRows | None:
    """What the run ``name`` in its ``folder`` gives; None where it has no record yet. Raises ``ValueError``."""
    record = read_record(folder)
    if record is None:
        return None
    row = {"run_id": name, **record["row"]}
    soups = _soups(folder, name)
    rows = _RunRows([row], list(_loss_rows(name, record)), whole=soups is not None)
    for outcome in (*record.get("outcomes", []), *(soups or ())):
        rows.runs.append({**record["row"], **outcome["row"], "run_id": outcome["run_id"]})
        rows.losses.extend(_loss_rows(outcome["run_id"], {"row": record["row"]}))
    if record["status"] == "failed":
        return rows
    seen: set[int] = set()
    for entry in _history(folder):
        if entry["step"] in seen:
            raise ValueError(f"{RUNS_FOLDER}/{name}/{HISTORY}: step {entry['step']} is there twice")
        seen.add(entry["step"])
        detail = entry.pop("layers", {})
        rows.history.append({"run_id": name, **entry})
        rows.layers.extend(_layer_rows(name, entry["step"], detail))
    sweep = folder / SWEEP
    if sweep.is_file():
        try:
            points = check_form(SweepFile, read_json(sweep), sweep)["points"]
        except ValueError as error:
            _warn_sweep_left_out(name, str(error))
            rows.whole = False
        else:
            rows.interpolation = [{"run_id": name, **point} for point in points]
    return rows


def read_soups(folder: Path) -> list[dict[str, Any]]:
    """The soups that are kept with a run; none where none was made. Raises ``ValueError`` for a damaged file."""
    path = folder / SOUPS
    return list(check_form(SoupFile, read_json(path), path)["soups"]) if path.is_file() else []


def _soups(folder: Path, name: str) -> list[dict[str, Any]] | None:
    """The same; None for a damaged file, with a warning."""
    try:
        return read_soups(folder)
    except ValueError as error:
        warn_left_out(
            f"{error}. The soups of {name} are left out; `attndrift soup` on the study's folder makes them anew"
        )
        return None


def _tables(parts: Sequence[_RunRows]) -> Tables:
    # Here, so that a study's runs do not wait for half a second of imports that are needed after them.
    import pandas as pd

    from attndrift.results.tables import Tables, schema

    runs, sweeps = ([row for part in parts for row in getattr(part, name)] for name in ("runs", "interpolation"))
    columns = list(dict.fromkeys([column.name for column in schema("runs")] + [key for row in runs for key in row]))

    def rows(name: str) -> Any:
        found = [row for part in parts for row in getattr(part, name)]
        return pd.DataFrame(found, columns=[column.name for column in schema(name)])

    return Tables(
        runs=pd.DataFrame(runs, columns=columns),
        losses=rows("losses"),
        history=rows("history"),
        layers=rows("layers"),
        interpolation=pd.DataFrame(sweeps or {"run_id": [], "alpha": []}),
    )


def gather(folder: Path, run_ids: Iterable[str] | None = None) -> tuple[Tables, list[str]]:
    """The tables of the study in ``folder``, and the runs that have no record yet.

    Only finished, diverged and failed runs have rows, in the order of the study. A run with a damaged file is left out,
    with a :class:`~attndrift.files.LeftOutWarning` that names the file.
    """
    parts, missing = _read_runs(folder, run_ids if run_ids is not None else planned_runs(folder))
    try:
        return _tables(list(parts.values())), missing
    except ValueError:
        return _tables(_usable(list(parts.values()))), missing


def _read_runs(folder: Path, names: Iterable[str]) -> tuple[dict[str, _RunRows], list[str]]:
    """The rows of these runs by name, and the runs that have no record yet. Damaged ones are left out with a warning."""
    parts: dict[str, _RunRows] = {}
    missing: list[str] = []
    for name in names:
        try:
            rows = _run_rows(folder / RUNS_FOLDER / name, name)
        except (ValueError, OSError) as error:
            _warn_run_left_out(name, error)
            continue
        if rows is None:
            missing.append(name)
        else:
            parts[name] = rows
    return parts, missing


def _usable(parts: Sequence[_RunRows]) -> list[_RunRows]:
    """The runs whose rows make tables: of those before them and their own, so that no two contradict each other."""
    kept: list[_RunRows] = []
    columns: set[str] = set()
    for part in parts:
        name, file = str(part.runs[0]["run_id"]), RECORD
        try:
            _tables([_RunRows(part.runs, part.losses)])
            if len(columns | set(part.runs[0])) > MAX_COLUMNS:
                raise StudyFolderError(f"with its columns the table runs has more than {MAX_COLUMNS:,}")
            file = HISTORY
            _tables([replace(part, interpolation=[])])
        except ValueError as error:
            _warn_run_left_out(name, ValueError(f"{RUNS_FOLDER}/{name}/{file}: {error}"))
            continue
        columns |= set(part.runs[0])
        kept.append(part)
        try:
            _tables([_RunRows(part.runs, [], interpolation=part.interpolation)])
        except ValueError as error:
            part.interpolation = []
            _warn_sweep_left_out(name, f"{RUNS_FOLDER}/{name}/{SWEEP}: {error}")
    return kept


def _warn_sweep_left_out(name: str, error: str) -> None:
    warn_left_out(
        f"{error}. The sweep of {name} is left out; `attndrift interpolate` on the run's folder makes it anew"
    )


def _warn_run_left_out(name: str, error: Exception) -> None:
    text = str(error).removesuffix("; remove the run's folder to run it again")
    where = "" if name in text else f"{RUNS_FOLDER}/{name}/{RECORD}: "
    warn_left_out(f"{where}{text}. The run {name} is left out of the tables; remove its folder to run it again")


class Collection(NamedTuple):
    """What :func:`collect` did.

    Attributes:
        rows: of each table that lies in the folder now.
        missing: runs that have no record yet.
        read: runs whose files were read; those of the others have not changed since the last time.
    """

    rows: dict[str, int]
    missing: list[str]
    read: list[str]


def collect(folder: Path) -> Collection:
    """Write the tables of the study in ``folder`` there as Parquet, from its run folders.

    The result is that of :func:`gather`, for any change since the last time. What was found then is noted in the folder,
    so that only runs whose files changed are read. A run with a damaged file is left out, with a warning each time.
    """
    # Here, so that a study's runs do not wait for half a second of imports that are needed after them.
    from attndrift.results.tables import TABLES, write_tables
    from attndrift.study.collected import COLLECTED, Collected, signature_of, table_rows

    names = planned_runs(folder)  # first: what is no study folder is called that, whatever lies in it
    refuse_links(folder)
    with FileLock(folder / LOCK):
        remove_half_written(folder, [f"{name}.parquet" for name in TABLES] + [COLLECTED])
        noted = Collected.read(folder)
        signatures = {name: signature_of(folder / RUNS_FOLDER / name) for name in names}
        known = {run.name for run in noted.runs if run.signature and run.signature == signatures.get(run.name)}
        parts, missing = _read_runs(folder, [name for name in names if name not in known])
        if not parts and [run.name for run in noted.runs] == [name for name in names if name in known]:
            return Collection(table_rows(folder), missing, [])
        try:
            _collect_changed(
                folder, noted, parts, [name for name in names if name in known or name in parts], signatures
            )
        except ValueError:
            # Runs that contradict each other, or tables that are not those that were noted: everything anew.
            parts |= _read_runs(folder, known)[0]
            parts = {name: parts[name] for name in names if name in parts}
            try:
                _collect_changed(folder, Collected(), parts, list(parts), signatures)
            except ValueError:
                (folder / COLLECTED).unlink(missing_ok=True)
                write_tables(_tables(_usable(list(parts.values()))), folder)
        return Collection(table_rows(folder), missing, list(parts))


def _collect_changed(
    folder: Path, noted: Collected, parts: Mapping[str, _RunRows], names: Sequence[str], signatures: Mapping[str, str]
) -> None:
    """Write the tables of the runs ``names``: those in ``parts`` anew, the others as they were noted."""
    from attndrift.results.tables import arrow_table, write_tables
    from attndrift.study.collected import LONG, Collected, merged

    kept = {run.name: run for run in noted.runs}
    runs = [kept[name] if name not in parts else _noted(name, parts[name], signatures[name]) for name in names]
    short = _tables(
        [_RunRows(run.rows["runs"], run.rows["losses"], interpolation=run.rows["interpolation"]) for run in runs]
    )
    fresh = _tables([parts[name] for name in names if name in parts])
    made = {name: arrow_table(name, getattr(fresh, name)) for name in LONG}
    if len(parts) < len(names):
        placed = [(run, run.name not in parts) for run in runs]
        made = {name: merged(name, folder, noted.runs, placed, table) for name, table in made.items()}
    write_tables(short, folder, made)
    Collected(runs).write(folder)


def _noted(name: str, rows: _RunRows, signature: str) -> CollectedRun:
    from attndrift.study.collected import LONG, SHORT, CollectedRun

    short = {table: getattr(rows, table) for table in SHORT}
    return CollectedRun(
        name, signature if rows.whole else "", short, tuple(len(getattr(rows, table)) for table in LONG)
    )
