"""An analysis on disk: ``analysis.json``, and every table as CSV, Markdown and LaTeX."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from attndrift.analysis.formats import SUFFIXES, write_table
from attndrift.analysis.result import SCHEMA_VERSION, SINGLE_SEED, Analysis, Table
from attndrift.files import read_json, refuse_links, write_text
from attndrift.results.columns import Column

MAX_ANALYSIS_BYTES = 1 << 30
"""An analysis of thousands of runs has some hundred megabytes."""


def all_tables(analysis: Analysis) -> dict[str, Table]:
    """The tables and the findings as one; those of a study of one seed say so."""
    names = ("id", "topic", "question", "strength", "sentence", "table", "rows")
    columns = [Column(name=name, label=name.capitalize()) for name in names]
    rows = [{name: getattr(finding, name) for name in names} for finding in analysis.findings]
    findings = Table(name="findings", title="Findings", columns=columns, rows=rows, notes=[])
    tables = {"findings": findings, **analysis.tables}
    if not analysis.data.single_seed:
        return tables
    return {name: table.model_copy(update={"notes": [SINGLE_SEED, *table.notes]}) for name, table in tables.items()}


def write_analysis(analysis: Analysis, folder: str | Path) -> list[Path]:
    """Write ``analysis.json`` and every table as CSV, Markdown and LaTeX in ``tables/``; returns the paths.

    Equal results give equal bytes. Tables of an earlier analysis that no longer exist are removed. Raises
    :class:`~attndrift.files.LinkError` where `tables` leads out of the folder.
    """
    root = Path(folder)
    refuse_links(root, ("analysis.json", "tables"))
    path = root / "analysis.json"
    tables = all_tables(analysis)
    for stale in _table_names(path) - set(tables):
        for suffix in SUFFIXES:
            (root / "tables" / f"{stale}{suffix}").unlink(missing_ok=True)
    write_text(path, analysis.to_json())
    written = [path]
    for table in tables.values():
        written += write_table(table, root / "tables")
    return written


def _table_names(path: Path) -> set[str]:
    """Names of the tables that the analysis at ``path`` wrote; none where there is no readable one."""
    try:
        names = set(read_json(path, MAX_ANALYSIS_BYTES)["tables"])
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    # The names become paths that are deleted, so only plain ones count.
    return {name for name in names if isinstance(name, str) and name.replace("_", "").isalnum()}


def read_analysis(path: str | Path) -> Analysis:
    """Read ``analysis.json`` (or the folder that holds it).

    Raises FileNotFoundError where there is none and ValueError where it is not of this schema.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "analysis.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no analysis here; make one with `attndrift analyze`")
    content = read_json(file, MAX_ANALYSIS_BYTES)
    found = content.get("schema_version") if isinstance(content, dict) else None
    if found != SCHEMA_VERSION:
        raise ValueError(
            f"{file}: schema_version is {found!r}, this version reads {SCHEMA_VERSION!r}; run `attndrift analyze` again"
        )
    try:
        return Analysis.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])[:200]
        raise ValueError(
            f"{file}: not an analysis: `{field}`: {first['msg']}; run `attndrift analyze` again"
        ) from error
