"""From a folder to its analysis and its report, as several commands do it."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from attndrift.cli.console import fail
from attndrift.files import refuse_links

WRITTEN = ("analysis.json", "figures", "report.html", "report.md", "runs", "tables")
"""What commands read and write in a folder of results, beside the tables."""


def analysed(
    folders: Sequence[Path], settings: list[str] | None = None, where: str | None = None, *, whole: bool = False
) -> tuple[Any, Any]:
    """The analysis of the tables in ``folders``, which a study's runs are collected into first, and these tables.

    ``whole``: with all rows of ``layers``, for who draws or reports; the analysis is the same.
    """
    from attndrift.analysis.core import analyze as analyze_tables
    from attndrift.analysis.joined import load_studies
    from attndrift.analysis.loading import join_layers
    from attndrift.analysis.settings import parse_analysis_settings

    chosen = parse_analysis_settings(settings or [])
    for folder in folders:
        refuse_links(folder, WRITTEN)
        collect_if_study(folder)
    studies = load_studies(folders, where, whole=whole)
    tables = copy(studies.tables)
    if whole:
        tables.layers = join_layers([tables.layers], tables)
    analysis = analyze_tables(tables, settings=chosen, outcomes=image_outcomes(studies))
    analysis.notes[:0] = studies.notes
    return analysis, studies


def report_on(
    folders: Sequence[Path],
    output: Path,
    settings: list[str] | None = None,
    *,
    where: str | None = None,
    processes: int | None = None,
) -> tuple[Any, list[Any], tuple[Path, Path]]:
    """Write the analysis, the figures and the report of ``folders``: the analysis, the figures, and both paths of the report."""
    from attndrift.analysis.storing import write_analysis
    from attndrift.report.build import write_report

    refuse_links(output, WRITTEN)
    analysis, studies = analysed(folders, settings, where, whole=True)
    if not analysis.data.n_analysed:
        first = folders[0]
        raise ValueError(
            f"{first}: no run has finished, so there is nothing to report; `attndrift show {first}` lists the runs"
        )
    write_analysis(analysis, output)
    drawn = drawn_for(studies, output / "figures", analysis, processes=processes)
    paths = write_report(output, records=_records(studies), analysis=analysis, figures=drawn, tables=studies.tables)
    return analysis, drawn, paths


def image_outcomes(studies: Any) -> dict[tuple[str, str], Any]:
    """Which transfer images each run was right about, under the names that runs have in the analysis."""
    from attndrift.analysis.image_intervals import read_image_outcomes

    return {
        (names[run], name): outcome
        for root, names in studies.folders
        for (run, name), outcome in read_image_outcomes(root).items()
        if run in names
    }


def drawn_for(studies: Any, output: Path, analysis: Any, *, processes: int | None = None, **options: Any) -> list[Any]:
    """Draw the figures of studies, with the attention maps of their runs; those that lie there already are kept."""
    from attndrift.figures.draw import draw_figures, usual_processes
    from attndrift.figures.maps import find_maps

    maps = {
        names.get(run, run): path
        for root, names in studies.folders
        for run, path in find_maps(root, list(names)).items()
    }
    outcomes = image_outcomes(studies)
    return list(
        draw_figures(
            studies.tables, output, maps=maps, analysis=analysis, outcomes=outcomes, reuse=True,
            processes=processes or usual_processes(), **options,
        )
    )  # fmt: skip


def output_for(folders: Sequence[Path], output: Path | None) -> Path:
    """Where to write: beside the tables of a single study. Ends the command where several have no folder of their own."""
    if output is None and len(folders) > 1:
        fail("several studies: say where to write with --output")
    return output or folders[0]


def _records(studies: Any) -> Any:
    """What the runs recorded beside the tables, under the names that they have there."""
    from attndrift.report.explore import run_order
    from attndrift.report.records import Records, read_records

    found = Records()
    order = run_order(studies.tables.runs)
    for root, names in studies.folders:
        refuse_links(root, ("runs",))
        runs = {name: run for run, name in names.items()}
        own = read_records(root, [runs[name] for name in order if name in runs])
        found.found.update({names[run]: replace(record, run_id=names[run]) for run, record in own.found.items()})
        found.missing.extend(names[run] for run in own.missing)
        found.problems.extend(own.problems)
    return found


def collect_if_study(folder: Path) -> None:
    """Study folders are collected afresh, so that no table is older than a run."""
    from attndrift.study.collect import STUDY
    from attndrift.study.collect import collect as collect_study

    if (folder / STUDY).is_file():
        collect_study(folder)
