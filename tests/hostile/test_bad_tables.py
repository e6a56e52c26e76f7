"""Bad tables through the importer and the reader: taken, or refused with a message, in time, and nothing else written."""

from __future__ import annotations

import functools
import io
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_bad import mutated, surroundings, within

from attndrift.formats import FormatError, table_metadata
from attndrift.importing.importer import import_tables
from attndrift.results.tables import TABLES, TableError, read_tables, write_tables
from benchmarks.synthetic import synthetic_tables

TIME_LIMIT = 30.0
FORMS = ("parquet", "csv", "jsonl", "json")

STRANGE: list[Any] = [
    None, "", "x", float("nan"), float("inf"), -float("inf"), -1, 0, 1e308, -1e308, 2**53 + 1, 2**63 - 1, 2**63, 10**400,
    True, "true", "1e-5", "0x10", "１２", "=1+1", "@SUM(A1)", "\0", "\x1b[31m", "../../escape", "/etc/passwd", "\u202e", "🙂",
    [1, 2], {"a": 1}, "a" * 5000, "NaN", "Infinity", "2026-01-01", "1,5", "\ud800", b"bytes", [], {},
]  # fmt: skip


def _good() -> dict[str, pd.DataFrame]:
    tables = synthetic_tables(seeds=1, datasets=("eurosat",), rates=2, layers=2, heads=2)
    return {name: getattr(tables, name) for name in ("runs", "history", "layers")}


@pytest.fixture(scope="module")
def good() -> dict[str, pd.DataFrame]:
    return _good()


def _strange_frame(frame: pd.DataFrame, random: np.random.Generator) -> pd.DataFrame:
    """The first rows of ``frame`` with strange values, and columns that are gone, doubled in meaning, or unheard of."""
    frame = frame.head(6).astype(object).copy()
    for _ in range(int(random.integers(1, 6))):
        column = frame.columns[int(random.integers(0, len(frame.columns)))]
        value = STRANGE[int(random.integers(0, len(STRANGE)))]
        if random.integers(0, 3) == 0:
            frame[column] = pd.Series([value] * len(frame), index=frame.index, dtype=object)
        else:
            frame.at[frame.index[int(random.integers(0, len(frame)))], column] = value
    kind = int(random.integers(0, 6))
    if kind == 0:
        frame = frame.drop(columns=frame.columns[int(random.integers(0, len(frame.columns)))])
    elif kind == 1:
        frame[str(STRANGE[int(random.integers(14, 30))])] = 1
    elif kind == 2:
        frame = frame.iloc[:0]
    return frame


def _content(frame: pd.DataFrame, form: str) -> bytes | None:
    """``frame`` as a file of ``form``; None where the form cannot hold it."""
    try:
        if form == "parquet":
            out = io.BytesIO()
            pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), out)
            return out.getvalue()
        if form == "csv":
            return frame.to_csv(index=False).encode("utf-8", "surrogatepass")
        records = [{k: None if v is pd.NA else v for k, v in row.items()} for row in frame.to_dict("records")]
        texts = [json.dumps(record, default=str) for record in records]
        return ("\n".join(texts) if form == "jsonl" else f"[{','.join(texts)}]").encode()
    except (pa.ArrowException, OverflowError, UnicodeEncodeError):
        return None


Outcome = Counter[str]


def _bad_import(seed: int, root: Path, good: dict[str, pd.DataFrame]) -> str:
    random = np.random.default_rng([2, seed])
    folder = root / f"in{seed}"
    folder.mkdir()
    damaged = list(TABLES)[int(random.integers(0, 3))]
    for name, frame in good.items():
        form = FORMS[int(random.integers(0, len(FORMS)))]
        content = _content(frame, form)
        if name == damaged:
            if random.integers(0, 2):
                content = _content(_strange_frame(frame, random), form)
            elif content is not None:
                content = mutated(content, random)
        if content is not None:
            (folder / f"{name}.{form}").write_bytes(content)
    output = root / f"out{seed}"
    before = surroundings(root, leave_out=output)
    with within(TIME_LIMIT, f"table {seed}"):
        try:
            report = import_tables(folder, output)
        except TableError as error:
            outcome = "refused" if str(error) and not output.exists() else "left something"
        else:
            outcome = "taken"
            assert str(report)
            again = read_tables(output)
            assert len(again.runs) == report.tables[0].rows
    assert surroundings(root, leave_out=output) == before
    return outcome


@functools.cache
def _whole_study() -> dict[str, bytes]:
    with TemporaryDirectory() as folder:
        write_tables(synthetic_tables(seeds=1, datasets=("eurosat",), rates=1, layers=2, heads=2), folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def _bad_parquet(seed: int, root: Path, good: dict[str, pd.DataFrame]) -> str:
    """A study's own tables, damaged on the disk."""
    random = np.random.default_rng([3, seed])
    folder = root / f"study{seed}"
    folder.mkdir()
    for file, content in _whole_study().items():
        (folder / file).write_bytes(content)
    name = ("runs", "history", "layers")[int(random.integers(0, 3))]
    path = folder / f"{name}.parquet"
    path.write_bytes(mutated(path.read_bytes(), random))
    before = surroundings(root)
    with within(TIME_LIMIT, f"parquet {seed}"):
        try:
            read_tables(folder)
        except (TableError, FormatError) as error:
            outcome = "refused" if "parquet" in str(error) or "table" in str(error) else "said badly"
        else:
            outcome = "read"
    assert surroundings(root) == before
    return outcome


def _all(attempt: Callable[..., str], seeds: range, root: Path, good: dict[str, pd.DataFrame]) -> Outcome:
    outcomes: Outcome = Counter()
    for seed in seeds:
        folder = root / str(seed)
        folder.mkdir()
        outcomes[attempt(seed, folder, good)] += 1
        shutil.rmtree(folder)
    assert set(outcomes) <= {"refused", "taken", "read"}, outcomes
    return outcomes


@pytest.mark.slow
def test_bad_tables_are_taken_or_refused(tmp_path: Path, good: dict[str, pd.DataFrame]) -> None:
    outcomes = _all(_bad_import, range(60), tmp_path, good)
    assert outcomes["refused"] > 10
    assert outcomes["taken"] > 5


def test_damaged_parquet_is_read_or_refused(tmp_path: Path, good: dict[str, pd.DataFrame]) -> None:
    assert _all(_bad_parquet, range(30), tmp_path, good)["refused"] > 5


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("attempt", [_bad_import, _bad_parquet])
def test_thousands_of_bad_tables(tmp_path: Path, attempt: Any, good: dict[str, pd.DataFrame]) -> None:
    outcomes = _all(attempt, range(30, 1310), tmp_path, good)
    print(f"\n{attempt.__name__}: {outcomes.total()} inputs, {dict(outcomes)}")
    assert outcomes.total() == 1280


@pytest.mark.parametrize("keep", [0, 3, 4, 100, -9, -1])
def test_a_parquet_table_that_was_cut_short_is_named(tmp_path: Path, good: dict[str, pd.DataFrame], keep: int) -> None:
    write_tables(synthetic_tables(seeds=1, datasets=("eurosat",), rates=1, layers=2, heads=2), tmp_path)
    path = tmp_path / "history.parquet"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(TableError, match=r"history\.parquet: not a readable Parquet file.*attndrift collect"):
        read_tables(tmp_path)


@pytest.mark.parametrize("read", [read_tables, lambda folder: import_tables(folder, folder / "out")])
def test_bytes_that_are_no_text_in_a_text_column_are_named(
    tmp_path: Path, good: dict[str, pd.DataFrame], read: Callable[[Path], object]
) -> None:
    """Found in the fuzz: a file that reads well, with a text that nobody can read."""
    for name, frame in good.items():
        table = pa.Table.from_pandas(frame, preserve_index=False)
        if name == "history":
            names = [b"run-\xff" for _ in range(len(frame))]
            wrong = pa.array(names, type=pa.binary()).view(pa.string())
            table = table.set_column(table.schema.get_field_index("run_id"), "run_id", wrong)
        pq.write_table(table.replace_schema_metadata(table_metadata()), tmp_path / f"{name}.parquet")
    with pytest.raises(TableError, match=r"history\.parquet.*(UTF|utf)"):
        read(tmp_path)


@pytest.mark.parametrize(("value", "message"), [(1e308, "numbers of more than 64 bits"), (1.5, "not whole numbers")])
def test_numbers_that_no_integer_holds_are_named_and_as_a_name_they_are_text(
    tmp_path: Path, good: dict[str, pd.DataFrame], value: float, message: str
) -> None:
    for name, frame in good.items():
        frame = frame.copy()
        frame["run_id"] = 1e308 * (1 + pd.factorize(frame["run_id"])[0] / 1e6) / 2
        if name == "runs":
            frame["seed"] = value
        frame.to_csv(tmp_path / f"{name}.csv", index=False)
    with pytest.raises(TableError, match=f"`seed` must be int: {message}"):
        import_tables(tmp_path, tmp_path / "out")


@pytest.mark.slow
def test_formulas_come_in_and_go_out_as_text(tmp_path: Path, good: dict[str, pd.DataFrame]) -> None:
    """A name that a spreadsheet would run is a name; in the CSV that we write it cannot run either."""
    import csv

    from attndrift.analysis import analyze
    from attndrift.analysis.storing import write_analysis
    from attndrift.figures.draw import draw_figures

    formulas = ["=cmd|'/C calc'!A0", "+1+cmd", "@SUM(1)", "-2+3+cmd"]
    frames = {name: frame.copy() for name, frame in good.items()}
    names = dict(zip(frames["runs"]["run_id"], formulas, strict=False))
    for frame in frames.values():
        frame["run_id"] = frame["run_id"].astype(object).map(lambda name: names.get(name, name))
    frames["runs"]["dataset"] = formulas[0]
    source = tmp_path / "in"
    source.mkdir()
    for name, frame in frames.items():
        frame.to_csv(source / f"{name}.csv", index=False)
    import_tables(source, tmp_path / "out")
    tables = read_tables(tmp_path / "out")
    assert set(formulas) <= set(tables.runs["run_id"])
    write_analysis(analyze(tables), tmp_path / "analysis")
    draw_figures(tables, tmp_path / "analysis" / "figures", only=["dose_response", "fig6_lr_sweep", "pareto_front"])
    files = list((tmp_path / "analysis").rglob("*.csv"))
    assert files
    found = 0
    for path in files:
        with path.open(newline="", encoding="utf-8") as file:
            for cell in (cell for row in csv.reader(file) for cell in row):
                found += any(formula in cell for formula in formulas)
                assert cell[:1] not in ("=", "@", "\t", "\r"), f"{path.name}: {cell!r}"
                assert cell[:1] not in ("+", "-") or _number(cell), f"{path.name}: {cell!r}"
    assert found


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
