"""How figures are written: PNG, SVG, the table behind each, captions."""

from __future__ import annotations

import multiprocessing
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG

from attndrift.figures.canvas import WIDTH, drawing_on
from attndrift.figures.drawn import DRAWN, FigureResult, held_figures, inputs_key, note_figures
from attndrift.figures.registry import FIGURES
from attndrift.figures.source import Drawing, NoData, Source
from attndrift.figures.style import styled
from attndrift.files import read_json, refuse_links, replacing, write_json, write_text
from attndrift.results.tables import Tables
from attndrift.sanitize import sheet_text

if TYPE_CHECKING:
    from attndrift.analysis.image_intervals import Outcomes
    from attndrift.analysis.result import Analysis

FORMATS = ("png", "svg", "pdf")
"""The forms that a figure can be written in."""
DEFAULT_FORMATS = ("png", "svg")
SUFFIXES = (*(f".{form}" for form in FORMATS), ".csv")


def draw_figures(
    tables: Tables,
    output: str | os.PathLike[str],
    *,
    maps: Path | Mapping[str, Any] | None = None,
    analysis: Analysis | None = None,
    outcomes: Outcomes | None = None,
    only: Iterable[str] | None = None,
    formats: Sequence[str] = DEFAULT_FORMATS,
    width: float = WIDTH,
    processes: int = 1,
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
        analysis: result of :func:`attndrift.analysis.analyze` on the same tables; computed where not given.
        outcomes: which transfer images each run was right about, for intervals over images.
        only: names of figures; all by default.
        formats: of :data:`FORMATS`; files of a figure in others are removed.
        width: in inches. Type keeps its size.
        processes: how many draw at the same time; the files are the same.
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
    form = _Form(tuple(dict.fromkeys(formats)), width)
    key = inputs_key(tables, maps, analysis, outcomes, repr(form)) if reuse else None
    found = held_figures(folder, key, names)
    missing = [name for name in names if name not in found]
    if missing:
        made = _draw_all(Source(tables, maps, analysis, outcomes), folder, form, missing, processes)
        note_figures(folder, key, made.values())
        found |= made
    results = [found[name] for name in names]
    _write_index(folder, results, partial=only is not None)
    return results


def usual_processes() -> int:
    """How many processes draw the figures of a command: each takes about 250 MB, and a second to start."""
    return min(4, os.cpu_count() or 1)


def _draw_all(
    source: Source, folder: Path, form: _Form, names: Sequence[str], processes: int
) -> dict[str, FigureResult]:
    # Other processes know nothing of a figure that was registered in this one.
    shared = [name for name in names if FIGURES.origin(name) != "this process"]
    if processes < 2 or len(shared) <= 2 * processes:
        return {name: _draw(source, folder, form, name) for name in names}
    context = multiprocessing.get_context("spawn")
    drawn: dict[str, FigureResult] = {}
    with ProcessPoolExecutor(processes - 1, context, initializer=_hold, initargs=(source, folder, form)) as pool:
        asked = {name: pool.submit(_draw_held, name) for name in shared}
        # This process draws too: what no other has begun, from the end.
        for name in reversed(names):
            if name not in asked or asked[name].cancel():
                drawn[name] = _draw(source, folder, form, name)
        drawn |= {name: future.result() for name, future in asked.items() if name not in drawn}
    return drawn


@dataclass(frozen=True)
class _Form:
    """The files that are written of a figure, and its width in inches."""

    formats: tuple[str, ...]
    width: float


def _draw(source: Source, folder: Path, form: _Form, name: str) -> FigureResult:
    """Draw one figure, or remove its files where there is nothing to draw."""
    spec = FIGURES[name]
    result = FigureResult(name, spec.title)
    try:
        with styled(), drawing_on(width=form.width), warnings.catch_warnings():
            # A name in a script that the font lacks shows boxes; that is no reason to stop or to warn.
            warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
            drawing = spec.draw(source)
            result.files = _save(drawing, folder, form, name)
        result.caption = drawing.caption
    except NoData as reason:
        result.left_out = str(reason)
    for path in (folder / f"{name}{suffix}" for suffix in SUFFIXES):
        if path not in result.files:
            path.unlink(missing_ok=True)
    return result


_held: tuple[Source, Path, _Form]


def _hold(source: Source, folder: Path, form: _Form) -> None:
    """Keep, in a process that draws, what all of its figures need."""
    global _held
    _held = source, folder, form


def _draw_held(name: str) -> FigureResult:
    return _draw(*_held, name)


_CANVASES: dict[str, Any] = {"png": FigureCanvasAgg, "svg": FigureCanvasSVG, "pdf": FigureCanvasPdf}
# Neither the date nor the version of the library, so that equal tables give equal bytes.
_METADATA: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


def _save(drawing: Drawing, folder: Path, form: _Form, name: str) -> list[Path]:
    figure = drawing.figure
    # Laid out once for all files, and each drawn once: `savefig` draws every file twice, once only to lay it out.
    figure.dpi = matplotlib.rcParams["savefig.dpi"]
    if (layout := figure.get_layout_engine()) is not None:
        layout.execute(figure)
        figure.set_layout_engine("none")
    paths = []
    for kind in form.formats:
        paths.append(folder / f"{name}.{kind}")
        with replacing(paths[-1], sync=False) as temporary:
            getattr(_CANVASES[kind](figure), f"print_{kind}")(temporary, metadata=_METADATA[kind])
    shown = drawing.data.map(lambda value: sheet_text(value) if isinstance(value, str) else value)
    paths.append(folder / f"{name}.csv")
    write_text(paths[-1], shown.to_csv(index=False, lineterminator="\n"), sync=False)
    return paths


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
