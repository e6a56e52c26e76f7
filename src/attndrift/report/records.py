"""What the records of the runs say about how the numbers came about.

Records of other programs may be shaped differently: whatever is found under the known keys is told,
whatever is absent is said to be absent.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Pairs = list[tuple[str, str]]


@dataclass
class TransferConditions:
    """Under which conditions the accuracies on one transfer set were measured."""

    name: str
    split: str
    images: str
    prompts: list[str]
    class_names: list[str]
    preprocessing: str
    hash: str
    n_records: int


@dataclass
class Provenance:
    """What the records of a study have in common, and in what they differ."""

    n_runs: int
    n_records: int
    unreadable: list[str] = field(default_factory=list)
    shared: Pairs = field(default_factory=list)
    varying: Pairs = field(default_factory=list)
    versions: Pairs = field(default_factory=list)
    hardware: Pairs = field(default_factory=list)
    hashes: Pairs = field(default_factory=list)
    data: Pairs = field(default_factory=list)
    other: Pairs = field(default_factory=list)
    transfer: list[TransferConditions] = field(default_factory=list)
    inconsistent: list[str] = field(default_factory=list)
    seconds: float | None = None
    n_timed: int = 0
    runs: list[dict[str, Any]] = field(default_factory=list)


def read_provenance(study: Path, run_ids: Iterable[str]) -> Provenance:
    """Read ``runs/<run_id>/record.json`` of every run that has one."""
    names = list(run_ids)
    records: dict[str, dict[str, Any]] = {}
    unreadable: list[str] = []
    for name in names:
        # A run id of foreign tables becomes a path here; one that leads elsewhere is not of this folder.
        if Path(name).name != name or name in ("", ".", ".."):
            continue
        path = study / "runs" / name / "record.json"
        if not path.is_file():
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            unreadable.append(f"{name}: record.json is not readable ({error})")
            continue
        if isinstance(content, dict):
            records[name] = content
        else:
            unreadable.append(f"{name}: record.json holds no object")
    result = Provenance(len(names), len(records), unreadable)
    if not records:
        return result
    settings = [flat(record.get("settings")) for record in records.values()]
    result.shared, result.varying = _split(settings)
    result.versions = _together(records, "versions")
    result.hardware = _together(records, "hardware")
    result.hashes = _together(records, "hashes")
    result.data = _together(records, "data")
    result.other = [
        (key.replace("_", " "), text)
        for key in ("precision", "deterministic", "preprocessing", "cka_chance_level", "measured_checkpoint")
        if (text := _values(record.get(key) for record in records.values()))
    ]
    times = [seconds for record in records.values() if (seconds := _seconds(record)) is not None]
    result.seconds, result.n_timed = (sum(times), len(times)) if times else (None, 0)
    result.transfer, result.inconsistent = _transfer(records)
    result.runs = [
        {
            "run_id": name,
            "settings_hash": _text(record.get("settings_hash")) if record.get("settings_hash") else None,
            "data_hash": _find(record.get("hashes"), "data"),
            "measured_checkpoint": record.get("measured_checkpoint"),
            "seconds": _seconds(record),
            "problem": record.get("problem"),
        }
        for name, record in records.items()
    ]
    return result


def flat(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested objects as `a.b` keys, everything else as text."""
    if isinstance(value, dict):
        result: dict[str, str] = {}
        for key, item in value.items():
            result |= flat(item, f"{prefix}.{key}" if prefix else str(key))
        return result
    if value is None and not prefix:
        return {}
    return {prefix or "value": _text(value)}


def _text(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        items = [_text(item) for item in value]
        return ", ".join(items[:12]) + (f", ... ({len(items)} in all)" if len(items) > 12 else "")
    if isinstance(value, dict):
        return json.dumps(value, sort_keys=True, ensure_ascii=False)
    return str(value)


def _split(settings: list[dict[str, str]]) -> tuple[Pairs, Pairs]:
    """Settings that all records share, and the values of those in which they differ."""
    keys = list(dict.fromkeys(key for one in settings for key in one))
    shared: Pairs = []
    varying: Pairs = []
    for key in keys:
        values = list(dict.fromkeys(one.get(key, "not given") for one in settings))
        if len(values) == 1:
            shared.append((key, values[0]))
        else:
            shown = ", ".join(values[:12]) + (f", ... ({len(values)} values)" if len(values) > 12 else "")
            varying.append((key, shown))
    return shared, varying


def _together(records: dict[str, dict[str, Any]], key: str) -> Pairs:
    """The values under ``key``, one line a name; several where the runs differ, which is said."""
    found: dict[str, dict[str, None]] = {}
    for record in records.values():
        for name, value in flat(record.get(key)).items():
            found.setdefault(name, {})[value] = None
    lines: Pairs = []
    for name, values in found.items():
        texts = list(values)
        more = f", ... ({len(texts)} values)" if len(texts) > 4 else ""
        differ = " (runs differ)" if len(texts) > 1 else ""
        lines.append((key if name == "value" else name, "; ".join(texts[:4]) + more + differ))
    return lines


def _values(values: Iterable[Any]) -> str:
    texts = list(dict.fromkeys(_text(value) for value in values if value is not None))
    return "; ".join(texts[:4]) + (f"; ... ({len(texts)} values)" if len(texts) > 4 else "")


def _seconds(record: dict[str, Any]) -> float | None:
    for value in (_find(record.get("time"), "seconds"), record.get("time"), record.get("seconds")):
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0:
            return float(value)
    return None


def _find(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None


def _transfer(records: dict[str, dict[str, Any]]) -> tuple[list[TransferConditions], list[str]]:
    """Conditions of each transfer set (the most common ones), and in what runs depart from them."""
    seen: dict[str, dict[str, tuple[TransferConditions, list[str]]]] = {}
    for run_id, record in records.items():
        transfer = record.get("transfer")
        for name, entry in transfer.items() if isinstance(transfer, dict) else ():
            if not isinstance(entry, dict):
                continue
            detail = entry.get("adapted") if isinstance(entry.get("adapted"), dict) else entry
            one = TransferConditions(
                str(name),
                _text(detail.get("split", "not recorded")),
                _text(detail.get("n", entry.get("n", "not recorded"))),
                _list(detail.get("templates", detail.get("prompts"))),
                _list(detail.get("class_names")),
                _preprocessing(detail.get("preprocessing", record.get("preprocessing"))),
                _text(entry.get("hash", "not recorded")),
                1,
            )
            key = json.dumps([one.split, one.images, one.prompts, one.class_names, one.preprocessing, one.hash])
            seen.setdefault(one.name, {}).setdefault(key, (one, []))[1].append(run_id)
    conditions: list[TransferConditions] = []
    departures: list[str] = []
    for name, kinds in seen.items():
        ordered = sorted(kinds.values(), key=lambda item: -len(item[1]))
        one, ids = ordered[0]
        one.n_records = len(ids)
        conditions.append(one)
        for _, others in ordered[1:]:
            shown = ", ".join(others[:5]) + (" and others" if len(others) > 5 else "")
            departures.append(
                f"Accuracies on {name} of {len(others)} runs ({shown}) were measured with other prompts, class names, "
                f"split, images or preprocessing than those of {len(ids)} runs: they cannot be compared."
            )
    return conditions, departures


def _list(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [_text(item) for item in value] if isinstance(value, (list, tuple)) else []


def _preprocessing(value: Any) -> str:
    if value is None:
        return "not recorded"
    return "; ".join(f"{key} {text}" for key, text in flat(value).items()) if isinstance(value, dict) else _text(value)


def names_hash(names: list[str]) -> str:
    """Short SHA-256 of a list of names, to compare two lists at a glance."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:12]
