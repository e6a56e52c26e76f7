"""Reading what the analysis needs from a folder of Parquet tables, and no more.

The table ``layers`` can be a thousand times larger than what is used of it: layer means at the first
and at the selected step, and the heads of the pretrained model.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from attndrift.analysis.configurations import Prepared, prepare
from attndrift.analysis.dynamics import epochs_from_steps, order_history
from attndrift.analysis.layers import measured_steps
from attndrift.analysis.numbers import Floats
from attndrift.files import refuse_links
from attndrift.formats import FormatError, check_table_metadata
from attndrift.methods.registry import PRETRAINED
from attndrift.metrics.registry import layer_metrics
from attndrift.results.tables import TableError, Tables, check_size, conform, read_tables

NAMES = ("runs", "history", "interpolation")
"""The tables that are read whole."""


def load_tables(folder: str | os.PathLike[str]) -> Tables:
    """The tables of ``folder`` for :func:`attndrift.analysis.analyze`, with ``layers`` cut down to what it reads.

    The result of the analysis is the same as with all of ``layers``. Raises
    :class:`~attndrift.results.tables.TableError` and :class:`~attndrift.formats.FormatError` as
    :func:`attndrift.results.tables.read_tables` does.
    """
    root = Path(folder)
    tables = read_tables(root, names=NAMES, share=True)
    layers = load_layers(root, tables)
    if layers is not None:
        # Assigned, not passed to a new Tables, which would check (and copy) the long history once more.
        tables.layers = layers
    return tables


def load_layers(root: Path, tables: Tables, names: Mapping[str, str] | None = None) -> pd.DataFrame | None:
    """What an analysis of ``tables`` reads of the table ``layers`` in ``root``; None where there is none.

    ``names``: what the runs in the file are called in ``tables``, where that is another name.
    """
    pa.default_memory_pool().release_unused()
    refuse_links(root, ["layers.parquet"])
    path = root / "layers.parquet"
    if not path.is_file():
        return None
    try:
        with pq.ParquetFile(path) as file:
            check_size(file)
            check_table_metadata(file.schema_arrow.metadata, path)
            found = set(file.schema_arrow.names)
            if not {"run_id", "step", "layer", "metric", "value"} <= found:
                # The common reader says which column is missing.
                return read_tables(root, names=("runs", "layers")).layers
            frame = _needed(file, _wanted(tables, "head" in found), names)
    except FormatError:
        raise
    except (pa.ArrowException, ValueError, OSError) as error:
        raise TableError(
            f"{path}: not a readable Parquet file ({error}); write it again with `attndrift collect`"
        ) from error
    return conform("layers", frame, where=str(path))


def join_layers(parts: Sequence[pd.DataFrame], tables: Tables) -> pd.DataFrame:
    """What an analysis of ``tables`` reads of several tables ``layers`` together."""
    return conform("layers", _wanted(tables, heads=True).of(pd.concat(parts, ignore_index=True)))


def _wanted(tables: Tables, heads: bool) -> _Wanted:
    prepared = prepare(tables)
    history = order_history(prepared, tables.history)
    limits = measured_steps(prepared, history, epochs_from_steps(history, prepared))
    return _Wanted(pd.Index(prepared.runs["run_id"].astype(object)), limits, *_baseline_runs(prepared), heads=heads)


def _needed(file: pq.ParquetFile, wanted: _Wanted, names: Mapping[str, str] | None) -> pd.DataFrame:
    heads = wanted.heads
    columns = ["run_id", "step", "layer", "metric", "value"] + (["head"] if heads else [])
    kept = file.schema_arrow.empty_table().select(columns).to_pandas()
    waiting: list[pd.DataFrame] = []
    for batch in file.iter_batches(batch_size=500_000, columns=columns):
        table = pa.Table.from_batches([batch])
        mask = pc.is_in(table["metric"], value_set=pa.array(list(layer_metrics()), type=table["metric"].type))
        if heads:
            mask = pc.and_(mask, pc.or_(pc.is_null(table["head"]), pc.equal(table["step"], 0)))
        part = table.filter(mask).to_pandas()
        if names is not None:
            part["run_id"] = part["run_id"].map(names)
        waiting.append(wanted.of(part))
        if sum(len(part) for part in waiting) > 1_000_000:
            kept, waiting = wanted.of(pd.concat([kept, *waiting], ignore_index=True)), []
    return wanted.of(pd.concat([kept, *waiting], ignore_index=True))


def _baseline_runs(prepared: Prepared) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """For each run the number of its (model, dataset) and its rank as a source of the baseline; -1: none."""
    runs = prepared.runs
    group = runs.groupby(["model_name", "dataset"], sort=True).ngroup().to_numpy(dtype=np.intp)
    pretrained = (runs["method"] == PRETRAINED).to_numpy()
    has = np.zeros(int(group.max(initial=-1)) + 1, dtype=bool)
    has[group[pretrained]] = True
    rank = np.arange(len(runs), dtype=np.intp)
    rank[~(pretrained | ~has[group])] = -1
    return group.astype(np.intp), rank


@dataclass(frozen=True)
class _Wanted:
    """Which rows are needed: ``of`` may be applied to parts, and again to what is left of them."""

    runs: pd.Index
    limits: Floats
    group: NDArray[np.intp]
    rank: NDArray[np.intp]
    heads: bool

    def of(self, frame: pd.DataFrame) -> pd.DataFrame:
        codes, names = pd.factorize(frame["run_id"])
        run = self.runs.get_indexer(pd.Index(names).astype(object))[codes] if len(codes) else np.zeros(0, np.intp)
        frame, run = frame[run >= 0], run[run >= 0]
        if frame.empty:
            return frame
        step = frame["step"].to_numpy(dtype=float)
        mean = frame["head"].isna().to_numpy() if self.heads else np.ones(len(frame), dtype=bool)
        first, last = np.full(len(self.runs), np.inf), np.full(len(self.runs), -np.inf)
        np.minimum.at(first, run[mean], step[mean])
        within = mean & (step <= self.limits[run]) & (step > first[run])
        np.maximum.at(last, run[within], step[within])
        keep = mean & ((step == first[run]) | (step == last[run]))
        # Heads: one run for each model and dataset, the one that the baseline table would take.
        candidate = ~mean & (self.rank[run] >= 0)
        best = np.full(int(self.group.max()) + 1, np.iinfo(np.intp).max, dtype=np.intp)
        np.minimum.at(best, self.group[run[candidate]], self.rank[run[candidate]])
        keep |= candidate & (self.rank[run] == best[self.group[run]])
        return frame[keep]
