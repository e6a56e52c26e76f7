"""Foreign records in: check them, say what is missing and what that costs, write the Parquet tables.

A file belongs to the table that its name says (``runs``, ``history``, ``layers``, ``interpolation``), or, under any
other name, to the one that its columns tell. Nothing is guessed about values: what has two readings is an error that
gives the option that decides it, and whatever is read in another way than it is written stands in the report.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pandas as pd

from attndrift.files import refuse_links
from attndrift.importing.cells import CellReader, Decimal
from attndrift.importing.foreign import SUFFIXES, ForeignTable, one_row_a_run_and_step, read_foreign
from attndrift.importing.losses import check_losses, derive_losses
from attndrift.importing.vocabulary import check_derived, check_keys, check_series, check_words, map_values
from attndrift.losses.registry import LOSSES
from attndrift.methods.registry import METHODS
from attndrift.metrics.registry import METRICS, layer_metrics, structure_metrics
from attndrift.own_settings import fields_of, words_of
from attndrift.results.columns import Column, metric_columns
from attndrift.results.tables import (
    TABLES,
    TableError,
    Tables,
    columns_of,
    schema,
    transfer_sets,
    write_tables,
)


def costs() -> list[tuple[str, tuple[str, ...], str]]:
    """(table, columns, what the analysis loses if one of these columns is missing)."""
    swept = [(name, words_of(name, one)["sweep"]) for name, one in fields_of([*METHODS, *LOSSES]).items()]
    return [
        ("runs", ("seed",), "telling seeds apart: all runs count as one seed, so everything is descriptive"),
        ("runs", ("dataset",), "telling data sets apart: all runs are taken to share one"),
        ("runs", ("learning_rate",), "rate tables, correlations with the rate, cells, operating points"),
        ("runs", ("best_val_accuracy",), "selection rules, operating points of best validation, iso-accuracy"),
        ("runs", ("test_accuracy",), "the accuracy-retention front on test accuracy (validation is used instead)"),
        ("runs", ("selected_epoch",), "which step the final layer values belong to (the last one is used)"),
        ("runs", ("status",), "setting diverged runs aside (all count as finished)"),
        ("runs", ("selection",), "telling selections apart"),
        ("runs", ("entropy_last_layer_change_pct",), "the last block beside the mean"),
        *(("runs", (c.name,), f"{c.label} as an outcome and as a signal") for c in _compared("runs")),
        *(("runs", (name,), f"the table: {title}") for name, title in swept if title),
        ("runs", ("weight_decay",), "the weight decay table"),
        ("runs", ("freeze_layers",), "the freezing table"),
        ("runs", ("loss",), "the table of preservation losses"),
        ("history", ("entropy_change_pct",), "collapse onset, entropy as a signal after the first epoch"),
        ("history", ("val_accuracy",), "convergence"),
        ("history", ("epoch",), "the first epoch (derived from steps and planned epochs where those are given)"),
        ("history", tuple(c.name for c in _compared("history")), "drift signals after the first epoch"),
        ("layers", ("value",), "change per layer, the ANOVA over layer groups, the baseline by layer"),
        ("interpolation", ("alpha",), "interpolation sweeps"),
    ]


def _compared(table: Literal["runs", "history"]) -> list[Column]:
    """The columns that compare the adapted model with the pretrained one, the mean over blocks of each metric."""
    compared = {metric.name for metric in METRICS if metric.compared and metric.analysed}
    return [one for one in metric_columns(table) if one.metric in compared and one.statistic in ("value", "mean")]


@dataclass
class TableReport:
    """What was found in one table."""

    name: str
    source: str | None
    rows: int = 0
    present: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)
    scaled: dict[str, float] = field(default_factory=dict)
    read_as: list[str] = field(default_factory=list)


@dataclass
class ImportReport:
    """What came in, what is missing and what that costs; ``written`` is empty after a mere check."""

    output: Path
    tables: list[TableReport]
    costs: list[str] = field(default_factory=list)
    suggestions: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)
    written: list[Path] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report as text, a line each."""
        text: list[str] = []
        for table in self.tables:
            if table.source is None:
                text.append(f"{table.name}: no file")
                continue
            text.append(f"{table.name}: {table.rows} rows, {len(table.present)} known columns from {table.source}")
            text += [f"  renamed `{old}` to `{new}`" for old, new in table.renamed.items()]
            text += [f"  multiplied `{name}` by {factor:g}" for name, factor in table.scaled.items()]
            text += [f"  {line}" for line in table.read_as]
            if table.unknown:
                text.append("  kept, but read by no analysis: " + ", ".join(f"`{name}`" for name in table.unknown))
        for title, items in (
            ("Misnamed?", self.suggestions),
            ("Check the units:", self.hints),
            ("Missing, and what it costs:", self.costs),
        ):
            if items:
                text.append(title)
                text += [f"  {item}" for item in items]
        text += [f"wrote {path}" for path in self.written]
        return text

    def __str__(self) -> str:
        return "\n".join(self.lines())


@dataclass(frozen=True)
class ImportOptions:
    """What the owner of foreign tables says of them.

    Attributes:
        rename: foreign column names to the documented ones, in whichever table has them; ``table.old`` limits one.
        scale: factors by column (documented names, or ``table.name``).
        values: (column, foreign value) to the documented value.
        constants: columns, or ``table.name``, that have one value in every row; of ``runs`` where no table is given.
        nulls: words that mean null in any column.
        decimal: the sign that stands before decimals, where the cells do not tell.
        number_rows: name the runs by the number of their row.
    """

    rename: Mapping[str, str] = field(default_factory=dict)
    scale: Mapping[str, float] = field(default_factory=dict)
    values: Mapping[tuple[str, str], str] = field(default_factory=dict)
    constants: Mapping[str, str] = field(default_factory=dict)
    nulls: Sequence[str] = ()
    decimal: Decimal | None = None
    number_rows: bool = False


class _Import:
    """Brings the tables of one import into form, and keeps which options were of use."""

    def __init__(self, options: ImportOptions) -> None:
        self.options = options
        self.renamed, self.scaled = set[str](), set[str]()
        self.mapped, self.constants = set[tuple[str, str]](), set[str]()

    def table(self, table: ForeignTable, name: str, report: TableReport, where: str) -> pd.DataFrame:
        """The typed table ``name``. Raises :class:`TableError`."""
        options = self.options
        report.read_as += table.notes
        frame = _renamed(table.frame, name, options.rename, self.renamed, report, where)
        self._add_constants(frame, name, where)
        if options.number_rows and name == "runs" and "run_id" not in frame.columns:
            frame.insert(0, "run_id", [f"row {row + 1}" for row in range(len(frame))])
        self.mapped |= map_values(frame, name, options.values)
        frame = _long(frame, report) if name == "layers" else frame
        reader = CellReader(where, table.separator, options.decimal, options.nulls, report.read_as)
        frame = reader.read(frame, name)
        check_words(frame, name, where, report.read_as)
        if name == "runs":
            check_losses(frame, where, report.read_as)
        _scale(frame, name, options.scale, self.scaled, report)
        check_keys(frame, name, where)
        _describe(frame, name, report)
        return frame

    def _add_constants(self, frame: pd.DataFrame, name: str, where: str) -> None:
        for key, value in self.options.constants.items():
            table, _, rest = key.partition(".")
            column = rest if table in TABLES else key
            if (table if table in TABLES else "runs") != name:
                continue
            if column in frame.columns:
                raise TableError(f"{where}: --set {key}: the column `{column}` is there already")
            frame[column] = value
            if column not in {known.name for known in columns_of(name, frame)}:
                near = difflib.get_close_matches(column, [c.name for c in schema(name)], n=1)
                hint = f"; did you mean `{near[0]}`?" if near else ""
                raise TableError(f"--set {key}: the table {name} has no column `{column}`{hint}")
            self.constants.add(key)

    def check_used(self) -> None:
        """Raise :class:`TableError` for an option that fitted nothing."""
        options = self.options
        for what, keys, used, more in (
            ("rename", options.rename, self.renamed, ""),
            ("scale", options.scale, self.scaled, " (names after renaming)"),
            ("set", options.constants, self.constants, ""),
        ):
            unused = [key for key in keys if key not in used]
            if unused:
                raise TableError(f"{what}: no table has a column `{unused[0].split('.', 1)[-1]}`{more}")
        for column, old in options.values:
            if (column, old) not in self.mapped:
                raise TableError(f"map: no column `{column}` holds `{old}`")


def import_tables(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    options: ImportOptions | None = None,
    *,
    overwrite: bool = False,
    check_only: bool = False,
) -> ImportReport:
    """Check foreign tables and write them as ``runs.parquet`` and the others in ``output``.

    ``source`` is a folder, a file or several files. The tables appear all or not at all. With ``check_only`` nothing is
    written.

    Raises :class:`attndrift.results.tables.TableError` for a missing file or column, a wrong type, a value out
    of range (percent where 0..1 is meant), columns that contradict each other, an option that fits nothing, and, unless
    ``overwrite``, for tables that already exist in ``output``.
    """
    root = Path(output)
    work = _Import(options or ImportOptions())
    files = _files(source, work.options.rename)
    existing = [root / f"{name}.parquet" for name in TABLES if (root / f"{name}.parquet").exists()]
    if existing and not overwrite and not check_only:
        raise TableError(f"{existing[0]} already exists; choose another folder, or ask to overwrite")
    frames: dict[str, pd.DataFrame] = {}
    reports: list[TableReport] = []
    for name in TABLES:
        report = TableReport(name, str(files[name][0]) if name in files else None)
        reports.append(report)
        if name in files:
            path, table = files[name]
            try:
                frames[name] = work.table(table, name, report, str(path))
            except TableError:
                raise
            except (ValueError, TypeError, OverflowError) as error:
                raise TableError(f"{path}: its values cannot be read as a table's ({error})") from error
    result = ImportReport(root, reports)
    work.check_used()
    for report in reports:
        result.suggestions += _suggestions(report)
    if "runs" not in frames:
        raise TableError(f"{_shown(source)}: no table `runs` ({', '.join(f'runs{suffix}' for suffix in SUFFIXES)})")
    _derive_retention(frames["runs"], result)
    result.hints += derive_losses(frames, str(files["runs"][0]))
    tables = _conformed(frames, result)
    check_derived(tables.runs, str(files["runs"][0]))
    for name, axis in (("history", "step"), ("interpolation", "alpha")):
        if name in files:
            check_series(getattr(tables, name), axis, str(files[name][0]))
    result.hints += _unit_hints(tables)
    result.costs = _costs(reports, tables)
    if not check_only:
        result.written = _write(tables, root, overwrite)
    return result


def _conformed(frames: Mapping[str, pd.DataFrame], report: ImportReport) -> Tables:
    """The tables. Raises :class:`TableError` with what may mend a column that is missing or in another unit."""
    try:
        return Tables(**frames)
    except TableError as error:
        near = "; ".join(report.suggestions)
        text = str(error) + (f". {near}" if near and "missing" in str(error) else "")
        if "`run_id`" in text and "missing" in text and not near:
            text += ". Runs without names: --number-rows"
        column = re.search(r"column `([^`]+)`", text)
        if "percent where 0..1" in text and column:
            text += f". If all of it is in percent: --scale {column[1]}=0.01"
        raise TableError(text) from error


def parse_renames(pairs: Sequence[str]) -> dict[str, str]:
    """``["lr=learning_rate"]`` as a mapping. Raises :class:`TableError` for what is not ``old=new``."""
    result: dict[str, str] = {}
    for pair in pairs:
        old, separator, new = pair.partition("=")
        if not separator or not old.strip() or not new.strip():
            raise TableError(f"rename `{pair}`: must be old=new, for example lr=learning_rate")
        result[old.strip()] = new.strip()
    return result


def parse_scales(pairs: Sequence[str]) -> dict[str, float]:
    """``["test_accuracy=0.01"]`` as a mapping. Raises :class:`TableError` for what is not ``column=factor``."""
    result: dict[str, float] = {}
    for pair in pairs:
        column, _, factor = pair.partition("=")
        try:
            value = float(factor)
        except ValueError:
            value = math.nan
        if not column.strip() or not math.isfinite(value) or value == 0:
            raise TableError(f"scale `{pair}`: must be column=factor, for example test_accuracy=0.01")
        result[column.strip()] = value
    return result


def parse_constants(pairs: Sequence[str]) -> dict[str, str]:
    """``["dataset=eurosat"]`` as a mapping. Raises :class:`TableError` for what is not ``column=value``."""
    result: dict[str, str] = {}
    for pair in pairs:
        column, separator, value = pair.partition("=")
        if not separator or not column.strip() or not value.strip():
            raise TableError(f"set `{pair}`: must be column=value, for example dataset=eurosat")
        result[column.strip()] = value.strip()
    return result


def parse_values(items: Sequence[str]) -> dict[tuple[str, str], str]:
    """``["method:Full FT=full"]`` as a mapping. Raises :class:`TableError` for what is not ``column:old=new``."""
    result: dict[tuple[str, str], str] = {}
    for item in items:
        column, colon, rest = item.partition(":")
        old, equals, new = rest.rpartition("=")
        if not (colon and equals and column.strip() and old.strip() and new.strip()):
            raise TableError(f"map `{item}`: must be column:old=new, for example method:Full FT=full")
        result[column.strip(), old.strip()] = new.strip()
    return result


def parse_decimal(word: str | None) -> Decimal | None:
    """``point`` or ``comma`` as the sign. Raises :class:`TableError` for another word."""
    signs: dict[str | None, Decimal | None] = {None: None, "point": ".", "comma": ",", ".": ".", ",": ","}
    if word not in signs:
        raise TableError(f"decimal `{word}`: must be point or comma")
    return signs[word]


def _shown(source: object) -> str:
    return ", ".join(str(s) for s in source) if isinstance(source, (list, tuple)) else str(source)


def _files(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], rename: Mapping[str, str]
) -> dict[str, tuple[Path, ForeignTable]]:
    """The file of each table, read."""
    if isinstance(source, (str, os.PathLike)):
        root = Path(source)
        if root.is_dir():
            paths = sorted(path for path in root.iterdir() if path.suffix.lower() in SUFFIXES)
            paths = [path for path in paths if path.stem in TABLES] or paths
            refuse_links(root, [path.name for path in paths])
            if not paths:
                expected = ", ".join(f"runs{suffix}" for suffix in SUFFIXES)
                raise TableError(f"{root}: no tables here; expected {expected} (and history, layers, interpolation)")
        else:
            paths = [root]
    else:
        paths = [Path(item) for item in source]
    found: dict[str, tuple[Path, ForeignTable]] = {}
    for path in paths:
        if not path.is_file():
            raise TableError(f"{path}: no such file")
        table = read_foreign(path)
        _refuse_tensorboard(path, table)
        one_row_a_run_and_step(table)
        name = path.stem
        if name not in TABLES:
            name = _table_of(table, rename)
            table.notes.append(f"taken for the table {name}, by its columns")
        if name in found:
            raise TableError(f"two files for the table {name}: {found[name][0]} and {path}; give one")
        found[name] = (path, table)
    return found


def _table_of(table: ForeignTable, rename: Mapping[str, str]) -> str:
    names = {rename.get(name, name) for name in table.frame.columns}
    names |= {_SYNONYMS.get(name.lower(), name) for name in table.frame.columns}
    tellers = (("layer", "layers"), ("alpha", "interpolation"), ("step", "history"))
    return next((name for column, name in tellers if column in names), "runs")


def _refuse_tensorboard(path: Path, table: ForeignTable) -> None:
    columns = [name.lower() for name in table.frame.columns]
    if path.stem not in TABLES and columns == ["wall time", "step", "value"]:
        raise TableError(
            f"{path}: a scalar exported by TensorBoard, which names neither run nor metric. Put it into a table `history`: "
            f"--rename Step=step --rename Value=val_accuracy --set history.run_id={path.stem}, as history{path.suffix}"
        )


def _renamed(
    frame: pd.DataFrame, name: str, renames: Mapping[str, str], used: set[str], report: TableReport, where: str
) -> pd.DataFrame:
    mapping: dict[str, str] = {}
    for key, new in renames.items():
        table, _, column = key.rpartition(".")
        old = column if table in TABLES else key
        if (table in TABLES and table != name) or old not in frame.columns:
            continue
        if new in frame.columns and new != old:
            raise TableError(f"{where}: cannot rename `{old}` to `{new}`, which is there already")
        mapping[old] = new
        used.add(key)
    report.renamed = mapping
    result = frame.rename(columns=mapping)
    twice = result.columns[result.columns.duplicated()]
    if len(twice):
        raise TableError(f"{where}: two columns would be called `{twice[0]}`")
    return result


def _long(frame: pd.DataFrame, report: TableReport) -> pd.DataFrame:
    """``layers`` with a row a value, where it came with a column a metric."""
    keys = [name for name in ("run_id", "step", "layer", "head") if name in frame.columns]
    wide = [name for name in layer_metrics() if name in frame.columns]
    if "metric" in frame.columns or "value" in frame.columns or not wide or len(keys) < 3:
        return frame
    report.read_as.append(f"one column a metric ({', '.join(wide)}): made one row a value")
    long = frame.melt(id_vars=keys, value_vars=wide, var_name="metric", value_name="value")
    return long[long["value"].notna() & (long["value"] != "")].reset_index(drop=True)


def _scale(frame: pd.DataFrame, name: str, factors: Mapping[str, float], used: set[str], report: TableReport) -> None:
    """Multiply columns, in place."""
    for key, factor in factors.items():
        table, _, rest = key.partition(".")
        column = rest if table in TABLES else key
        if (table in TABLES and table != name) or column not in frame.columns:
            continue
        try:
            frame[column] = pd.to_numeric(frame[column], errors="raise") * factor
        except (TypeError, ValueError) as error:
            raise TableError(f"scale: column `{column}` of the table {name} holds no numbers ({error})") from error
        report.scaled[column] = factor
        used.add(key)


def _describe(frame: pd.DataFrame, name: str, report: TableReport) -> None:
    known = [column.name for column in columns_of(name, frame)]
    report.rows = len(frame)
    report.present = [column for column in known if column in frame.columns and frame[column].notna().any()]
    report.missing = [column for column in known if column not in report.present]
    report.unknown = [str(column) for column in frame.columns if column not in known]


_SYNONYMS = {
    "lr": "learning_rate",
    "rate": "learning_rate",
    "wd": "weight_decay",
    "rank": "lora_rank",
    "val_acc": "val_accuracy",
    "best_val_acc": "best_val_accuracy",
    "best_acc": "best_val_accuracy",
    "test_acc": "test_accuracy",
    "train_acc": "train_accuracy",
    "weight_drift_rel": "weight_drift",
    "entropy_mean": "entropy",
    "erf95_mean": "erf95",
    "gini_mean": "gini",
    "delta_entropy_pct": "entropy_change_pct",
    "delta_erf95_pct": "erf95_change_pct",
    "delta_gini_pct": "gini_change_pct",
    "_step": "step",
    "global_step": "step",
    "trainer/global_step": "step",
    "state": "status",
    "loss": "train_loss",
    "id": "run_id",
    "runname": "run_id",
    "mlflow.runname": "run_id",
    "name": "run_id",
    "run": "run_id",
}


def _suggestions(report: TableReport) -> list[str]:
    found: list[str] = []
    names = [column.name for column in schema(report.name)]
    for name in report.unknown:
        lowered = name.lower().replace(" ", "_").replace("-", "_")
        # MLflow and W&B put the kind of a column before its name.
        lowered = re.sub(r"^(params|metrics|tags|config|summary|eval|test|train)[./]", "", lowered)
        free = [column for column in names if column in report.missing]
        near = [_SYNONYMS[lowered]] if _SYNONYMS.get(lowered) in free else []
        near = near or difflib.get_close_matches(lowered, free, n=1, cutoff=0.75)
        if near:
            found.append(f"table {report.name}: is `{name}` the column `{near[0]}`? (--rename {name}={near[0]})")
    return found


def _derive_retention(runs: pd.DataFrame, report: ImportReport) -> None:
    """Fill an absent retention column from accuracies, and say that the chance level was not checked."""
    for name in transfer_sets(runs):
        kept, accuracy, base = (
            f"transfer_{name}_zero_shot_{end}" for end in ("retention_pct", "accuracy", "pretrained")
        )
        if kept in runs.columns or base not in runs.columns or accuracy not in runs.columns:
            continue
        pretrained = pd.to_numeric(runs[base], errors="coerce")
        runs[kept] = 100.0 * pd.to_numeric(runs[accuracy], errors="coerce") / pretrained.where(pretrained > 0)
        report.hints.append(
            f"`{kept}` was absent and is computed as 100 x `{accuracy}` / `{base}`; it means nothing where the "
            "pretrained accuracy is below twice chance, which the table does not tell"
        )


def _unit_hints(tables: Tables) -> list[str]:
    """Values within range that look like the other unit: fractions in percent columns, bits for nats."""
    found: list[str] = []
    for table, frame in (("runs", tables.runs), ("history", tables.history)):
        for column in (known.name for known in columns_of(table, frame)):
            if not column.endswith("_retention_pct") or column not in frame.columns:
                continue
            values = frame[column].dropna()
            small = values[(values > 0) & (values <= 1.5)]
            if len(small) and len(small) < len(values):
                found.append(
                    f"table {table}: {len(small)} of {len(values)} values of `{column}` are at most 1.5; it must be in "
                    "percent in every row (a retention of 0.86 is 86)"
                )
            if len(values) >= 3 and values.max() <= 1.5:
                found.append(
                    f"table {table}: `{column}` lies in {values.min():.3g} .. {values.max():.3g}; it must be in "
                    f"percent "
                    "(a retention of 0.86 is 86)"
                )
    entropy = tables.runs["entropy_baseline"].dropna()
    if len(entropy) and entropy.median() > 6.5:
        found.append(
            f"table runs: `entropy_baseline` is {entropy.median():.3g}; more than ln(576) = 6.36, the most that "
            f"24 x 24 patches "
            "allow: is it in bits? It must be in nats"
        )
    return found


def _costs(reports: list[TableReport], tables: Tables) -> list[str]:
    by_name = {report.name: report for report in reports}
    result: list[str] = []
    for table, columns, cost in costs():
        report = by_name[table]
        absent = [column for column in columns if column not in report.present]
        if report.source is None:
            text = f"no table `{table}`: {cost}"
        elif absent:
            text = f"no {', '.join(f'`{c}`' for c in absent)} in `{table}`: {cost}"
        else:
            continue
        result.append(text)
    changes = [m for m in structure_metrics() if tables.runs[f"{m}_change_pct"].isna().all()]
    for metric in changes:
        ends = tables.runs[[f"{metric}_baseline", f"{metric}_final"]]
        if ends.isna().any(axis=1).all():
            result.append(f"no `{metric}_change_pct` (nor both its ends) in `runs`: everything about {metric}")
    if not transfer_sets(tables.runs):
        result.append("no `transfer_<set>_...` columns in `runs`: retention, its predictors, selection, the front")
    if not (tables.runs["method"] == "none").any():
        result.append("no run of method `none`: the baseline is taken from step 0 of the other runs, where given")
    return result


def _write(tables: Tables, root: Path, overwrite: bool) -> list[Path]:
    """Write beside the target, then move: the tables appear together, and a failed import leaves nothing."""
    root.parent.mkdir(parents=True, exist_ok=True)
    fresh = not root.exists()
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}-") as temporary:
        staged = Path(temporary) / "tables"
        written = write_tables(tables, staged)
        if fresh:
            os.replace(staged, root)
            return [root / path.name for path in written]
        moved: list[Path] = []
        for path in written:
            target = root / path.name
            if target.exists() and not overwrite:
                raise TableError(f"{target} already exists; choose another folder, or ask to overwrite")
            moved.append(target)
        for path, target in zip(written, moved, strict=True):
            os.replace(path, target)
        for name in TABLES:
            stale = root / f"{name}.parquet"
            if overwrite and stale not in moved:
                stale.unlink(missing_ok=True)
        shutil.rmtree(staged, ignore_errors=True)
    return moved
