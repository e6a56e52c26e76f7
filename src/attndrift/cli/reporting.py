"""From a folder to its analysis and its report, as several commands do it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from attndrift.cli.console import fail
from attndrift.files import refuse_links

WRITTEN = ("analysis.json", "figures", "report.html", "report.md", "runs", "tables")
"""What commands read and write in a folder of results, beside the tables."""


@dataclass
class Loaded:
    """The tables of studies, the transfer images that each run was right about, and the analysis, which is pending."""

    studies: Any
    outcomes: dict[tuple[str, str], Any]
    analysis: Any


def load(
    folders: Sequence[Path], settings: list[str] | None = None, where: str | None = None, *, whole: bool = True
) -> Loaded:
    """Read the tables in ``folders``, which a study's runs are collected into first.

    ``whole``: with all rows of ``layers``, for who draws or reports; the analysis is the same.
    """
    from attndrift.analysis.core import analyze as analyze_tables
    from attndrift.analysis.joined import load_studies
    from attndrift.analysis.loading import join_layers
    from attndrift.analysis.result import PendingAnalysis
    from attndrift.analysis.settings import parse_analysis_settings

    chosen = parse_analysis_settings(settings or [])
    for folder in folders:
        refuse_links(folder, WRITTEN)
        collect_if_study(folder)
    studies = load_studies(folders, where, whole=whole)
    outcomes = image_outcomes(studies)

    def make() -> Any:
        tables = copy(studies.tables)
        if whole:
            tables.layers = join_layers([tables.layers], tables)
        analysis = analyze_tables(tables, settings=chosen, outcomes=outcomes)
        analysis.notes[:0] = studies.notes
        return analysis

    return Loaded(studies, outcomes, PendingAnalysis(chosen, make))


def report_on(
    folders: Sequence[Path],
    output: Path,
    settings: list[str] | None = None,
    *,
    where: str | None = None,
    processes: int | None = None,
) -> tuple[Any, list[Any], tuple[Path, Path]]:
    """Write the analysis, the figures and the report of ``folders``: the analysis, the figures, and both paths of the report."""
    from attndrift.report.build import write_report

    refuse_links(output, WRITTEN)
    with drawers_for(output / "figures", processes) as drawers:
        loaded = load(folders, settings, where)
        pending = loaded.analysis
        loaded.analysis = replace(pending, make=lambda: _written(pending.result, folders[0], output))
        if not (loaded.studies.tables.runs["status"] == "finished").any():
            _ = loaded.analysis.result  # refuses, before a figure is touched, where there is nothing to report
        drawn = draw(loaded, output / "figures", drawers)
    analysis, studies = loaded.analysis.result, loaded.studies
    paths = write_report(output, records=_records(studies), analysis=analysis, figures=drawn, tables=studies.tables)
    return analysis, drawn, paths


def _written(analysis: Any, folder: Path, output: Path) -> Any:
    """``analysis``, which lies in ``output`` now."""
    from attndrift.analysis.storing import write_analysis

    if not analysis.data.n_analysed:
        raise ValueError(
            f"{folder}: no run has finished, so there is nothing to report; `attndrift show {folder}` lists the runs"
        )
    write_analysis(analysis, output)
    return analysis


def image_outcomes(studies: Any) -> dict[tuple[str, str], Any]:
    """Which transfer images each run was right about, under the names that runs have in the analysis."""
    from attndrift.analysis.image_intervals import read_image_outcomes

    return {
        (names[run], name): outcome
        for root, names in studies.folders
        for (run, name), outcome in read_image_outcomes(root).items()
        if run in names
    }


def drawers_for(output: Path, processes: int | None = None, only: Sequence[str] | None = None) -> Any:
    """What draws figures into ``output``: processes, which start at once; 1 where all or few are to be drawn anyway."""
    from attndrift.figures.drawers import FEW, Drawers, usual_processes

    count = processes or usual_processes()
    if count < 2 or (only is not None and len(only) <= FEW):
        return nullcontext(1)
    # Where figures lie drawn, most need not be drawn again.
    return nullcontext(count) if (output / "index.json").is_file() else Drawers(count)


def draw(loaded: Loaded, output: Path, drawers: Any, **options: Any) -> list[Any]:
    """Draw the figures of studies, with the attention maps of their runs; those that lie there already are kept."""
    from attndrift.figures.draw import draw_figures
    from attndrift.figures.maps import find_maps

    maps = {
        names.get(run, run): path
        for root, names in loaded.studies.folders
        for run, path in find_maps(root, list(names)).items()
    }
    return list(
        draw_figures(
            loaded.studies.tables, output, maps=maps, analysis=loaded.analysis, outcomes=loaded.outcomes, reuse=True,
            drawers=drawers, **options,
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
