"""Write ``report.md`` and ``report.html`` from one content."""

from __future__ import annotations

import base64
import hashlib
import io
import os
from collections.abc import Sequence
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
from attndrift.report.page import Page
from attndrift.report.records import Records, read_records
from attndrift.report.registry import build_sections
from attndrift.results.tables import Tables
from attndrift.sanitize import markdown_line, markdown_text

MAX_PAGE = 15_000_000
"""Bytes that ``report.html`` stays below."""
_MAX_FIGURES = 6_000_000
_FIGURE_WIDTH = 1400


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
    any folder of tables; ``output`` (default: ``folder``) receives the two files. ``records``: what the runs recorded,
    where it lies in other folders. ``report.md`` refers to
    the figures by relative paths; ``report.html`` embeds everything and asks nothing of any network.
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
    drawn = [_figure(figure, target) for figure in figures if figure.left_out is None]
    left_out = [(figure.name, figure.left_out) for figure in figures if figure.left_out is not None]
    sections = build_sections(Page(analysis, tables, records, _within(drawn), left_out))
    title = "What fine-tuning changed: " + (", ".join(_studies(tables)) or "an adaptation study")
    context: dict[str, Any] = {"title": title, "sections": sections, "version": attndrift.__version__}
    markdown = target / "report.md"
    write_text(markdown, _markdown_environment().get_template("report.md.j2").render(context))

    style, script = _asset("report.css"), _asset("report.js")
    context |= {
        "style": Markup(style),
        "script": Markup(script),
        "style_hash": _source_hash(style),
        "script_hash": _source_hash(script),
        "heatmaps": heatmap_data(tables, analysis),
        "maps": {"runs": [], "images": [], "maps": [], "notes": []},
    }
    template = html_environment().get_template("report.html.j2")
    bare = len(template.render(context).encode())
    context["maps"] = maps_data(records, analysis, budget=max(0, min(8_000_000, MAX_PAGE - 500_000 - bare)))
    page = target / "report.html"
    write_text(page, template.render(context))
    return markdown, page


def _studies(tables: Tables) -> list[str]:
    return [str(name) for name in tables.runs["study"].dropna().unique()][:3]


def _asset(name: str) -> str:
    return files("attndrift.report").joinpath("templates", name).read_text(encoding="utf-8")


def _source_hash(source: str) -> Markup:
    """The hash by which a content security policy admits one inline style or script."""
    # The templates put a line break at both ends of the element's text.
    digest = hashlib.sha256(f"\n{source.rstrip(chr(10))}\n".encode()).digest()
    return Markup(f"'sha256-{base64.b64encode(digest).decode('ascii')}'")


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
    """The figure as referenced (its PNG) and as embedded (the smaller of PNG and SVG)."""
    existing = [Path(file) for file in figure.files if Path(file).suffix in (".png", ".svg") and Path(file).is_file()]
    if not existing:
        raise FileNotFoundError(f"figure `{figure.name}`: it has no PNG or SVG file; draw it with `attndrift figures`")
    shown = next((file for file in existing if file.suffix == ".png"), existing[0])
    smallest = min(existing, key=lambda file: file.stat().st_size)
    relative = quote(Path(os.path.relpath(shown.resolve(), target.resolve())).as_posix())
    data = _data_uri(smallest.read_bytes(), smallest.suffix)
    block = FigureBlock(figure.name, figure.name, figure.caption or "", relative, data)
    if figure.name not in FIGURES:
        return block
    spec = FIGURES[figure.name]
    return replace(block, title=spec.title, section=spec.section, alt=spec.alt)


def _data_uri(content: bytes, suffix: str) -> str:
    kind = {".svg": "svg+xml", ".png": "png"}.get(suffix)
    if kind is None:
        raise ValueError(f"a figure must be a .png or an .svg file, not {suffix!r}")
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _within(drawn: list[FigureBlock]) -> list[FigureBlock]:
    """``drawn``, with the largest bitmaps made smaller where all together would outgrow the page."""
    total = sum(len(figure.data) for figure in drawn)
    result = list(drawn)
    for place in sorted(range(len(drawn)), key=lambda i: -len(drawn[i].data)):
        if total <= _MAX_FIGURES:
            break
        figure = result[place]
        if not figure.data.startswith("data:image/png"):
            continue
        with Image.open(io.BytesIO(base64.b64decode(figure.data.partition(",")[2]))) as picture:
            smaller = picture.convert("RGB")
        smaller.thumbnail((_FIGURE_WIDTH, 4 * _FIGURE_WIDTH))
        out = io.BytesIO()
        smaller.quantize(128).save(out, "png", optimize=True)
        data = _data_uri(out.getvalue(), ".png")
        if len(data) < len(figure.data):
            total += len(data) - len(figure.data)
            result[place] = replace(figure, data=data)
    return result
