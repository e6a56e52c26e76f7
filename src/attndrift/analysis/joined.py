"""Several studies as one: their tables joined, the names of their runs kept apart, and where each run lies."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from attndrift.analysis.filters import only_matching
from attndrift.analysis.loading import NAMES, join_layers, load_layers
from attndrift.results.tables import TABLES, TableError, Tables, columns_of, read_tables


@dataclass(frozen=True)
class Studies:
    """The tables of one or several folders.

    Attributes:
        tables: joined; of several folders the runs are called ``STUDY/RUN``.
        folders: each folder, and what its runs are called in ``tables``.
        notes: in words, what was left out, and what the studies differ in.
    """

    tables: Tables
    folders: Sequence[tuple[Path, Mapping[str, str]]]
    notes: list[str] = field(default_factory=list)


def load_studies(
    folders: Sequence[str | os.PathLike[str]], where: str | None = None, *, whole: bool = False
) -> Studies:
    """Read the tables of ``folders`` as those of one study.

    Args:
        where: only the runs that meet this condition (:func:`attndrift.analysis.filters.matching`).
        whole: with all rows of ``layers``; otherwise with those that an analysis reads.

    Raises :class:`~attndrift.results.tables.TableError` for folders that hold no tables, one that is given twice, and
    columns that hold text in one study and numbers in another; :class:`~attndrift.analysis.filters.ConditionError`.
    """
    roots = [Path(folder) for folder in folders]
    if len({root.resolve() for root in roots}) < len(roots):
        raise TableError("one folder is given twice; give each study once")
    names = TABLES if whole else NAMES
    parts = [read_tables(root, names=names, share=True) for root in roots]
    labels = _labels(roots, parts) if len(roots) > 1 else [""]
    ids = [
        {run: f"{label}/{run}" if label else run for run in part.runs["run_id"]}
        for label, part in zip(labels, parts, strict=True)
    ]
    notes: list[str] = []
    if len(roots) == 1:
        tables = parts[0]
    else:
        _refuse_other_types(labels, parts)
        tables = _joined(labels, parts, ids, names)
        notes.append(f"{len(roots)} studies are analysed as one: {', '.join(labels)}. Their runs are called STUDY/RUN.")
        notes += _revisions(tables.runs)
    if where is not None:
        every = len(tables.runs)
        tables = only_matching(tables, where)
        notes.append(f"Only runs where `{where}`: {len(tables.runs)} of {every}.")
    if not whole:
        several = len(roots) > 1
        layers = [load_layers(root, tables, own if several else None) for root, own in zip(roots, ids, strict=True)]
        given = [frame for frame in layers if frame is not None]
        if given:
            tables.layers = join_layers(given, tables) if several else given[0]
    kept = set(tables.runs["run_id"])
    shown = [{run: name for run, name in own.items() if name in kept} for own in ids]
    return Studies(tables, list(zip(roots, shown, strict=True)), notes)


def _labels(roots: Sequence[Path], parts: Sequence[Tables]) -> list[str]:
    """A name for each study that no other has: its own, that of its folder, or its whole path."""
    own = [part.runs["study"].dropna().unique().tolist() for part in parts]
    candidates = (
        [str(names[0]) if len(names) == 1 else "" for names in own],
        [root.resolve().name for root in roots],
        [root.resolve().as_posix().strip("/") for root in roots],
    )
    return next(labels for labels in candidates if all(labels) and len(set(labels)) == len(labels))


def _joined(
    labels: Sequence[str], parts: Sequence[Tables], ids: Sequence[Mapping[str, str]], names: Sequence[str]
) -> Tables:
    frames: dict[str, pd.DataFrame] = {}
    for table in names:
        renamed = []
        for label, part, own in zip(labels, parts, ids, strict=True):
            frame = getattr(part, table)
            frame = frame.assign(run_id=frame["run_id"].map(own).astype("string"))
            if table == "runs":
                frame["parent_run"] = frame["parent_run"].map(
                    lambda run, own=own: own.get(run, run), na_action="ignore"
                )
                frame["study"] = frame["study"].fillna(label)
            renamed.append(frame)
        frames[table] = pd.concat(
            [frame.dropna(axis=1, how="all") for frame in renamed if len(frame)] or renamed[:1], ignore_index=True
        )
    return Tables(**frames)


def _refuse_other_types(labels: Sequence[str], parts: Sequence[Tables]) -> None:
    """Columns of the schema have one type everywhere; others are compared here."""
    seen: dict[tuple[str, str], tuple[str, str]] = {}
    for label, part in zip(labels, parts, strict=True):
        for table in TABLES:
            frame: pd.DataFrame = getattr(part, table)
            known = {column.name for column in columns_of(table, frame)}
            for name in frame.columns.difference(list(known)):
                if frame[name].isna().all():
                    continue
                numeric = pd.api.types.is_numeric_dtype(frame[name].dtype)
                kind = (
                    "truth values"
                    if pd.api.types.is_bool_dtype(frame[name].dtype)
                    else "numbers"
                    if numeric
                    else "text"
                )
                other, before = seen.setdefault((table, str(name)), (label, kind))
                if before != kind:
                    raise TableError(
                        f"table {table}: column `{name}` holds {before} in study `{other}` and {kind} in study `{label}`; rename "
                        "one of them (attndrift import ... --rename)"
                    )


def _revisions(runs: pd.DataFrame) -> list[str]:
    """In words, where one model has several revisions, which are analysed as one model."""
    given = runs[runs["model"].notna() & runs["model_revision"].notna()]
    several = given.groupby("model")["model_revision"].nunique()
    return [
        f"The studies have {count} revisions of `{model}`, which are analysed as one model."
        for model, count in several[several > 1].items()
    ]
