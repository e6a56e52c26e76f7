"""What the runs of a study folder recorded beside the tables: evidence, settings, versions, hardware, time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attndrift.files import is_inside
from attndrift.study.record import RECORD, read_record


@dataclass(frozen=True)
class Record:
    """One run's ``record.json``; ``folder`` also holds ``maps.npz`` where attention maps were kept."""

    run_id: str
    folder: Path
    content: Mapping[str, Any]

    def get(self, *path: str) -> Any:
        """The value at ``path``, None where there is none."""
        value: Any = self.content
        for name in path:
            if not isinstance(value, Mapping):
                return None
            value = value.get(name)
        return value


@dataclass(frozen=True)
class Records:
    """The records of the analysed runs; ``problems`` says which could not be read, and why."""

    found: dict[str, Record] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def read_records(folder: Path, run_ids: list[str]) -> Records:
    """Read ``runs/<run_id>/record.json`` of each run; foreign tables have none."""
    records = Records()
    for run_id in run_ids:
        run = folder / "runs" / run_id
        # A run name is foreign text: it may be no file name at all, and neither it nor a link may lead out of the folder.
        if not _plain(run_id) or not is_inside(run / RECORD, folder):
            records.missing.append(run_id)
            continue
        try:
            content = read_record(run)
        except (OSError, ValueError) as error:
            records.problems.append(f"{run_id}: {str(error).replace(f'{run}/', '')}")
            continue
        if content is None:
            records.missing.append(run_id)
        else:
            records.found[run_id] = Record(run_id, run, content)
    return records


def _plain(name: str) -> bool:
    """Whether ``name`` can be that of a folder right below another."""
    special = name in ("", ".", "..") or "\0" in name or len(name.encode("utf-8", "surrogatepass")) > 255
    return not special and Path(name).name == name


def shared_and_varying(settings: dict[str, Mapping[str, Any]]) -> tuple[dict[str, str], list[dict[str, str]]]:
    """Settings that all runs share, and a row a run of those that differ (``run_id`` first)."""
    names = list(dict.fromkeys(name for one in settings.values() for name in one))
    shared: dict[str, str] = {}
    varying: list[str] = []
    for name in names:
        values = {compact(one.get(name)) for one in settings.values()}
        if len(values) == 1:
            shared[name] = values.pop()
        else:
            varying.append(name)
    rows = [{"run_id": run_id} | {name: compact(one.get(name)) for name in varying} for run_id, one in settings.items()]
    return shared, rows


def compact(value: Any) -> str:
    """A value of a record in one line; null is an en dash."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
