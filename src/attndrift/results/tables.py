"""The tidy Parquet tables that stand between running and analysing.

Four tables hold everything that the statistics, the figures and the report read: ``runs`` (a row a
run), ``history`` (a row an evaluation), ``layers`` (long: a row a run, step, layer, head and metric)
and, where sweeps were made, ``interpolation``. Percentages are in percent, accuracies in 0..1,
entropies in nats. A column that does not apply is null; a column that is absent is read as null.
Foreign records, brought into this form, are analysed exactly like our own.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from attndrift.formats import FormatError, check_table_metadata, table_metadata

Kind = Literal["string", "int", "float", "bool"]

STRUCTURE_METRICS = ("entropy", "erf95", "gini", "head_diversity")
"""The structural metrics that have ``_baseline``, ``_final`` and ``_change_pct`` columns."""


class TableError(ValueError):
    """A table that does not have the form that the analysis needs; the message says where and what to do."""


@dataclass(frozen=True)
class ColumnSpec:
    """One column: its name, its type, the closed range of its values (None: unbounded) and its meaning."""

    name: str
    kind: Kind
    meaning: str
    low: float | None = None
    high: float | None = None
    required: bool = False


def _fraction(name: str, meaning: str) -> ColumnSpec:
    return ColumnSpec(name, "float", f"{meaning} (0..1)", 0.0, 1.0)


def _structure_columns() -> tuple[ColumnSpec, ...]:
    bounds = {"entropy": (0.0, None), "erf95": (0.0, 1.0), "gini": (0.0, 1.0), "head_diversity": (0.0, 2.0)}
    columns: list[ColumnSpec] = []
    for metric in STRUCTURE_METRICS:
        low, high = bounds[metric]
        columns += [
            ColumnSpec(f"{metric}_baseline", "float", f"{metric}, pretrained, mean over layers", low, high),
            ColumnSpec(f"{metric}_final", "float", f"{metric}, adapted, mean over layers", low, high),
            ColumnSpec(f"{metric}_change_pct", "float", f"change of the layer mean of {metric}, percent"),
        ]
    return tuple(columns)


RUNS = (
    ColumnSpec("run_id", "string", "unique name of the run", required=True),
    ColumnSpec("study", "string", "name of the study"),
    ColumnSpec("experiment", "string", "label in the original study's matrix (E2, A1, ...)"),
    ColumnSpec("protocol", "string", "seed | leak-free"),
    ColumnSpec("model", "string", "backbone"),
    ColumnSpec("model_revision", "string", "commit of the backbone, where it is from a hub"),
    ColumnSpec("dataset", "string", "fine-tuning target"),
    ColumnSpec("method", "string", "full | lora | linear_probe | last_block | none", required=True),
    ColumnSpec("learning_rate", "float", "peak rate of AdamW", 0.0),
    ColumnSpec("seed", "int", "initialisation, order and augmentation; runs without one count as one seed"),
    ColumnSpec("data_seed", "int", "splits, subsets and probe"),
    ColumnSpec("epochs", "float", "planned epochs", 0.0),
    ColumnSpec("batch_size", "int", "images an optimiser step", 0),
    ColumnSpec("weight_decay", "float", "AdamW weight decay", 0.0),
    ColumnSpec("lora_rank", "int", "rank of the adapters", 0),
    ColumnSpec("lora_alpha", "float", "scale numerator of the adapters", 0.0),
    ColumnSpec("lora_targets", "string", "adapted projections, e.g. q,v"),
    ColumnSpec("train_projection", "bool", "whether the visual projection is trained"),
    ColumnSpec("freeze_layers", "int", "frozen blocks, counted from the input", 0),
    ColumnSpec("regularizer", "string", "apr | entropy_floor"),
    ColumnSpec("regularizer_weight", "float", "lambda of the regularizer", 0.0),
    _fraction("regularizer_active_fraction", "how often the entropy floor was active"),
    ColumnSpec("guard", "string", "what a guard kept within a budget: retention_pct, or a metric of the monitor"),
    ColumnSpec("guard_at_least", "float", "the budget's lower limit, in the metric's unit"),
    ColumnSpec("guard_at_most", "float", "the budget's upper limit, in the metric's unit"),
    ColumnSpec("guard_outcome", "string", "inactive | kept | infeasible: the pretrained weights were put back"),
    ColumnSpec("status", "string", "finished | diverged | failed"),
    ColumnSpec("selected_epoch", "float", "epoch of the reported checkpoint", 0.0),
    ColumnSpec("n_train", "int", "training images", 0),
    ColumnSpec("n_validation", "int", "validation images", 0),
    ColumnSpec("n_test", "int", "test images", 0),
    ColumnSpec("n_probe", "int", "probe images", 0),
    _fraction("best_val_accuracy", "best validation accuracy"),
    _fraction("test_accuracy", "test accuracy of the selected checkpoint"),
    ColumnSpec("trainable_parameters", "int", "trainable parameters, classifier included", 0),
    ColumnSpec("total_parameters", "int", "all parameters, text encoder and classifier included", 0),
    *_structure_columns(),
    ColumnSpec("entropy_last_layer_change_pct", "float", "change of the last block's entropy, percent"),
    _fraction("cka_mean", "linear CKA, mean over blocks"),
    _fraction("cka_last", "linear CKA of the last block"),
    ColumnSpec("cka_debiased_mean", "float", "debiased linear CKA, mean over blocks", -1.0, 1.0),
    ColumnSpec("embedding_drift", "float", "1 - mean cosine of image embeddings", 0.0, 2.0),
    ColumnSpec("weight_drift", "float", "norm(dW)/norm(W0) over the vision transformer", 0.0),
    ColumnSpec("projection_drift", "float", "norm(dW)/norm(W0) of the visual projection", 0.0),
)

HISTORY = (
    ColumnSpec("run_id", "string", "run of the table `runs`", required=True),
    ColumnSpec("step", "int", "optimiser steps done; 0 is the pretrained model", 0, required=True),
    ColumnSpec("epoch", "float", "epochs done", 0.0),
    ColumnSpec("train_loss", "float", "mean training loss since the last evaluation"),
    _fraction("train_accuracy", "training accuracy since the last evaluation"),
    _fraction("val_accuracy", "validation accuracy, at epoch ends"),
    ColumnSpec("entropy", "float", "nats, mean over layers", 0.0),
    _fraction("erf95", "mean over layers"),
    _fraction("gini", "mean over layers"),
    ColumnSpec("head_diversity", "float", "mean over layers", 0.0, 2.0),
    *(ColumnSpec(f"{metric}_change_pct", "float", f"change of {metric}, percent") for metric in STRUCTURE_METRICS),
    ColumnSpec("entropy_last_layer_change_pct", "float", "change of the last block's entropy, percent"),
    _fraction("cka_mean", "linear CKA, mean over blocks"),
    _fraction("cka_last", "linear CKA of the last block"),
    ColumnSpec("embedding_drift", "float", "1 - mean cosine of image embeddings", 0.0, 2.0),
    ColumnSpec("weight_drift", "float", "norm(dW)/norm(W0) over the vision transformer", 0.0),
    _fraction("transfer_track_accuracy", "zero-shot accuracy on the track subset"),
    ColumnSpec("transfer_track_retention_pct", "float", "percent of the pretrained accuracy on the track", 0.0),
)

LAYERS = (
    ColumnSpec("run_id", "string", "run of the table `runs`", required=True),
    ColumnSpec("step", "int", "optimiser steps done", 0, required=True),
    ColumnSpec("layer", "int", "block, counted from 1", 1, required=True),
    ColumnSpec("head", "int", "head, counted from 1; null for the layer mean", 1),
    ColumnSpec("metric", "string", "entropy, erf95, gini, head_diversity, cls_mass, cka, ...", required=True),
    ColumnSpec("value", "float", "value of the metric"),
)

INTERPOLATION = (
    ColumnSpec("run_id", "string", "run of the table `runs`", required=True),
    ColumnSpec("alpha", "float", "0: pretrained, 1: adapted", 0.0, 1.0, required=True),
    _fraction("test_accuracy", "test accuracy"),
    ColumnSpec("entropy_change_pct", "float", "change of the layer mean of entropy, percent"),
    _fraction("cka_mean", "linear CKA, mean over blocks"),
    ColumnSpec("embedding_drift", "float", "1 - mean cosine of image embeddings", 0.0, 2.0),
    ColumnSpec("weight_drift", "float", "norm(dW)/norm(W0) over the vision transformer", 0.0),
)

SCHEMAS: dict[str, tuple[ColumnSpec, ...]] = {
    "runs": RUNS,
    "history": HISTORY,
    "layers": LAYERS,
    "interpolation": INTERPOLATION,
}

_TRANSFER = {
    "accuracy": ("float", 0.0, 1.0, "zero-shot accuracy, adapted"),
    "pretrained": ("float", 0.0, 1.0, "zero-shot accuracy, pretrained"),
    "retention_pct": ("float", 0.0, None, "100 x adapted / pretrained"),
    "n": ("int", 0.0, None, "images"),
}
TRANSFER_FIELDS = tuple(_TRANSFER)
"""What the columns ``transfer_SET_...`` end in."""
_TRANSFER_PATTERN = re.compile(r"^transfer_(?P<set>.+)_(?P<field>accuracy|pretrained|retention_pct|n)$")


_SWEEP_PATTERN = re.compile(r"^transfer_(?P<set>.+)_(?P<field>accuracy|agreement)$")


def agreement_column(name: str) -> ColumnSpec:
    """The ``interpolation`` column that says how many zero-shot predictions on the set ``name`` are still the
    pretrained model's; it needs no labels."""
    return _fraction(f"transfer_{name}_agreement", f"share of images that keep the pretrained prediction, {name}")


def transfer_columns(name: str) -> tuple[ColumnSpec, ...]:
    """The four ``runs`` columns of the transfer set ``name``."""
    return tuple(
        ColumnSpec(f"transfer_{name}_{suffix}", kind, f"{meaning}, {name}", low, high)  # type: ignore[arg-type]
        for suffix, (kind, low, high, meaning) in _TRANSFER.items()
    )


def transfer_sets(runs: pd.DataFrame) -> list[str]:
    """Names of the transfer sets that have an accuracy or a retention column in ``runs``, in order."""
    names: dict[str, None] = {}
    for column in runs.columns:
        match = _TRANSFER_PATTERN.match(str(column))
        if match and match["field"] in ("accuracy", "retention_pct"):
            names[match["set"]] = None
    return list(names)


def columns_of(table: str, frame: pd.DataFrame) -> tuple[ColumnSpec, ...]:
    """Columns of ``table``: those of its schema and those of the transfer sets that ``frame`` has."""
    extra: list[ColumnSpec] = []
    if table in ("runs", "interpolation"):
        pattern = _TRANSFER_PATTERN if table == "runs" else _SWEEP_PATTERN
        names = dict.fromkeys(m["set"] for c in frame.columns if (m := pattern.match(str(c))))
        for name in names:
            columns = transfer_columns(name)
            extra += columns if table == "runs" else (columns[0], agreement_column(name))
    return SCHEMAS[table] + tuple(extra)


_DTYPES: dict[str, str] = {"string": "string", "int": "Int64", "float": "float64", "bool": "boolean"}
_ARROW = {"string": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}


def conform(table: str, frame: pd.DataFrame, *, where: str | None = None) -> pd.DataFrame:
    """``frame`` with every column of ``table``, in order and typed; absent columns are null.

    Unknown columns are kept at the end. Infinite numbers (the loss of a diverged run, a change relative to 0)
    become null; :func:`infinite_values` counts them. Raises :class:`TableError`, naming column and row, for a
    missing or null key, a value of the wrong type, or one outside its range (an accuracy of 97.2
    where 0.972 is meant, for example); one message tells the first problem of each of up to five columns.
    """
    where = where or f"table {table}"
    columns = columns_of(table, frame)
    frame = frame.reset_index(drop=True)
    infinite = infinite_values(frame)
    result: dict[str, pd.Series[Any]] = {}
    problems: dict[str, str] = {}
    for column in columns:
        if column.name not in frame.columns:
            if column.required:
                problems[column.name] = f"the column `{column.name}` ({column.meaning}) is missing"
            result[column.name] = pd.Series([None] * len(frame), index=frame.index, dtype=_DTYPES[column.kind])
            continue
        try:
            result[column.name], count = _cast(column, frame[column.name])
        except (TypeError, ValueError, OverflowError, pa.ArrowException) as error:
            problems[column.name] = f"column `{column.name}` must be {column.kind}: {error}"
            continue
        if count:
            infinite[column.name] = infinite.get(column.name, 0) + count
    whole = pd.DataFrame(result, index=frame.index)
    problems |= _values_refused(whole, [c for c in columns if c.name in frame.columns and c.name not in problems])
    if problems:
        told = [problems[column.name] for column in columns if column.name in problems]
        more = f"; {len(told) - _TOLD} more columns" if len(told) > _TOLD else ""
        raise TableError(f"{where}: {'; '.join(told[:_TOLD])}{more}")
    known = {column.name for column in columns}
    whole = pd.concat([whole, frame[[name for name in frame.columns if name not in known]]], axis=1)
    if infinite:
        whole.attrs[_INFINITE] = infinite
    return whole


_TOLD = 5
"""Columns whose problems one message tells."""
_INFINITE = "infinite"


def infinite_values(frame: pd.DataFrame) -> dict[str, int]:
    """How many infinite numbers of each column :func:`conform` turned into nulls."""
    return dict(frame.attrs.get(_INFINITE, {}))


def _cast(column: ColumnSpec, values: pd.Series[Any]) -> tuple[pd.Series[Any], int]:
    """``values`` as the column's type, infinite ones as nulls, and how many those were. Raises what says why not."""
    if column.kind == "bool":
        return values.astype("boolean"), 0
    if column.kind == "string":
        text = pd.api.types.is_string_dtype(values.dtype) and values.dtype != object
        wrong = None if text else next((v for v in values if not isinstance(v, str) and not pd.isna(v)), None)
        if wrong is not None:
            raise TypeError(f"{wrong!r} in row {values.tolist().index(wrong)} is not text")
        return values.astype("string"), 0
    numbers = pd.to_numeric(values, errors="coerce").astype("Float64")
    lost = numbers.isna() & values.notna()
    if lost.any():
        row = int(lost.to_numpy().argmax())
        raise TypeError(f"{values.iloc[row]!r} in row {row} is no number")
    if column.kind == "float":
        plain = numbers.astype("float64")
        infinite = np.isinf(plain)
        return plain.mask(infinite), int(infinite.sum())
    for wrong_in, why in (
        (numbers % 1 != 0, "not whole numbers"),
        (numbers.abs() >= 2.0**63, "numbers of more than 64 bits"),
    ):
        if (found := wrong_in.fillna(False)).any():
            row = int(found.to_numpy().argmax())
            raise TypeError(f"{why} ({values.iloc[row]} in row {row})")
    return numbers.astype("Int64"), 0


def _values_refused(frame: pd.DataFrame, columns: list[ColumnSpec]) -> dict[str, str]:
    """For each column with a null where none may be, or a value out of range, the first one in words (pandera)."""
    # Takes a fifth of a second to import, which only who reads tables pays.
    from pandera import pandas as pandera
    from pandera.errors import SchemaErrors

    # Rounding may carry a cosine or a CKA a hair over its bound; a percentage is far over it.
    slack = 1e-6
    schema = pandera.DataFrameSchema(
        {
            c.name: pandera.Column(
                checks=[
                    *([pandera.Check.ge(c.low - slack)] if c.low is not None else []),
                    *([pandera.Check.le(c.high + slack)] if c.high is not None else []),
                ],
                nullable=not c.required,
            )
            for c in columns
        }
    )
    try:
        schema.validate(frame, lazy=True)
    except SchemaErrors as error:
        first = error.failure_cases.drop_duplicates("column")
        by_name = {c.name: c for c in columns}
        cases = zip(first["column"], first["check"], first["failure_case"], first["index"], strict=True)
        return {
            name: _refusal(by_name[name], None if check == "not_nullable" else value, int(row))
            for name, check, value, row in cases
        }
    return {}


def _refusal(column: ColumnSpec, value: float | None, row: int) -> str:
    if value is None:
        return f"column `{column.name}` is null in row {row}; it must be given in every row"
    hint = " (percent where 0..1 is meant?)" if column.high == 1.0 and value <= 100 else ""
    return (
        f"column `{column.name}` ({column.meaning}) is {value} in row {row}, "
        f"outside {column.low} .. {column.high}{hint}"
    )


@dataclass
class Tables:
    """The tables of one study. ``history``, ``layers`` and ``interpolation`` may be empty."""

    runs: pd.DataFrame
    history: pd.DataFrame = field(default_factory=lambda: conform("history", pd.DataFrame({"run_id": [], "step": []})))
    layers: pd.DataFrame = field(
        default_factory=lambda: conform("layers", pd.DataFrame({"run_id": [], "step": [], "layer": [], "metric": []}))
    )
    interpolation: pd.DataFrame = field(
        default_factory=lambda: conform("interpolation", pd.DataFrame({"run_id": [], "alpha": []}))
    )

    def __post_init__(self) -> None:
        for name in SCHEMAS:
            setattr(self, name, conform(name, getattr(self, name)))
        duplicated = self.runs["run_id"].duplicated()
        if duplicated.any():
            raise TableError(f"table runs: run_id `{self.runs['run_id'][duplicated].iloc[0]}` appears more than once")
        known = set(self.runs["run_id"])
        for name in ("history", "layers", "interpolation"):
            strangers = set(getattr(self, name)["run_id"].unique()) - known
            if strangers:
                raise TableError(f"table {name}: run_id `{min(strangers)}` is not in the table runs")


def read_parquet(path: Path, *, foreign: bool = True) -> pd.DataFrame:
    """The table in a Parquet file. Raises ``ValueError``, with the reason, where it cannot be read.

    ``foreign``: without a format number too; otherwise raises :class:`~attndrift.formats.FormatError`.
    """
    try:
        # Not by path: a damaged file must not be taken for a data set of several, nor its name for an address.
        with path.open("rb") as file:
            table = pq.read_table(file)
        # A flipped bit in a text decompresses well, and is found where somebody looks at that text, or never.
        table.validate(full=True)
        if not foreign:
            check_table_metadata(table.schema.metadata, path)
        return table.to_pandas()
    except FormatError:
        raise
    # Damaged bytes come out of Arrow and pandas as almost any error, among them of memory and of keys.
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise ValueError(f"{type(error).__name__}: {reason[:300]}") from error


def read_tables(folder: str | os.PathLike[str], *, names: Iterable[str] = tuple(SCHEMAS)) -> Tables:
    """Read the tables of ``folder`` (a study folder, or any folder that holds ``runs.parquet``).

    Only ``runs.parquet`` has to exist. Raises :class:`TableError` for a file that is missing, cut
    short, or not of the documented form, and :class:`~attndrift.formats.FormatError` for one of another version, or of
    another program: those come in through ``attndrift import``.
    """
    root = Path(folder)
    if not (root / "runs.parquet").is_file():
        raise TableError(
            f"{root}: no runs.parquet here. A study folder gets it from `attndrift collect`; "
            "foreign records come in through `attndrift import`."
        )
    frames: dict[str, pd.DataFrame] = {}
    for name in names:
        path = root / f"{name}.parquet"
        if not path.is_file():
            continue
        try:
            frame = read_parquet(path, foreign=False)
        except FormatError:
            raise
        except ValueError as error:
            raise TableError(
                f"{path}: not a readable Parquet file ({error}); write it again with `attndrift collect`"
            ) from error
        frames[name] = conform(name, frame, where=str(path))
    return Tables(**frames)


def _foreign(values: pd.Series[Any], table: str) -> pa.Array:
    """A column that no schema knows. Raises :class:`TableError` where its values are of no one kind."""
    try:
        return pa.array(values, from_pandas=True)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise TableError(f"table {table}: column `{values.name}` cannot be written: {reason}; leave it out") from error


def write_tables(tables: Tables, folder: str | os.PathLike[str]) -> list[Path]:
    """Write every table that has rows (``runs`` always) as Parquet, each whole or not at all.

    Equal tables give equal bytes. Returns the paths written.
    """
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for name in SCHEMAS:
        frame: pd.DataFrame = getattr(tables, name)
        path = root / f"{name}.parquet"
        if name == "interpolation" and frame.empty:
            path.unlink(missing_ok=True)
            continue
        columns = columns_of(name, frame)
        known = {column.name for column in columns}
        arrays = {
            c.name: pa.array(
                frame[c.name].to_list() if c.kind != "float" else frame[c.name].to_numpy(),
                type=_ARROW[c.kind],
                from_pandas=True,
            )
            for c in columns
        }
        for c in frame.columns:
            if c not in known:
                arrays[str(c)] = _foreign(frame[c], name)
        handle, temporary = tempfile.mkstemp(dir=root, prefix=f".{name}-", suffix=".parquet")
        os.close(handle)
        try:
            pq.write_table(pa.table(arrays, metadata=table_metadata()), temporary)
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        written.append(path)
    return written
