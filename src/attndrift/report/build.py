"""Write ``report.md`` and ``report.html`` from one content."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

import attndrift
from attndrift.analysis.result import Analysis
from attndrift.figures.registry import FIGURES
from attndrift.files import refuse_links, write_text
from attndrift.report.blocks import Figure, FigureBlock
from attndrift.report.environment import html_environment
from attndrift.report.explore import heatmap_data, maps_data, run_order
from attndrift.report.page import FIRST_FIGURES, Page
from attndrift.report.records import Records, read_records
from attndrift.report.registry import build_sections
from attndrift.results.tables import Tables
from attndrift.sanitize import markdown_line, markdown_text

MAX_PAGE = 1_500_000
"""Bytes that ``report.html`` stays below, as far as the table of runs lets it: attention maps are left out for it."""
_LEAST_MAPS = 150_000
_WIDTH, _SMALL_WIDTH, _COLOURS = 1000, 760, 48
_SHOWS_LITTLE = {
    "fig5b_fullft_vs_lora_pets": "overview", "extra_lora_qkvo": "sweep_targets", "convergence": "dynamics",
    "statistical_summary": "differences",
}  # fmt: skip
"""Figures that show few points, and the table that has their numbers."""
_FEW_CONFIGURATIONS = 6


def write_report(
    folder: Path,
    *,
    output: Path | None = None,
    analysis: Analysis,
    figures: Sequence[Figure] = (),
    tables: Tables,
    records: Records | None = None,
) -> tuple[Path, Path]:
    """Write ``report.md`` and the self-contained ``report.html``; returns both paths.

    ``folder`` is a study folder (``runs/RUN/record.json`` and ``maps.npz`` are read where they exist) or
    any folder of tables; ``output`` (default: ``folder``) receives the two files, beside the ``tables`` of
    :func:`~attndrift.analysis.storing.write_analysis`, which both refer to. ``records``: what the runs recorded,
    where it lies in other folders. ``report.md`` refers to
    the figures by relative paths; ``report.html`` embeds them and asks nothing of any network.
    Raises ``FileNotFoundError`` where a figure that is not left out has no file, and
    :class:`~attndrift.files.LinkError` where a link leads out of a folder.
    """
    folder = Path(folder)
    target = folder if output is None else Path(output)
    target.mkdir(parents=True, exist_ok=True)
    refuse_links(target, ("report.md", "report.html"))
    if records is None:
        refuse_links(folder, ("runs",))
        records = read_records(folder, run_order(tables.runs))
    few = {figure.name for figure in figures if figure.left_out is None and _shows_little(figure.name, analysis)}
    shown = [figure for figure in figures if figure.left_out is None and figure.name not in few]
    # Pictures are packed outside of Python, on all cores.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        drawn = list(pool.map(lambda figure: _figure(figure, target), shown))
    left_out = [(figure.name, figure.left_out) for figure in figures if figure.left_out is not None]
    left_out += [(name, f"few points; its numbers are in `tables/{_SHOWS_LITTLE[name]}.csv`") for name in sorted(few)]
    sections = build_sections(Page(analysis, tables, records, drawn, left_out))
    title = ", ".join(_studies(tables)) or "an adaptation study"
    context: dict[str, Any] = {
        "title": f"What fine-tuning changed: {title}",
        "sections": [section for section in sections if not section.appendix],
        "appendix": [section for section in sections if section.appendix],
        "version": attndrift.__version__,
        "tables": [table for table in analysis.tables.values() if table.rows],
        "images": [figure for figure in drawn if figure.name not in FIRST_FIGURES],
    }
    markdown = target / "report.md"
    write_text(markdown, _markdown_environment().get_template("report.md.j2").render(context))

    context |= {
        "style": Markup(_asset("report.css")),
        "script": Markup(_asset("report.js")),
        "heatmaps": heatmap_data(tables, analysis),
        "maps": {"runs": [], "images": [], "maps": [], "notes": []},
    }
    template = html_environment().get_template("report.html.j2")
    bare = len(template.render(context).encode())
    context["maps"] = maps_data(records, analysis, budget=max(_LEAST_MAPS, MAX_PAGE - 50_000 - bare))
    page = target / "report.html"
    write_text(page, template.render(context))
    return markdown, page


def _shows_little(name: str, analysis: Analysis) -> bool:
    many = name == "statistical_summary" and analysis.data.n_configurations >= _FEW_CONFIGURATIONS
    return name in _SHOWS_LITTLE and not many


def _studies(tables: Tables) -> list[str]:
    return [str(name) for name in tables.runs["study"].dropna().unique()][:3]


def _asset(name: str) -> str:
    return files("attndrift.report").joinpath("templates", name).read_text(encoding="utf-8")


def _markdown_environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("attndrift.report"),
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"md": markdown_text, "line": markdown_line}
    return environment


def _figure(figure: Figure, target: Path) -> FigureBlock:
    """The figure as referenced (its PNG) and as embedded (a bitmap of few colours, else the file as it is)."""
    existing = [Path(file) for file in figure.files if Path(file).suffix in (".png", ".svg") and Path(file).is_file()]
    if not existing:
        raise FileNotFoundError(f"figure `{figure.name}`: it has no PNG or SVG file; draw it with `attndrift figures`")
    shown = next((file for file in existing if file.suffix == ".png"), existing[0])
    relative = quote(Path(os.path.relpath(shown.resolve(), target.resolve())).as_posix())
    block = FigureBlock(
        figure.name,
        figure.name,
        figure.caption or "",
        relative,
        _data_uri(shown, _WIDTH if figure.name in FIRST_FIGURES else _SMALL_WIDTH),
    )
    if figure.name not in FIGURES:
        return block
    spec = FIGURES[figure.name]
    return replace(block, title=spec.title, section=spec.section, alt=spec.alt)


def _data_uri(file: Path, width: int) -> str:
    if file.suffix == ".svg":
        return f"data:image/svg+xml;base64,{base64.b64encode(file.read_bytes()).decode('ascii')}"
    with Image.open(file) as picture:
        small = picture.convert("RGB")
    small.thumbnail((width, 4 * width))
    out = io.BytesIO()
    small.quantize(_COLOURS, Image.Quantize.MAXCOVERAGE).convert("RGB").save(out, "webp", lossless=True, method=2)
    return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode('ascii')}"
