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
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from attndrift.extras import importing
from attndrift.files import refuse_links, replacing
from attndrift.formats import FormatError, check_table_metadata, table_metadata
from attndrift.metrics.registry import layer_metrics
from attndrift.results.columns import MAX_COLUMNS, Column, Kind, metric_columns, own_setting_columns
from attndrift.results.means import columns_of_means
from attndrift.results.measures import MEASURES, ZERO_SHOT, outcome_name


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
    _text("method", "how the model is adapted; none: the pretrained model", required=True),
    _text("head", "the classifier; trained: from its default initialisation"),
    _text("parent_run", "the run that an outcome was made from: an average, an interpolation, ..."),
    _text("outcome", "what was made of its run's training, e.g. wise_ft:0.5; null for the run itself"),
    _fraction(
        "outcome_alpha",
        "alpha that an outcome chose for itself, between the pretrained weights (0) and the trained ones",
    ),
    _number("learning_rate", "peak rate of AdamW", 0.0, label="Learning rate"),
    _count("seed", "initialisation, order and augmentation; runs without one count as one seed", None),
    _count("data_seed", "splits, subsets and probe", None),
    _number("epochs", "planned epochs", 0.0),
    _count("batch_size", "images an optimiser step"),
    _number("weight_decay", "AdamW weight decay", 0.0),
    _number(
        "training_seconds",
        "measured seconds of training; attndrift leaves it null, for the time of one run repeats "
        "on no other machine (`record.json` has it)",
        0.0,
    ),
    _text("optimisation", "what departs from one rate of AdamW: layer_decay:0.75+spd:1; null where nothing does"),
)
_ADAPTATION = (
    Column("train_projection", kind="bool", meaning="whether the visual projection is trained"),
    _count("freeze_layers", "frozen blocks, counted from the input"),
    _text(
        "trained_parts",
        "what else is trained or frozen: text_tower=full+train_temperature=True; null where only the method decides",
    ),
    _text("loss", "preservation losses with their weights, e.g. attention_preservation:0.1+entropy_floor:0.01"),
    _fraction("loss_active_fraction", "how often the loss was active, where one alone reports it"),
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
    Column(
        "monitor_disjoint",
        kind="bool",
        meaning="whether no image of the zero-shot monitor is one of the final retention; only then it is a signal",
    ),
    _fraction("best_val_accuracy", "best validation accuracy", "Validation accuracy", "Val. accuracy"),
    _fraction("test_accuracy", "test accuracy of the selected checkpoint", "Test accuracy"),
    _count("trainable_parameters", "trainable parameters, classifier included"),
    _count("total_parameters", "all parameters, text encoder and classifier included"),
)
_TRAINING = (
    _RUN_ID,
    _count("step", "optimiser steps done; 0 is the pretrained model", required=True),
    _number("epoch", "epochs done", 0.0),
    _number(
        "train_loss",
        "mean training loss since the last evaluation, with the preservation losses times their weights",
        label="Training loss (all terms)",
        short_label="Training loss",
        unit="nats",
    ),
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
        return (*_SETTINGS, *own_setting_columns(), *_ADAPTATION, *metric_columns("runs"))
    if table == "losses":
        return (
            _RUN_ID,
            _text("loss", "name of the preservation loss", required=True),
            _number("weight", "factor of the loss", 0.0),
            _fraction("active_fraction", "how often it was active, where it reports that"),
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
    "accuracy": ("float", 0.0, 1.0, "{}, adapted"),
    "pretrained": ("float", 0.0, 1.0, "{}, pretrained"),
    "retention_pct": ("float", 0.0, None, "100 x adapted / pretrained"),
    "retention_low_pct": ("float", 0.0, None, "lower end of its paired 95% interval over images"),
    "retention_high_pct": ("float", 0.0, None, "upper end of it"),
    "change_points": ("float", -100.0, 100.0, "adapted minus pretrained, percentage points"),
    "change_low_points": ("float", -100.0, 100.0, "lower end of its paired 95% interval over images"),
    "change_high_points": ("float", -100.0, 100.0, "upper end of it"),
    "n": ("int", 0.0, None, "images"),
}
TRANSFER_FIELDS = tuple(_TRANSFER)
"""What the columns ``transfer_SET_MEASURE_...`` end in."""


def _measured(column: str) -> tuple[str, str, str] | None:
    """Set, measure and field of a column ``transfer_SET_MEASURE_FIELD``; None for another column."""
    for measure in MEASURES.names():
        match = re.fullmatch(rf"transfer_(?P<set>.+)_{measure}_(?P<field>{'|'.join(_TRANSFER)})", column)
        if match:
            return match["set"], measure, match["field"]
    return None


def _swept(column: str) -> tuple[str, str] | None:
    """Set and measure of a column of a sweep; None for another column."""
    found = _measured(column.removesuffix("_agreement") + "_accuracy" if column.endswith("_agreement") else column)
    return (found[0], found[1]) if found and found[2] == "accuracy" else None


def agreement_column(name: str, measure: str = ZERO_SHOT) -> Column:
    """The ``interpolation`` column that says how many predictions by ``measure`` on the set ``name`` are still the
    pretrained model's; by zero-shot accuracy it needs no labels."""
    label = MEASURES[measure].label.removesuffix(" accuracy")
    return _fraction(
        f"transfer_{name}_{measure}_agreement", f"share of images that keep the pretrained {label} prediction, {name}"
    )


def transfer_columns(name: str, measure: str = "zero_shot") -> tuple[Column, ...]:
    """The ``runs`` columns of a retention measure on the transfer set ``name``."""
    label = MEASURES[measure].label
    return tuple(
        Column(
            f"transfer_{name}_{measure}_{suffix}",
            kind=kind,
            meaning=f"{meaning.format(label)}, {name}",
            low=low,
            high=high,
            label=f"{name} {label if suffix == 'accuracy' else suffix}",
        )
        for suffix, (kind, low, high, meaning) in _TRANSFER.items()
    )


def retention_measures(runs: pd.DataFrame) -> list[tuple[str, str]]:
    """The sets and measures that have an accuracy or a retention column in ``runs``, in order."""
    found = (_measured(str(column)) for column in runs.columns)
    return list(dict.fromkeys((one[0], one[1]) for one in found if one and one[2] in ("accuracy", "retention_pct")))


def transfer_sets(runs: pd.DataFrame) -> list[str]:
    """Names of the transfer sets that have a zero-shot accuracy or retention in ``runs``, in order."""
    return [name for name, measure in retention_measures(runs) if measure == ZERO_SHOT]


def transfer_outcomes(runs: pd.DataFrame) -> list[str]:
    """The sets and measures that have an accuracy or retention in ``runs``, as :func:`outcome_name` calls them, by name.

    Those by zero-shot accuracy come first.
    """
    found = [(measure != ZERO_SHOT, outcome_name(name, measure)) for name, measure in retention_measures(runs)]
    return [name for _, name in sorted(found)]


def outcome_of_column(column: str) -> str:
    """The transfer set and measure of a column ``transfer_SET_MEASURE_...``, as one name; empty for another column.

    >>> outcome_of_column("transfer_cifar100_knn_retention_pct"), outcome_of_column("test_accuracy")
    ('cifar100_knn', '')
    """
    found = _measured(column)
    return outcome_name(found[0], found[1]) if found else ""


_CORRUPTED = re.compile(r"corruption_(?P<name>.+)_accuracy")


def corruptions(runs: pd.DataFrame) -> list[str]:
    """Names of the corruptions under which ``runs`` has an accuracy on the target's test images, in order."""
    return [match["name"] for column in runs.columns if (match := _CORRUPTED.fullmatch(str(column)))]


def corruption_column(name: str) -> Column:
    """The ``runs`` column of the test accuracy under the corruption ``name``."""
    return _fraction(f"corruption_{name}_accuracy", f"test accuracy on the target's test images under {name}")


def columns_of(table: str, frame: pd.DataFrame) -> tuple[Column, ...]:
    """Columns of ``table``: those of its schema, and those of transfer sets and of means over seeds that ``frame`` has."""
    extra: list[Column] = []
    if table == "runs":
        found = (_measured(str(column)) for column in frame.columns)
        for name, measure in dict.fromkeys((one[0], one[1]) for one in found if one):
            extra += transfer_columns(name, measure)
        extra += [corruption_column(name) for name in corruptions(frame)]
        extra += columns_of_means([*schema(table), *extra], map(str, frame.columns))
    if table == "interpolation":
        for name, measure in dict.fromkeys(one for c in frame.columns if (one := _swept(str(c)))):
            extra += (transfer_columns(name, measure)[0], agreement_column(name, measure))
    return schema(table) + tuple(extra)


_DTYPES: dict[str, str] = {"string": "string", "int": "Int64", "float": "float64", "bool": "boolean"}
_TYPED = {kind: pd.api.types.pandas_dtype(name) for kind, name in _DTYPES.items()}
_ARROW = {"string": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}


def conform(table: str, frame: pd.DataFrame, *, where: str | None = None) -> pd.DataFrame:
    """``frame`` with every column of ``table``, in order and typed; absent columns are null.

    Unknown columns are kept at the end. Infinite numbers (the loss of a diverged run, a change relative to 0)
    become null; :func:`infinite_values` counts them. Raises :class:`TableError`, naming column and row, for a
    missing or null key, a value of the wrong type, or one outside its range (an accuracy of 97.2
    where 0.972 is meant, for example); one message tells the first problem of each of up to five columns.
    """
    return _conformed(table, frame, where or f"table {table}", copy=True)


def _conformed(table: str, frame: pd.DataFrame, where: str, *, copy: bool) -> pd.DataFrame:
    """:func:`conform`; without ``copy`` the columns share memory with ``frame``, and all null columns with each other."""
    if len(frame.columns) > MAX_COLUMNS:
        raise TableError(f"{where}: {len(frame.columns):,} columns; a table has at most {MAX_COLUMNS:,}")
    columns = columns_of(table, frame)
    frame = frame.reset_index(drop=True)
    infinite = infinite_values(frame)
    result: dict[str, pd.Series[Any]] = {}
    problems: dict[str, str] = {}
    # One of each type: most of a table's hundred columns are null in most tables.
    nulls = {kind: pd.Series([None] * len(frame), index=frame.index, dtype=_DTYPES[kind]) for kind in _DTYPES}
    for column in columns:
        if column.name not in frame.columns:
            if column.required:
                problems[column.name] = f"the column `{column.name}` ({column.meaning}) is missing"
            result[column.name] = nulls[column.kind]
            continue
        values = frame[column.name]
        if values.isna().all():
            result[column.name] = nulls[column.kind]
            continue
        try:
            result[column.name], count = _cast(column, values)
        except (TypeError, ValueError, OverflowError, pa.ArrowException) as error:
            problems[column.name] = f"column `{column.name}` must be {column.kind}: {error}"
            continue
        if count:
            infinite[column.name] = infinite.get(column.name, 0) + count
    whole = pd.DataFrame(result, index=frame.index, copy=copy)
    problems |= _values_refused(whole, [c for c in columns if c.name in frame.columns and c.name not in problems])
    if problems:
        told = [problems[column.name] for column in columns if column.name in problems]
        more = f"; {len(told) - _TOLD} more columns" if len(told) > _TOLD else ""
        raise TableError(f"{where}: {'; '.join(told[:_TOLD])}{more}")
    known = {column.name for column in columns}
    others = [name for name in frame.columns if name not in known]
    if others:
        whole = pd.concat([whole, frame[others]], axis=1)
    if infinite:
        whole.attrs[_INFINITE] = infinite
    return whole


_TOLD = 5
"""Columns whose problems one message tells."""
_INFINITE = "infinite"
_READ = "read"
"""Of a table that was read: its file, and whether its columns may be shared."""


def infinite_values(frame: pd.DataFrame) -> dict[str, int]:
    """How many infinite numbers of each column :func:`conform` turned into nulls."""
    return dict(frame.attrs.get(_INFINITE, {}))


def _cast(column: Column, values: pd.Series[Any]) -> tuple[pd.Series[Any], int]:
    """``values`` as the column's type, infinite ones as nulls, and how many those were. Raises what says why not."""
    # Columns of a table that is made of another have the type already; the checks below would double the time.
    if column.kind == "float" and values.dtype == np.float64:
        infinite = np.isinf(values.to_numpy())
        return values.mask(infinite) if infinite.any() else values, int(infinite.sum())
    if values.dtype == _TYPED[column.kind]:
        return values, 0
    if column.kind == "bool":
        return values.astype("boolean"), 0
    if column.kind == "int" and values.dtype == np.int64:
        return values.astype("Int64"), 0
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
        infinite = np.isinf(plain.to_numpy())
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
    """For each column with a null where none may be, or a value out of range, the first one in words."""
    columns = [c for c in columns if c.required or c.low is not None or c.high is not None]
    if frame.empty or not columns:
        return {}
    # Rounding may carry a cosine or a CKA a hair over its bound; a percentage is far over it.
    slack = 1e-6
    refused: dict[str, str] = {}
    for column in columns:
        values = frame[column.name]
        wrong = [values.isna().to_numpy()] if column.required else []
        if column.low is not None or column.high is not None:
            plain = values.dtype == np.float64
            numbers = values.to_numpy() if plain else values.to_numpy(dtype=float, na_value=np.nan)
            wrong += [numbers < column.low - slack] if column.low is not None else []
            wrong += [numbers > column.high + slack] if column.high is not None else []
        for rows in wrong:
            if rows.any():
                row = int(rows.argmax())
                value = values.iloc[row]
                refused[column.name] = _refusal(column, None if pd.isna(value) else value, row)
                break
    return refused


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
    """The tables of one study; all but ``runs`` may be empty. Each is made to :func:`conform`."""

    runs: pd.DataFrame
    history: pd.DataFrame = field(default_factory=lambda: pd.DataFrame({"run_id": [], "step": []}))
    layers: pd.DataFrame = field(
        default_factory=lambda: pd.DataFrame({"run_id": [], "step": [], "layer": [], "metric": []})
    )
    interpolation: pd.DataFrame = field(default_factory=lambda: pd.DataFrame({"run_id": [], "alpha": []}))
    losses: pd.DataFrame = field(default_factory=lambda: pd.DataFrame({"run_id": [], "loss": []}))

    def __post_init__(self) -> None:
        for name in TABLES:
            frame: pd.DataFrame = getattr(self, name)
            where, share = frame.attrs.get(_READ, (f"table {name}", False))
            # The analysis adds columns to `runs`, and does that faster where they are one block.
            setattr(self, name, _conformed(name, frame, where, copy=name == "runs" or not share))
        duplicated = self.runs["run_id"].duplicated()
        if duplicated.any():
            raise TableError(f"table runs: run_id `{self.runs['run_id'][duplicated].iloc[0]}` appears more than once")
        known = set(self.runs["run_id"])
        for name in TABLES[1:]:
            strangers = set(getattr(self, name)["run_id"].unique()) - known
            if strangers:
                raise TableError(f"table {name}: run_id `{min(strangers)}` is not in the table runs")

    def plot(self, name: str = "pareto_front", ax: Any = None) -> Any:
        """Draw a figure of ``attndrift list figures``, in the place of ``ax`` or a figure of its own; returns its axes.

        The front of accuracy and retention unless told otherwise. Raises as :func:`attndrift.figures.axes.draw_axes`.
        """
        # Here, as drawing needs packages that tables do not.
        with importing("report", "study.plot()"):
            from attndrift.figures.axes import draw_axes
        return draw_axes(name, self, ax)


def _most_bytes() -> int:
    """What the numbers of one table may take: a quarter of the machine's memory, at least 2 GiB."""
    return max(2 << 30, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4)


def check_size(file: pq.ParquetFile) -> list[str]:
    """Raise ``ValueError`` for a Parquet file that would take much memory, by its footer; returns its columns of text.

    A few bytes of it may stand for any number of equal values.
    """
    rows, names = file.metadata.num_rows, file.metadata.num_columns
    if names > MAX_COLUMNS:
        raise ValueError(f"it has {names:,} columns; a table has at most {MAX_COLUMNS:,}")
    if 8 * rows * names > _most_bytes():
        raise ValueError(
            f"its {rows:,} rows of {names} columns take {8 * rows * names:,} bytes; on this machine a table may take "
            f"{_most_bytes():,}"
        )
    return [one.name for one in file.schema_arrow if pa.types.is_string(one.type) or pa.types.is_large_string(one.type)]


def _with_text(table: pa.Table) -> pa.Table:
    """``table`` with its texts written out. Raises ``ValueError`` where they would take much memory."""
    total = 0
    for column in table.columns:
        if pa.types.is_dictionary(column.type):
            for chunk in column.chunks:
                lengths = pc.fill_null(pc.binary_length(chunk.dictionary), 0)
                total += pc.sum(lengths.take(chunk.indices.drop_null())).as_py() or 0
    if total > _most_bytes():
        raise ValueError(f"its texts take {total:,} bytes; on this machine they may take {_most_bytes():,}")
    for place, column in enumerate(table.columns):
        if pa.types.is_dictionary(column.type):
            table = table.set_column(place, table.field(place).name, column.cast(column.type.value_type))
    return table


def read_parquet(path: Path, optional: Collection[str] | None = None, *, share: bool = False) -> pd.DataFrame:
    """The table in a Parquet file. Raises ``ValueError``, with the reason, where it cannot be read.

    ``optional``: for a table of ours, its columns that are left out where all their values are null. One without a format
    number then raises :class:`~attndrift.formats.FormatError`. ``share``: without a copy, where possible; read-only.
    """
    try:
        # Not by path: a damaged file must not be taken for a data set of several, nor its name for an address.
        with path.open("rb") as file:
            texts = check_size(pq.ParquetFile(file))
            file.seek(0)
            table = pq.read_table(file, read_dictionary=texts)
        # A flipped bit in a text decompresses well, and is found where somebody looks at that text, or never.
        table.validate(full=True)
        table = _with_text(table)
        if optional is not None:
            check_table_metadata(table.schema.metadata, path)
            nulls = [n for n in table.column_names if n in optional and table[n].null_count == len(table)]
            table = table.drop_columns(nulls)
        return table.to_pandas(split_blocks=share, self_destruct=True)
    except FormatError:
        raise
    # Damaged bytes come out of Arrow and pandas as almost any error, among them of memory and of keys.
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise ValueError(f"{type(error).__name__}: {reason[:300]}") from error


def read_tables(folder: str | os.PathLike[str], *, names: Iterable[str] = TABLES, share: bool = False) -> Tables:
    """Read the tables of ``folder`` (a study folder, or any folder that holds ``runs.parquet``).

    Only ``runs.parquet`` has to exist. Raises :class:`TableError` for a file that is missing, cut
    short, or not of the documented form, and :class:`~attndrift.formats.FormatError` for one of another version, or of
    another program: those come in through ``attndrift import``. ``share``: for tables that nobody changes in place: the
    columns of ``history`` are not copied, and all null ones are one array; half the memory.
    """
    root = Path(folder)
    if not (root / "runs.parquet").is_file():
        raise TableError(
            f"{root}: no runs.parquet here. A study folder gets it from `attndrift collect`; "
            "foreign records come in through `attndrift import`."
        )
    names = list(names)
    refuse_links(root, [f"{name}.parquet" for name in names])
    frames: dict[str, pd.DataFrame] = {}
    for name in names:
        path = root / f"{name}.parquet"
        if not path.is_file():
            continue
        try:
            frames[name] = read_parquet(path, _optional(name), share=share)
        except FormatError:
            raise
        except ValueError as error:
            raise TableError(
                f"{path}: not a readable Parquet file ({error}); write it again with `attndrift collect`"
            ) from error
        frames[name].attrs[_READ] = (str(path), share)
    return Tables(**frames)


def _optional(table: str) -> set[str]:
    """The columns of ``table`` that may be absent, which is the same as null."""
    return {column.name for column in schema(table) if not column.required}


def _foreign(values: pd.Series[Any], table: str) -> pa.Array:
    """A column that no schema knows. Raises :class:`TableError` where its values are of no one kind."""
    try:
        return pa.array(values, from_pandas=True)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise TableError(f"table {table}: column `{values.name}` cannot be written: {reason}; leave it out") from error


def arrow_table(name: str, frame: pd.DataFrame) -> pa.Table:
    """One of :data:`TABLES` as it is written. Raises :class:`TableError` for a column whose values are of no one kind."""
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
    return pa.table(arrays, metadata=table_metadata())


def write_tables(
    tables: Tables, folder: str | os.PathLike[str], made: Mapping[str, pa.Table] | None = None
) -> list[Path]:
    """Write every table that has rows (``runs`` always) as Parquet, each whole or not at all.

    ``made``: tables as :func:`arrow_table` gives them, in the place of those in ``tables``. Equal tables give equal
    bytes. Returns the paths written.
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
        table = made[name] if made and name in made else arrow_table(name, frame)
        with replacing(path) as temporary:
            pq.write_table(table, temporary)
        written.append(path)
    return written
