"""The tidy Parquet tables that stand between running and analysing.

Five tables hold everything that the statistics, the figures and the report read: ``runs`` (a row a
run), ``history`` (a row an evaluation), ``layers`` (long: a row a run, step, layer, head and metric)
and, where there are any, ``losses`` (a row a run and preservation loss) and ``interpolation``. Percentages are in percent, accuracies in 0..1,
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
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from attndrift.formats import FormatError, check_table_metadata, table_metadata
from attndrift.metrics.registry import layer_metrics
from attndrift.results.columns import Column, Kind, metric_columns


class TableError(ValueError):
    """A table that does not have the form that the analysis needs; the message says where and what to do."""


def _text(name: str, meaning: str, *, required: bool = False) -> Column:
    return Column(name, kind="string", meaning=meaning, required=required)


def _count(name: str, meaning: str, low: float | None = 0.0, *, required: bool = False) -> Column:
    return Column(name, kind="int", meaning=meaning, low=low, required=required)


def _number(name: str, meaning: str, low: float | None = None, high: float | None = None, **facts: Any) -> Column:
    return Column(name, meaning=meaning, low=low, high=high, **facts)


def _fraction(name: str, meaning: str, label: str = "", short: str = "") -> Column:
    return Column(
        name, label, unit="%", digits=2, scale=100.0, meaning=f"{meaning} (0..1)", low=0.0, high=1.0, short_label=short
    )


_RUN_ID = _text("run_id", "run of the table `runs`", required=True)
_SETTINGS = (
    _text("run_id", "unique name of the run", required=True),
    _text("study", "name of the study"),
    _text("experiment", "label in the original study's matrix (E2, A1, ...)"),
    _text("selection", "test | validation"),
    _text("model", "backbone"),
    _text("model_revision", "commit of the backbone, where it is from a hub"),
    _text("dataset", "fine-tuning target"),
    _text("method", "full | lora | linear_probe | last_block | none", required=True),
    _text("head", "trained: from its default initialisation | text: starts from text features"),
    _text("parent_run", "the run that an outcome was made from: an average, an interpolation, ..."),
    _number("learning_rate", "peak rate of AdamW", 0.0, label="Learning rate"),
    _count("seed", "initialisation, order and augmentation; runs without one count as one seed", None),
    _count("data_seed", "splits, subsets and probe", None),
    _number("epochs", "planned epochs", 0.0),
    _count("batch_size", "images an optimiser step"),
    _number("weight_decay", "AdamW weight decay", 0.0),
    _count("lora_rank", "rank of the adapters"),
    _number("lora_alpha", "scale numerator of the adapters", 0.0),
    _text("lora_targets", "adapted projections, e.g. q,v"),
    Column("train_projection", kind="bool", meaning="whether the visual projection is trained"),
    _count("freeze_layers", "frozen blocks, counted from the input"),
    _text("loss", "preservation losses with their weights, e.g. attention_preservation:0.1+entropy_floor:0.01"),
    _fraction("loss_active_fraction", "how often the entropy floor was active"),
    _text("guard", "what a guard kept within a budget: retention_pct, or a metric of the monitor"),
    _number("guard_at_least", "the budget's lower limit, in the metric's unit"),
    _number("guard_at_most", "the budget's upper limit, in the metric's unit"),
    _text("guard_outcome", "inactive | kept | infeasible: the pretrained weights were put back"),
    _text("status", "finished | diverged | failed"),
    _number("selected_epoch", "epoch of the reported checkpoint", 0.0),
    _count("n_train", "training images"),
    _count("n_validation", "validation images"),
    _count("n_test", "test images"),
    _count("n_probe", "probe images"),
    _fraction("best_val_accuracy", "best validation accuracy", "Validation accuracy", "Val. accuracy"),
    _fraction("test_accuracy", "test accuracy of the selected checkpoint", "Test accuracy"),
    _count("trainable_parameters", "trainable parameters, classifier included"),
    _count("total_parameters", "all parameters, text encoder and classifier included"),
)
_TRAINING = (
    _RUN_ID,
    _count("step", "optimiser steps done; 0 is the pretrained model", required=True),
    _number("epoch", "epochs done", 0.0),
    _number("train_loss", "mean training loss since the last evaluation", label="Training loss", unit="nats"),
    _fraction("train_accuracy", "training accuracy since the last evaluation", "Training accuracy"),
    _fraction("val_accuracy", "validation accuracy, at epoch ends", "Validation accuracy"),
)
_MONITOR = (
    _fraction("monitor_zero_shot_accuracy", "zero-shot accuracy on the monitored images", "Zero-shot monitor"),
    _number(
        "monitor_zero_shot_retention_pct", "percent of the pretrained accuracy on the monitored images", 0.0,
        label="Zero-shot retention on monitored images", short_label="Monitored retention", unit="%", digits=1,
    ),
)  # fmt: skip

TABLES = ("runs", "history", "layers", "interpolation", "losses")
"""Names of the tables."""


def schema(table: str) -> tuple[Column, ...]:
    """The columns of ``table``: those of settings and training, and those of every registered metric."""
    if table == "runs":
        return (*_SETTINGS, *metric_columns("runs"))
    if table == "losses":
        return (
            _RUN_ID,
            _text("loss", "name of the preservation loss", required=True),
            _number("weight", "factor of the loss", 0.0),
            _fraction("active_fraction", "how often an entropy floor was active"),
        )
    if table == "history":
        return (*_TRAINING, *metric_columns("history"), *_MONITOR)
    if table == "layers":
        return (
            _RUN_ID,
            _count("step", "optimiser steps done", required=True),
            _count("layer", "block, counted from 1", 1.0, required=True),
            _count("head", "head, counted from 1; null for the layer mean", 1.0),
            _text("metric", ", ".join(layer_metrics()), required=True),
            _number("value", "value of the metric"),
        )
    return (
        _RUN_ID,
        _number("alpha", "0: pretrained, 1: adapted", 0.0, 1.0, required=True),
        _fraction("test_accuracy", "test accuracy", "Test accuracy"),
        *metric_columns("history"),
    )


_TRANSFER: dict[str, tuple[Kind, float | None, float | None, str]] = {
    "accuracy": ("float", 0.0, 1.0, "zero-shot accuracy, adapted"),
    "pretrained": ("float", 0.0, 1.0, "zero-shot accuracy, pretrained"),
    "retention_pct": ("float", 0.0, None, "100 x adapted / pretrained"),
    "n": ("int", 0.0, None, "images"),
}
TRANSFER_FIELDS = tuple(_TRANSFER)
"""What the columns ``transfer_SET_zero_shot_...`` end in."""
_TRANSFER_PATTERN = re.compile(r"^transfer_(?P<set>.+)_zero_shot_(?P<field>accuracy|pretrained|retention_pct|n)$")


_SWEEP_PATTERN = re.compile(r"^transfer_(?P<set>.+)_zero_shot_(?P<field>accuracy|agreement)$")


def agreement_column(name: str) -> Column:
    """The ``interpolation`` column that says how many zero-shot predictions on the set ``name`` are still the
    pretrained model's; it needs no labels."""
    return _fraction(
        f"transfer_{name}_zero_shot_agreement", f"share of images that keep the pretrained prediction, {name}"
    )


def transfer_columns(name: str) -> tuple[Column, ...]:
    """The four ``runs`` columns of the transfer set ``name``."""
    return tuple(
        Column(f"transfer_{name}_zero_shot_{suffix}", kind=kind, meaning=f"{meaning}, {name}", low=low, high=high)
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


def columns_of(table: str, frame: pd.DataFrame) -> tuple[Column, ...]:
    """Columns of ``table``: those of its schema and those of the transfer sets that ``frame`` has."""
    extra: list[Column] = []
    if table in ("runs", "interpolation"):
        pattern = _TRANSFER_PATTERN if table == "runs" else _SWEEP_PATTERN
        names = dict.fromkeys(m["set"] for c in frame.columns if (m := pattern.match(str(c))))
        for name in names:
            columns = transfer_columns(name)
            extra += columns if table == "runs" else (columns[0], agreement_column(name))
    return schema(table) + tuple(extra)


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


def _cast(column: Column, values: pd.Series[Any]) -> tuple[pd.Series[Any], int]:
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


def _values_refused(frame: pd.DataFrame, columns: list[Column]) -> dict[str, str]:
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


def _refusal(column: Column, value: float | None, row: int) -> str:
    if value is None:
        return f"column `{column.name}` is null in row {row}; it must be given in every row"
    hint = " (percent where 0..1 is meant?)" if column.high == 1.0 and value <= 100 else ""
    return (
        f"column `{column.name}` ({column.meaning}) is {value} in row {row}, "
        f"outside {column.low} .. {column.high}{hint}"
    )


@dataclass
class Tables:
    """The tables of one study; all but ``runs`` may be empty."""

    runs: pd.DataFrame
    history: pd.DataFrame = field(default_factory=lambda: conform("history", pd.DataFrame({"run_id": [], "step": []})))
    layers: pd.DataFrame = field(
        default_factory=lambda: conform("layers", pd.DataFrame({"run_id": [], "step": [], "layer": [], "metric": []}))
    )
    interpolation: pd.DataFrame = field(
        default_factory=lambda: conform("interpolation", pd.DataFrame({"run_id": [], "alpha": []}))
    )
    losses: pd.DataFrame = field(default_factory=lambda: conform("losses", pd.DataFrame({"run_id": [], "loss": []})))

    def __post_init__(self) -> None:
        for name in TABLES:
            setattr(self, name, conform(name, getattr(self, name)))
        duplicated = self.runs["run_id"].duplicated()
        if duplicated.any():
            raise TableError(f"table runs: run_id `{self.runs['run_id'][duplicated].iloc[0]}` appears more than once")
        known = set(self.runs["run_id"])
        for name in TABLES[1:]:
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


def read_tables(folder: str | os.PathLike[str], *, names: Iterable[str] = TABLES) -> Tables:
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
    for name in TABLES:
        frame: pd.DataFrame = getattr(tables, name)
        path = root / f"{name}.parquet"
        if name in ("losses", "interpolation") and frame.empty:
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
