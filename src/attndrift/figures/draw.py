"""How figures are written: PNG, SVG, the table behind each, captions."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attndrift.figures.canvas import WIDTH
from attndrift.figures.drawers import FEW, Drawers
from attndrift.figures.drawn import DRAWN, FigureResult, held_figures, inputs_key, note_figures
from attndrift.figures.registry import FIGURES
from attndrift.figures.source import Source
from attndrift.figures.writing import FORMATS, SUFFIXES, Form, write_figure
from attndrift.files import read_json, refuse_links, write_json
from attndrift.results.tables import Tables

if TYPE_CHECKING:
    from attndrift.analysis.image_intervals import Outcomes
    from attndrift.analysis.result import Analysis, PendingAnalysis

DEFAULT_FORMATS = ("png", "svg")


def draw_figures(
    tables: Tables,
    output: str | os.PathLike[str],
    *,
    maps: Path | Mapping[str, Any] | None = None,
    analysis: Analysis | PendingAnalysis | None = None,
    outcomes: Outcomes | None = None,
    only: Iterable[str] | None = None,
    formats: Sequence[str] = DEFAULT_FORMATS,
    width: float = WIDTH,
    drawers: Drawers | int = 1,
    reuse: bool = False,
) -> list[FigureResult]:
    """Draw every figure that ``tables`` have the data for into the folder ``output``.

    Each is written as PNG (300 dpi) and SVG, 85 mm wide unless told otherwise, with the table that it shows as CSV;
    ``index.json`` holds titles, captions and the reasons of those left out. Equal tables give equal
    bytes. Files of a figure that is left out now are removed. A ``maps.npz`` that cannot be read is left out with a
    warning.

    Args:
        tables: the tables of a study.
        output: folder, made where it does not exist.
        maps: where the attention maps lie: a study folder, a run folder, a ``maps.npz``, or a mapping
            from run to one of these.
        analysis: result of :func:`attndrift.analysis.analyze` on the same tables, or one that is pending, which is made
            while other processes draw; computed where not given.
        outcomes: which transfer images each run was right about, for intervals over images.
        only: names of figures; all by default.
        formats: of :data:`FORMATS`; files of a figure in others are removed.
        width: in inches. Type keeps its size.
        drawers: how many processes draw at the same time, or those that have been started; the files are the same.
        reuse: leave a figure that lies in ``output`` as it is, where it was drawn from equal inputs by the same code.

    Raises:
        UnknownNameError: ``only`` names a figure that does not exist.
        ValueError: ``formats`` names another form.
        LinkError: a link in ``output`` leads out of it.
    """
    chosen = FIGURES.names() if only is None else [FIGURES[name].name for name in only]
    wrong = [form for form in formats if form not in FORMATS]
    if wrong or not formats:
        raise ValueError(f"format is {wrong[0] if wrong else 'empty'}; choose from {', '.join(FORMATS)}")
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    refuse_links(folder, ["index.json", DRAWN, *(f"{name}{suffix}" for name in FIGURES.names() for suffix in SUFFIXES)])
    names = [name for name in FIGURES.names() if name in chosen]
    form = Form(tuple(dict.fromkeys(formats)), width)
    key = inputs_key(tables, maps, analysis, outcomes, repr(form)) if reuse else None
    found = held_figures(folder, key, names)
    missing = [name for name in names if name not in found]
    if missing:
        made = _draw_all(Source(tables, maps, analysis, outcomes), folder, form, missing, drawers)
        note_figures(folder, key, made.values())
        found |= made
    results = [found[name] for name in names]
    _write_index(folder, results, partial=only is not None)
    return results


def _draw_all(
    source: Source, folder: Path, form: Form, names: Sequence[str], drawers: Drawers | int
) -> dict[str, FigureResult]:
    # Other processes know nothing of a figure that was registered in this one.
    shared = [name for name in names if FIGURES.origin(name) != "this process"]
    if isinstance(drawers, int) and (drawers < 2 or len(shared) <= FEW):
        shared = []
    drawn = {name: write_figure(source, folder, form, name) for name in names if name not in shared}
    if shared:
        with Drawers(drawers) if isinstance(drawers, int) else nullcontext(drawers) as several:
            drawn |= several.draw(source, folder, form, shared)
    return drawn


def _write_index(folder: Path, results: list[FigureResult], *, partial: bool) -> None:
    entries = {
        result.name: {
            "title": result.title,
            "section": FIGURES[result.name].section,
            "alt": FIGURES[result.name].alt,
            "files": [path.name for path in result.files],
            "caption": result.caption,
            "left_out": result.left_out,
        }
        for result in results
    }
    path = folder / "index.json"
    if partial and path.is_file():
        earlier: Any
        try:
            earlier = read_json(path)
        except ValueError:
            earlier = {}  # it is written anew
        earlier = earlier if isinstance(earlier, dict) else {}
        entries = {
            name: entries.get(name, earlier.get(name)) for name in FIGURES.names() if name in entries or name in earlier
        }
    write_json(path, entries, sync=False)
