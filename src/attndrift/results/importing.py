"""Foreign records in: check them, say what is missing and what that costs, write the Parquet tables.

Files are recognised by name (``runs``, ``history``, ``layers``, ``interpolation``) with one of the
suffixes parquet, csv, tsv, jsonl (ndjson) or json (a list of records). Nothing is guessed about values: a
percentage where a fraction is meant is an error that says so, ``rename`` is the only way in which
a column changes its name, and ``scale`` the only one in which it changes its unit. A table ``layers`` with a
column for each metric becomes long, and cells of a number's column that hold a usual word for "nothing" become
null; the report says both.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from attndrift.results.tables import (
    SCHEMAS,
    STRUCTURE_METRICS,
    TableError,
    Tables,
    columns_of,
    read_parquet,
    transfer_sets,
    write_tables,
)

SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl", ".ndjson", ".json")

NULLS = ("", "-", "--", "–", "—", "?", "na", "n/a", "n.a.", "nan", "none", "null", "nil", "missing")
"""Words for "nothing" in columns of numbers and truth values, in any case."""

COSTS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("runs", ("seed",), "telling seeds apart: all runs count as one seed, so everything is descriptive"),
    ("runs", ("dataset",), "telling data sets apart: all runs are taken to share one"),
    ("runs", ("learning_rate",), "rate tables, correlations with the rate, cells, operating points"),
    ("runs", ("best_val_accuracy",), "selection rules, operating points of best validation, iso-accuracy"),
    ("runs", ("test_accuracy",), "the accuracy-retention front on test accuracy (validation is used instead)"),
    ("runs", ("selected_epoch",), "which step the final layer values belong to (the last one is used)"),
    ("runs", ("status",), "setting diverged runs aside (all count as finished)"),
    ("runs", ("protocol",), "telling protocols apart"),
    ("runs", ("entropy_last_layer_change_pct",), "the last block beside the mean"),
    ("runs", ("cka_mean",), "CKA as an outcome and as a signal"),
    ("runs", ("embedding_drift",), "embedding drift as an outcome and as a signal"),
    ("runs", ("weight_drift",), "weight drift as an outcome and as a signal"),
    ("runs", ("lora_rank",), "the rank table"),
    ("runs", ("weight_decay",), "the weight decay table"),
    ("runs", ("freeze_layers",), "the freezing table"),
    ("runs", ("regularizer",), "the regularizer table"),
    ("history", ("entropy_change_pct",), "collapse onset, entropy as a signal after the first epoch"),
    ("history", ("val_accuracy",), "convergence"),
    ("history", ("epoch",), "the first epoch (derived from steps and planned epochs where those are given)"),
    ("history", ("cka_mean", "embedding_drift", "weight_drift"), "drift signals after the first epoch"),
    ("layers", ("value",), "change per layer, the ANOVA over layer groups, the baseline by layer"),
    ("interpolation", ("alpha",), "interpolation sweeps"),
)


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


def import_tables(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    rename: Mapping[str, str] | None = None,
    scale: Mapping[str, float] | None = None,
    nulls: Sequence[str] = (),
    overwrite: bool = False,
    check_only: bool = False,
) -> ImportReport:
    """Check foreign tables and write them as ``runs.parquet`` and the others in ``output``.

    ``source`` is a folder, a file or several files; ``rename`` maps foreign column names to the
    documented ones (in whichever table has them; ``table.old=new`` limits it to one), ``scale`` multiplies
    columns (documented names, or ``table.name``), ``nulls`` are words that mean null in any column. The tables
    appear all or not at all. With ``check_only`` nothing is written.

    Raises :class:`attndrift.results.tables.TableError` for a missing file or column, a wrong type, a value out
    of range (percent where 0..1 is meant), a rename or scale that fits nothing, and, unless ``overwrite``, for
    tables that already exist in ``output``.
    """
    root = Path(output)
    files = _files(source)
    existing = [root / f"{name}.parquet" for name in SCHEMAS if (root / f"{name}.parquet").exists()]
    if existing and not overwrite and not check_only:
        raise TableError(f"{existing[0]} already exists; choose another folder, or ask to overwrite")
    renames, used = dict(rename or {}), set[str]()
    factors, scaled = dict(scale or {}), set[str]()
    frames: dict[str, pd.DataFrame] = {}
    reports: list[TableReport] = []
    for name in SCHEMAS:
        report = TableReport(name, str(files[name]) if name in files else None)
        reports.append(report)
        if name in files:
            frame = _renamed(_read(files[name], nulls), name, renames, used, report, str(files[name]))
            try:
                frame = _long(frame, report) if name == "layers" else frame
                _empty_cells(frame, name, report)
                _scale(frame, name, factors, scaled, report)
                _text_types(frame, name)
            except TableError:
                raise
            except (ValueError, TypeError, OverflowError) as error:
                raise TableError(f"{files[name]}: its values cannot be read as a table's ({error})") from error
            frames[name] = frame
            _describe(frame, name, report)
    result = ImportReport(root, reports)
    unused = [key for key in renames if key not in used]
    if unused:
        raise TableError(f"rename: no table has a column `{unused[0].split('.', 1)[-1]}`")
    unscaled = [key for key in factors if key not in scaled]
    if unscaled:
        raise TableError(f"scale: no table has a column `{unscaled[0].split('.', 1)[-1]}` (names after renaming)")
    for report in reports:
        result.suggestions += _suggestions(report)
    if "runs" not in frames:
        raise TableError(f"{_shown(source)}: no table `runs` ({', '.join(f'runs{suffix}' for suffix in SUFFIXES)})")
    _derive_retention(frames["runs"], result)
    try:
        tables = Tables(**frames)
    except TableError as error:
        near = "; ".join(result.suggestions)
        text = str(error) + (f". {near}" if near and "missing" in str(error) else "")
        column = re.search(r"column `([^`]+)`", text)
        if "percent where 0..1" in text and column:
            text += f". If all of it is in percent: --scale {column[1]}=0.01"
        raise TableError(text) from error
    result.hints += _unit_hints(tables)
    result.costs = _costs(reports, tables)
    if not check_only:
        result.written = _write(tables, root, overwrite)
    return result


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


def _shown(source: object) -> str:
    return ", ".join(str(s) for s in source) if isinstance(source, (list, tuple)) else str(source)


def _files(source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> dict[str, Path]:
    """The file of each table."""
    if isinstance(source, (str, os.PathLike)):
        root = Path(source)
        if root.is_dir():
            paths = sorted(path for path in root.iterdir() if path.suffix.lower() in SUFFIXES and path.stem in SCHEMAS)
            if not paths:
                expected = ", ".join(f"runs{suffix}" for suffix in SUFFIXES)
                raise TableError(f"{root}: no tables here; expected {expected} (and history, layers, interpolation)")
        else:
            paths = [root]
    else:
        paths = [Path(item) for item in source]
    found: dict[str, Path] = {}
    for path in paths:
        if not path.is_file():
            raise TableError(f"{path}: no such file")
        if path.suffix.lower() not in SUFFIXES:
            raise TableError(f"{path}: unknown form; use {', '.join(SUFFIXES)}")
        if path.stem not in SCHEMAS:
            near = difflib.get_close_matches(path.stem, SCHEMAS, n=1, cutoff=0.5)
            hint = f" (did you mean {near[0]}{path.suffix}?)" if near else ""
            raise TableError(f"{path}: the name must be one of {', '.join(SCHEMAS)}{hint}")
        if path.stem in found:
            raise TableError(f"two files for the table {path.stem}: {found[path.stem]} and {path}; give one")
        found[path.stem] = path
    return found


def _read(path: Path, nulls: Sequence[str]) -> pd.DataFrame:
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            frame = read_parquet(path)
        elif suffix in (".csv", ".tsv"):
            separator = "\t" if suffix == ".tsv" else _separator(path)
            words = ["null", "None", *nulls]
            frame = pd.read_csv(path, sep=separator, na_values=words, keep_default_na=True, low_memory=False)
        else:
            frame = pd.DataFrame(_records(path))
        if nulls and suffix not in (".csv", ".tsv"):
            frame = frame.mask(frame.isin(list(nulls)))
    except (OSError, ValueError, OverflowError, RecursionError, MemoryError, pd.errors.ParserError) as error:
        raise TableError(f"{path}: cannot be read as {suffix[1:]} ({error})") from error
    frame.columns = [str(column).strip() for column in frame.columns]
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        raise TableError(f"{path}: the column `{twice[0]}` appears more than once")
    return frame


def _separator(path: Path) -> str:
    """The one of comma, semicolon and tab that the heading holds most of."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        heading = file.readline()
    return max(",;\t", key=heading.count)


def _records(path: Path) -> list[dict[str, object]]:
    """The records of a JSON list, or of one JSON object a line."""
    text = path.read_text(encoding="utf-8")
    if path.suffix.lower() == ".json":
        records = json.loads(text)
    else:
        records = [json.loads(line) for line in text.splitlines() if line.strip()]
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise ValueError("a list of objects, one a row, is expected")
    return records


def _renamed(
    frame: pd.DataFrame, name: str, renames: Mapping[str, str], used: set[str], report: TableReport, where: str
) -> pd.DataFrame:
    mapping: dict[str, str] = {}
    for key, new in renames.items():
        table, _, column = key.rpartition(".")
        old = column if table in SCHEMAS else key
        if (table in SCHEMAS and table != name) or old not in frame.columns:
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
    wide = [name for name in (*STRUCTURE_METRICS, "cka", "cls_mass") if name in frame.columns]
    if "metric" in frame.columns or "value" in frame.columns or not wide or len(keys) < 3:
        return frame
    report.read_as.append(f"one column a metric ({', '.join(wide)}): made one row a value")
    long = frame.melt(id_vars=keys, value_vars=wide, var_name="metric", value_name="value")
    return long[long["value"].notna()].reset_index(drop=True)


def _empty_cells(frame: pd.DataFrame, name: str, report: TableReport) -> None:
    """Usual words for "nothing" become null in columns of numbers and truth values, in place."""
    for column in columns_of(name, frame):
        if column.kind == "string" or column.name not in frame.columns:
            continue
        values = frame[column.name]
        if pd.api.types.is_numeric_dtype(values.dtype) or pd.api.types.is_bool_dtype(values.dtype):
            continue
        words = values.map(lambda value: value.strip().lower() if isinstance(value, str) else None)
        empty = words.isin(list(NULLS)) & values.notna()
        if empty.any():
            shown = ", ".join(f"`{word}`" for word in sorted({str(word) for word in values[empty]}))
            report.read_as.append(f"{int(empty.sum())} cells of `{column.name}` ({shown}) read as null")
            frame[column.name] = values.mask(empty)


def _scale(frame: pd.DataFrame, name: str, factors: Mapping[str, float], used: set[str], report: TableReport) -> None:
    """Multiply columns, in place."""
    for key, factor in factors.items():
        table, _, rest = key.partition(".")
        column = rest if table in SCHEMAS else key
        if (table in SCHEMAS and table != name) or column not in frame.columns:
            continue
        try:
            frame[column] = pd.to_numeric(frame[column], errors="raise") * factor
        except (TypeError, ValueError) as error:
            raise TableError(f"scale: column `{column}` of the table {name} holds no numbers ({error})") from error
        report.scaled[column] = factor
        used.add(key)


def _text_types(frame: pd.DataFrame, name: str) -> None:
    """Numbers in text columns (a dataset called 7, an experiment 1) and yes/no words in truth columns, in place."""
    for column in columns_of(name, frame):
        if column.name not in frame.columns:
            continue
        values = frame[column.name]
        if column.kind == "string" and pd.api.types.is_numeric_dtype(values.dtype):
            whole = values.dropna()
            # Beyond that an integer type holds none, and a float no single one.
            small = (np.abs(whole.to_numpy(dtype=float)) < 2**53).all()
            texts = values.astype("Int64") if len(whole) and small and (whole == whole.round()).all() else values
            frame[column.name] = texts.astype("string")
        elif column.kind == "bool" and not pd.api.types.is_bool_dtype(values.dtype):
            words = {"true": True, "yes": True, "1": True, "1.0": True}
            words |= {"false": False, "no": False, "0": False, "0.0": False}
            texts = values.astype("string").str.strip().str.lower()
            wrong = texts.notna() & ~texts.isin(list(words))
            if wrong.any():
                raise TableError(
                    f"table {name}: column `{column.name}` must be true or false, not {texts[wrong].iloc[0]!r}"
                )
            frame[column.name] = texts.map(words).astype("boolean")


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
    "id": "run_id",
    "name": "run_id",
    "run": "run_id",
}


def _suggestions(report: TableReport) -> list[str]:
    found: list[str] = []
    schema = [column.name for column in SCHEMAS.get(report.name, ())]
    for name in report.unknown:
        lowered = name.lower().replace(" ", "_").replace("-", "_")
        free = [column for column in schema if column in report.missing]
        near = [_SYNONYMS[lowered]] if _SYNONYMS.get(lowered) in free else []
        near = near or difflib.get_close_matches(lowered, free, n=1, cutoff=0.75)
        if near:
            found.append(f"table {report.name}: is `{name}` the column `{near[0]}`? (--rename {name}={near[0]})")
    return found


def _derive_retention(runs: pd.DataFrame, report: ImportReport) -> None:
    """Fill an absent retention column from accuracies, and say that the chance level was not checked."""
    for name in transfer_sets(runs):
        kept, accuracy, base = (f"transfer_{name}_{end}" for end in ("retention_pct", "accuracy", "pretrained"))
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
        for column in frame.columns:
            if not column.endswith("_retention_pct"):
                continue
            values = frame[column].dropna()
            if len(values) >= 3 and values.max() <= 1.5:
                found.append(
                    f"table {table}: `{column}` lies in {values.min():.3g} .. {values.max():.3g}; it must be in "
                    f"percent "
                    "(a retention of 0.86 is 86)"
                )
        for metric in STRUCTURE_METRICS:
            column = f"{metric}_change_pct"
            base, final = frame.get(f"{metric}_baseline"), frame.get(f"{metric}_final")
            if base is None or final is None:
                continue
            derived = 100 * (final - base) / base.where(base != 0)
            both = derived.notna() & frame[column].notna() & (derived.abs() > 0.5)
            if both.sum() >= 3:
                ratio = (frame.loc[both, column] / derived[both]).median()
                if abs(ratio - 0.01) < 0.002:
                    found.append(
                        f"table {table}: `{column}` is a hundredth of what baseline and final give; it must be "
                        f"in percent"
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
    for table, columns, cost in COSTS:
        report = by_name[table]
        absent = [column for column in columns if column not in report.present]
        if report.source is None:
            text = f"no table `{table}`: {cost}"
        elif absent:
            text = f"no {', '.join(f'`{c}`' for c in absent)} in `{table}`: {cost}"
        else:
            continue
        result.append(text)
    changes = [m for m in STRUCTURE_METRICS if tables.runs[f"{m}_change_pct"].isna().all()]
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
        for name in SCHEMAS:
            stale = root / f"{name}.parquet"
            if overwrite and stale not in moved:
                stale.unlink(missing_ok=True)
        shutil.rmtree(staged, ignore_errors=True)
    return moved
