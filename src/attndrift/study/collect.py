"""From run folders to the tidy tables."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attndrift.files import read_json
from attndrift.formats import check_format
from attndrift.losses.names import parse_losses
from attndrift.sanitize import printable
from attndrift.study.record import read_record
from attndrift.study.settings import NAME_PATTERN

if TYPE_CHECKING:
    from attndrift.results.tables import Tables

STUDY = "study.json"
RUNS_FOLDER = "runs"
SWEEP = "interpolation.json"


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
        if not re.fullmatch(NAME_PATTERN, str(run["run_id"])):
            raise StudyFolderError(
                f"{where}: {printable(run['run_id'])!r} is not the name of a run; the file was changed by hand"
            )
    return runs


def refuse_links(folder: Path) -> None:
    """Raise :class:`StudyFolderError` for a link in a study folder that leads out of it: nothing is written through it.

    The study folder itself may be a link.
    """
    root = folder.resolve()
    for where, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(where) / name
            target = Path(os.path.realpath(path)) if path.is_symlink() else root
            if not target.is_relative_to(root):
                raise StudyFolderError(
                    f"{printable(path)}: a link that leads out of the study folder, to {printable(target)}; "
                    "nothing is written through it. Put the files themselves there, or link the whole study folder"
                )


def _history(folder: Path) -> Iterator[dict[str, Any]]:
    path = folder / "history.jsonl"
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise StudyFolderError(f"{path}:{number}: not valid JSON; run the study again to repair it") from error


def _layer_rows(
    run_id: str, step: int, layers: dict[str, Any]
) -> Iterator[tuple[str, int, int, int | None, str, float]]:
    for metric, values in layers.items():
        for layer, value in enumerate(values["layer"], 1):
            yield run_id, step, layer, None, metric, value
        for layer, heads in enumerate(values.get("head", ()), 1):
            for head, value in enumerate(heads, 1):
                yield run_id, step, layer, head, metric, value


def _loss_rows(run_id: str, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for loss, weight in parse_losses(row.get("loss")).items():
        active = row.get("loss_active_fraction") if loss == "entropy_floor" else None
        yield {"run_id": run_id, "loss": loss, "weight": weight, "active_fraction": active}


def gather(folder: Path, run_ids: Iterable[str] | None = None) -> tuple[Tables, list[str]]:
    """The tables of the study in ``folder``, and the runs that have no record yet.

    Only finished, diverged and failed runs have rows, in the order of the study.
    """
    # Here, so that a study's runs do not wait for half a second of imports that are needed after them.
    import pandas as pd

    from attndrift.results.tables import Tables, conform, schema

    names = list(run_ids) if run_ids is not None else planned_runs(folder)
    rows: list[dict[str, Any]] = []
    history: list[dict[str, Any]] = []
    layers: list[tuple[str, int, int, int | None, str, float]] = []
    sweeps: list[dict[str, Any]] = []
    losses: list[dict[str, Any]] = []
    missing: list[str] = []
    for name in names:
        run_folder = folder / RUNS_FOLDER / name
        record = read_record(run_folder)
        if record is None:
            missing.append(name)
            continue
        rows.append({"run_id": name, **record["row"]})
        losses += _loss_rows(name, record["row"])
        if record["status"] == "failed":
            continue
        for entry in _history(run_folder):
            detail = entry.pop("layers", {})
            history.append({"run_id": name, **entry})
            layers.extend(_layer_rows(name, entry["step"], detail))
        if (run_folder / SWEEP).is_file():
            sweeps += [{"run_id": name, **point} for point in read_json(run_folder / SWEEP)["points"]]
    columns = list(dict.fromkeys([column.name for column in schema("runs")] + [key for row in rows for key in row]))
    tables = Tables(
        runs=conform("runs", pd.DataFrame(rows, columns=columns)),
        losses=conform("losses", pd.DataFrame(losses, columns=[column.name for column in schema("losses")])),
        history=conform("history", pd.DataFrame(history, columns=[column.name for column in schema("history")])),
        layers=conform("layers", pd.DataFrame(layers, columns=["run_id", "step", "layer", "head", "metric", "value"])),
        interpolation=conform("interpolation", pd.DataFrame(sweeps or {"run_id": [], "alpha": []})),
    )
    return tables, missing


def collect(folder: Path) -> tuple[Tables, list[str]]:
    """Gather the tables of the study in ``folder`` and write them there as Parquet."""
    from attndrift.results.tables import write_tables

    names = planned_runs(folder)  # first: what is no study folder is called that, whatever lies in it
    refuse_links(folder)
    tables, missing = gather(folder, names)
    write_tables(tables, folder)
    return tables, missing
