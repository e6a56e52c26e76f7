"""Foreign records in: check them, say what is missing and what that costs, write the Parquet tables.

A file belongs to the table that its name says (``runs``, ``history``, ``layers``, ``interpolation``), or, under any
other name, to the one that its columns tell. Nothing is guessed about values: what has two readings is an error that
gives the option that decides it, and whatever is read in another way than it is written stands in the report.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from attndrift.files import refuse_links
from attndrift.importing.adaptation import unused_settings
from attndrift.importing.cells import CellReader
from attndrift.importing.contradictions import check_across, check_derived, check_keys, check_series
from attndrift.importing.foreign import SUFFIXES, ForeignTable, read_foreign
from attndrift.importing.joining import join_files
from attndrift.importing.losses import check_losses, derive_losses
from attndrift.importing.means import check_means, split_spreads
from attndrift.importing.names import meanings_of, suggestions, with_measure
from attndrift.importing.options import ImportOptions
from attndrift.importing.report import ImportReport, TableReport, missing_costs
from attndrift.importing.run_names import check_run_names, name_runs
from attndrift.importing.shapes import in_our_shape
from attndrift.importing.units import unit_hints
from attndrift.importing.vocabulary import check_words, lists_as_text, map_values
from attndrift.metrics.registry import layer_metrics
from attndrift.registry import near_match, unknown_name
from attndrift.results.means import sd_column
from attndrift.results.tables import (
    TABLES,
    TableError,
    Tables,
    columns_of,
    infinite_values,
    schema,
    transfer_sets,
    write_tables,
)


class _Import:
    """Brings the tables of one import into form, and keeps which options were of use."""

    def __init__(self, options: ImportOptions) -> None:
        self.options = options
        self.renamed, self.scaled = set[str](), set[str]()
        self.mapped, self.constants = set[tuple[str, str]](), set[str]()
        self.seen = dict[str, None]()

    def table(self, table: ForeignTable, name: str, report: TableReport, where: str) -> pd.DataFrame:
        """The typed table ``name``. Raises :class:`TableError`."""
        options = self.options
        report.read_as += table.notes
        self.seen |= dict.fromkeys(table.frame.columns)
        frame = _renamed(table.frame, name, options.rename, self.renamed, report, where)
        frame = _with_measures(frame, report)
        self._add_constants(frame, name, where)
        if options.number_rows and name == "runs" and "run_id" not in frame.columns:
            frame.insert(0, "run_id", [f"row {row + 1}" for row in range(len(frame))])
        self.mapped |= map_values(frame, name, options.values)
        frame = lists_as_text(frame, name, where)
        frame = _long(frame, report) if name == "layers" else frame
        frame = split_spreads(frame, name, where, report.read_as)
        reader = CellReader(where, table.separator, options.decimal, options.nulls, report.read_as)
        frame = reader.read(frame, name)
        name_runs(frame, report.read_as)
        check_words(frame, name, where, report.read_as)
        if name == "runs":
            check_losses(frame, where, report.read_as)
        _scale(frame, name, options.scale, self.scaled, reader, report)
        check_keys(frame, name, where)
        _describe(frame, name, report)
        return frame

    def _add_constants(self, frame: pd.DataFrame, name: str, where: str) -> None:
        for key, value in self.options.constants.items():
            table, _, rest = key.partition(".")
            column = with_measure(rest if table in TABLES else key)
            if (table if table in TABLES else "runs") != name:
                continue
            if column in frame.columns:
                raise TableError(f"{where}: --set {key}: the column `{column}` is there already")
            frame[column] = value
            if column not in {known.name for known in columns_of(name, frame)}:
                known = [c.name for c in schema(name)]
                text = unknown_name(f"column of the table {name}", column, known, "docs/tables.md names all of them")
                raise TableError(f"--set {key}: {text}")
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
                column = unused[0].split(".", 1)[-1] if unused[0].partition(".")[0] in TABLES else unused[0]
                raise TableError(f"{what}: no table has a column `{column}`{more}{near_match(column, self.seen)}")
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
    hints: list[str] = []
    files = _files(source, work.options, hints)
    existing = [root / f"{name}.parquet" for name in TABLES if (root / f"{name}.parquet").exists()]
    if existing and not overwrite and not check_only:
        raise TableError(f"{existing[0]} already exists; choose another folder, or ask to overwrite")
    frames: dict[str, pd.DataFrame] = {}
    reports: list[TableReport] = []
    for name in TABLES:
        report = TableReport(name, files[name][0] if name in files else None)
        reports.append(report)
        if name in files:
            path, table = files[name]
            try:
                frames[name] = work.table(table, name, report, path)
            except TableError:
                raise
            except (ValueError, TypeError, OverflowError) as error:
                raise TableError(f"{path}: its values cannot be read as a table's ({error})") from error
    result = ImportReport(root, reports, hints=hints)
    work.check_used()
    for report in reports:
        result.suggestions += suggestions(report.name, report.unknown, report.missing)
    if "runs" not in frames:
        raise TableError(f"{_shown(source)}: no table `runs` ({', '.join(f'runs{suffix}' for suffix in SUFFIXES)})")
    sources = {name: path for name, (path, _) in files.items()}
    check_run_names(frames, sources)
    frames["runs"] = _derive_retention(frames["runs"], result)
    result.hints += derive_losses(frames, sources["runs"])
    tables = _conformed(frames, result)
    for report in reports:
        infinite = infinite_values(getattr(tables, report.name))
        report.read_as += [f"{count} infinite numbers of `{column}` read as null" for column, count in infinite.items()]
    check_derived(tables.runs, sources["runs"])
    check_means(tables.runs, sources["runs"], result.hints)
    check_across(tables, sources, result.hints)
    result.hints += unused_settings(tables.runs)
    for name, axis in (("history", "step"), ("interpolation", "alpha")):
        if name in files:
            check_series(getattr(tables, name), axis, files[name][0])
    result.hints += unit_hints(tables)
    result.costs = missing_costs(reports, tables)
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


def _shown(source: object) -> str:
    return ", ".join(str(s) for s in source) if isinstance(source, (list, tuple)) else str(source)


def _files(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], options: ImportOptions, hints: list[str]
) -> dict[str, tuple[str, ForeignTable]]:
    """The files of each table, read and joined. In a folder, files named as tables come first; what fits beside none is
    left out."""
    whole_folder = isinstance(source, (str, os.PathLike)) and Path(source).is_dir()
    paths = _in_folder(Path(source)) if whole_folder else _listed(source)  # type: ignore[arg-type]
    named = whole_folder and any(path.stem in TABLES for path in paths)
    found: dict[str, tuple[str, ForeignTable]] = {}
    for path in sorted(paths, key=lambda path: path.stem not in TABLES) if named else paths:
        if not path.is_file():
            raise TableError(f"{path}: no such file")
        table = read_foreign(path)
        try:
            in_our_shape(path, table, set(options.constants))
        except TableError:
            raise
        except (ValueError, TypeError) as error:
            raise TableError(f"{path}: its rows cannot be told apart ({error})") from error
        name = path.stem
        if name not in TABLES:
            name = _table_of(table, options.rename)
            taken = name in found and Path(found[name][0]).stem in TABLES
            if named and (taken or "run_id" not in {options.rename.get(c, c) for c in table.frame.columns}):
                hints.append(
                    f"`{path.name}` is not read: other files here are named as tables, and it belongs to none of them"
                )
                continue
            table.notes.append(f"taken for the table {name}, by its columns")
        if name in found and Path(found[name][0]).stem == path.stem == name:
            raise TableError(f"two files for the table {name}: {found[name][0]} and {path}; give one")
        one = (str(path), table)
        found[name] = join_files(name, found[name], one, options.rename) if name in found else one
    return found


def _in_folder(root: Path) -> list[Path]:
    paths = sorted(path for path in root.iterdir() if path.suffix.lower() in SUFFIXES)
    refuse_links(root, [path.name for path in paths])
    if not paths:
        expected = ", ".join(f"runs{suffix}" for suffix in SUFFIXES)
        raise TableError(f"{root}: no tables here; expected {expected} (and history, layers, interpolation)")
    return paths


def _listed(source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Path]:
    return [Path(source)] if isinstance(source, (str, os.PathLike)) else [Path(item) for item in source]


def _table_of(table: ForeignTable, rename: Mapping[str, str]) -> str:
    names = {rename.get(name, name) for name in table.frame.columns}
    names |= {meant for name in table.frame.columns for meant in meanings_of(name)[:1]} | {
        name.lower() for name in names
    }
    if "method" in names and not names & {"step", "layer"}:
        return "runs"
    tellers = (("layer", "layers"), ("alpha", "interpolation"), ("step", "history"))
    return next((name for column, name in tellers if column in names), "runs")


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


def _with_measures(frame: pd.DataFrame, report: TableReport) -> pd.DataFrame:
    """Short names of transfer columns in full; they are zero-shot where they do not say."""
    short = {name: long for name in frame.columns if (long := with_measure(name)) != name and long not in frame.columns}
    report.read_as += [f"`{name}` read as `{long}`" for name, long in short.items()]
    return frame.rename(columns=short)


def _long(frame: pd.DataFrame, report: TableReport) -> pd.DataFrame:
    """``layers`` with a row a value, where it came with a column a metric."""
    keys = [name for name in ("run_id", "step", "layer", "head") if name in frame.columns]
    wide = [name for name in layer_metrics() if name in frame.columns]
    if "metric" in frame.columns or "value" in frame.columns or not wide or len(keys) < 3:
        return frame
    report.read_as.append(f"one column a metric ({', '.join(wide)}): made one row a value")
    long = frame.melt(id_vars=keys, value_vars=wide, var_name="metric", value_name="value")
    return long[long["value"].notna() & (long["value"] != "")].reset_index(drop=True)


def _scale(
    frame: pd.DataFrame,
    name: str,
    factors: Mapping[str, float],
    used: set[str],
    reader: CellReader,
    report: TableReport,
) -> None:
    """Multiply columns, in place, and the standard deviations beside them; cells with a percent sign have a unit already."""
    limited = {key: key.partition(".")[0] for key in factors if key.partition(".")[0] in TABLES}
    columns = {key: with_measure(key.removeprefix(f"{limited.get(key)}.")) for key in factors}
    for key, factor in factors.items():
        column = columns[key]
        if limited.get(key, name) != name or column not in frame.columns:
            continue
        used.add(key)
        spread = sd_column(column)
        both = [column] + [spread] * (spread in frame.columns and spread not in columns.values())
        for one in both:
            signed = reader.percent.get(one, pd.Series(False, index=frame.index))
            if signed.any() and signed[frame[one].notna()].all():
                if one == spread:
                    continue
                raise TableError(
                    f"{reader.where}: --scale {key}: every cell of `{one}` has a percent sign, which says its unit already; "
                    "leave that option out"
                )
            try:
                numbers = pd.to_numeric(frame[one], errors="raise")
            except (TypeError, ValueError) as error:
                raise TableError(f"scale: column `{one}` of the table {name} holds no numbers ({error})") from error
            frame[one] = (numbers * abs(factor) if one == spread else numbers * factor).where(~signed, numbers)
            report.scaled[one] = factor
            if signed.any():
                report.read_as.append(
                    f"{int(signed.sum())} cells of `{one}` have a percent sign and are not multiplied"
                )


def _describe(frame: pd.DataFrame, name: str, report: TableReport) -> None:
    known = [column.name for column in columns_of(name, frame)]
    report.rows = len(frame)
    report.present = [column for column in known if column in frame.columns and frame[column].notna().any()]
    report.missing = [column for column in known if column not in report.present]
    report.unknown = [str(column) for column in frame.columns if column not in known]


def _derive_retention(runs: pd.DataFrame, report: ImportReport) -> pd.DataFrame:
    """``runs`` with absent retention columns, from accuracies; says that the chance level was not checked."""
    derived: dict[str, pd.Series[float]] = {}
    for name in transfer_sets(runs):
        kept, accuracy, base = (
            f"transfer_{name}_zero_shot_{end}" for end in ("retention_pct", "accuracy", "pretrained")
        )
        if kept in runs.columns or base not in runs.columns or accuracy not in runs.columns:
            continue
        pretrained = pd.to_numeric(runs[base], errors="coerce")
        derived[kept] = 100.0 * pd.to_numeric(runs[accuracy], errors="coerce") / pretrained.where(pretrained > 0)
        report.hints.append(
            f"`{kept}` was absent and is computed as 100 x `{accuracy}` / `{base}`; it means nothing where the "
            "pretrained accuracy is below twice chance, which the table does not tell"
        )
    # Together, as pandas takes long over a wide table's columns one by one.
    return pd.concat([runs, pd.DataFrame(derived, index=runs.index)], axis=1)


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
