"""From a folder to its analysis and its report, as several commands do it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attndrift.files import refuse_links

WRITTEN = ("analysis.json", "figures", "report.html", "report.md", "runs", "tables")
"""What commands read and write in a folder of results, beside the tables."""


def analysed(folder: Path, settings: list[str] | None = None) -> Any:
    """The analysis of the tables in ``folder``, which a study's runs are collected into first."""
    from attndrift.analysis.core import analyze as analyze_tables
    from attndrift.analysis.image_intervals import read_image_outcomes
    from attndrift.analysis.loading import load_tables
    from attndrift.analysis.settings import parse_analysis_settings

    chosen = parse_analysis_settings(settings or [])
    refuse_links(folder, WRITTEN)
    collect_if_study(folder)
    return analyze_tables(load_tables(folder), settings=chosen, outcomes=read_image_outcomes(folder))


def report_on(
    folder: Path, output: Path, settings: list[str] | None = None, *, processes: int = 1
) -> tuple[Any, list[Any], tuple[Path, Path]]:
    """Write the analysis, the figures and the report of ``folder``: the analysis, the figures, and both paths of the report."""
    from attndrift.analysis.storing import write_analysis
    from attndrift.figures.draw import draw_figures
    from attndrift.report.build import write_report
    from attndrift.results.tables import read_tables

    refuse_links(output, WRITTEN)
    analysis = analysed(folder, settings)
    write_analysis(analysis, output)
    tables = read_tables(folder)
    drawn = draw_figures(tables, output / "figures", maps=folder, analysis=analysis, processes=processes)
    paths = write_report(folder, output=output, analysis=analysis, figures=drawn, tables=tables)
    return analysis, drawn, paths


def collect_if_study(folder: Path) -> None:
    """Study folders are collected afresh, so that no table is older than a run."""
    from attndrift.study.collect import STUDY
    from attndrift.study.collect import collect as collect_study

    if (folder / STUDY).is_file():
        collect_study(folder)
