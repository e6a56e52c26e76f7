"""Exports of trackers, which have a column a run or a row a value, as rows of run, step and metrics."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from attndrift.importing.foreign import ForeignTable
from attndrift.results.tables import TableError

_RUN_AND_METRIC = re.compile(r"^(?P<run>.+) - (?P<metric>.+?)(?P<end>__MIN|__MAX|__STDERR)?$")
_LEGEND = re.compile(r"^(?:name|run|run name|display name|id|run id)\s*:\s*(?P<run>.+)$", re.IGNORECASE)
_STEPS = ("step", "_step", "global_step", "trainer/global_step", "epoch", "relative time (process)", "relative time (wall)", "wall time")  # fmt: skip
_TENSORBOARD_FILE = re.compile(r"^run-(?P<run>.+?)-tag-(?P<tag>.+)$")


def in_our_shape(path: Path, table: ForeignTable, constants: set[str]) -> None:
    """Bring ``table`` into rows of run, step and metrics where it is a tracker's export, in place.

    Raises :class:`TableError` for a scalar of TensorBoard whose run nobody names; ``constants`` are the columns that
    the owner gives.
    """
    _one_row_a_run_and_step(table)
    _one_column_a_metric(path, table)
    _scalar_of_tensorboard(path, table, constants)


def _one_row_a_run_and_step(table: ForeignTable) -> None:
    """A chart exported by W&B, with a column `RUN - METRIC` a run."""
    frame = table.frame
    axis = [name for name in frame.columns if name.lower() in _STEPS]
    wide = {name: match for name in frame.columns if (match := _RUN_AND_METRIC.match(name))}
    if not wide or not axis or len(axis) + len(wide) != len(frame.columns) or "run_id" in frame.columns:
        return
    runs: dict[str, dict[str, str]] = {}
    groups: set[str] = set()
    for name, match in wide.items():
        legend = _LEGEND.match(match["run"])
        if legend is None and re.match(r"^[\w.]+: ", match["run"]):
            groups.add(match["run"])
        if match["end"] is None:
            runs.setdefault(legend["run"] if legend else match["run"], {})[match["metric"]] = name
    parts = []
    for run, columns in runs.items():
        own = {metric: name for metric, name in columns.items() if metric not in axis}
        if not own:
            continue
        part = frame[[*axis, *own.values()]].set_axis([*axis, *own], axis=1).assign(run_id=run)
        parts.append(part[~part[list(own)].isin(["", None]).all(axis=1)])
    table.frame = pd.concat(parts, ignore_index=True)
    table.notes.append(f"one column a run ({len(runs)} runs): made one row a run and step")
    if groups:
        table.notes.append(
            f"`{min(groups)}` looks like a group of runs, over which W&B takes means; export the chart without grouping"
        )


def _one_column_a_metric(path: Path, table: ForeignTable) -> None:
    """A long export (TensorBoard's data frames, MLflow's metric histories): a row a run, step and metric."""
    columns = {name.lower(): name for name in table.frame.columns}
    run = next((columns[name] for name in ("run", "run_id", "run_uuid", "run_name", "run id") if name in columns), None)
    key = next((columns[name] for name in ("tag", "key", "metric", "metric_name") if name in columns), None)
    if run is None or key is None or not {"step", "value"} <= set(columns) or "layer" in columns:
        return
    frame = table.frame
    names = [run, columns["step"], key]
    twice = frame.duplicated(names)
    if twice.any():
        row = frame.loc[twice, names].iloc[0]
        raise TableError(
            f"{path}: {int(twice.sum())} values are there twice, first {key} {row[key]} of {row[run]} at step {row[columns['step']]}"
        )
    wide = frame.pivot(index=names[:2], columns=key, values=columns["value"]).reset_index()
    table.frame = wide.rename(columns={run: "run_id", columns["step"]: "step"}).rename_axis(columns=None)
    table.notes.append(f"one row a value (`{key}`): made one row a run and step")


def _scalar_of_tensorboard(path: Path, table: ForeignTable, constants: set[str]) -> None:
    """A file `run-RUN-tag-TAG.csv` of one scalar says both in its name; under another name its owner must."""
    columns = {name.lower(): name for name in table.frame.columns}
    if list(columns) != ["wall time", "step", "value"]:
        return
    named = _TENSORBOARD_FILE.match(path.stem)
    if named:
        table.frame = table.frame.rename(columns={columns["value"]: named["tag"], columns["step"]: "step"})
        if not {"run_id", "history.run_id"} & constants:
            table.frame = table.frame.assign(run_id=named["run"])
        table.notes.append(
            f"a scalar of TensorBoard: run `{named['run']}` and metric `{named['tag']}` by the name of the file"
        )
    elif "history.run_id" not in constants:
        raise TableError(
            f"{path}: a scalar exported by TensorBoard, which names neither run nor metric: "
            f"--rename Step=step --rename Value=val_accuracy --set history.run_id={path.stem}"
        )
