"""How one figure is written: PNG, SVG or PDF, and the table that it shows."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from PIL import Image

from attndrift.figures.canvas import drawing_on
from attndrift.figures.drawn import FigureResult
from attndrift.figures.registry import FIGURES
from attndrift.figures.source import Drawing, NoData, Source
from attndrift.figures.style import styled
from attndrift.files import replacing, write_text
from attndrift.sanitize import sheet_text

FORMATS = ("png", "svg", "pdf")
"""The forms that a figure can be written in."""
SUFFIXES = (*(f".{form}" for form in FORMATS), ".csv")


@dataclass(frozen=True)
class Form:
    """The files that are written of a figure, and its width in inches."""

    formats: tuple[str, ...]
    width: float


def write_figure(source: Source, folder: Path, form: Form, name: str) -> FigureResult:
    """Draw one figure into ``folder``, or remove its files where there is nothing to draw."""
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


# No file tells the date or the version of the library, so that equal tables give equal bytes.


def _write_png(canvas: Any, path: Path) -> None:
    canvas.draw()
    dpi = canvas.figure.dpi
    # Without the alpha channel, which is opaque: a quarter fewer bytes to pack, so that less effort gives smaller files.
    picture = Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba()).convert("RGB")
    picture.save(path, "png", dpi=(dpi, dpi), compress_level=3)


def _write_svg(canvas: Any, path: Path) -> None:
    FigureCanvasSVG(canvas.figure).print_svg(path, metadata={"Date": None, "Creator": None})


def _write_pdf(canvas: Any, path: Path) -> None:
    # Here, as this imports a library of fonts, a tenth of the time to start.
    from matplotlib.backends.backend_pdf import FigureCanvasPdf

    FigureCanvasPdf(canvas.figure).print_pdf(path, metadata={"CreationDate": None, "Creator": None, "Producer": None})


_WRITE = {"png": _write_png, "svg": _write_svg, "pdf": _write_pdf}


def _save(drawing: Drawing, folder: Path, form: Form, name: str) -> list[Path]:
    figure = drawing.figure
    # Laid out once for all files, and each drawn once: `savefig` draws every file twice, once only to lay it out.
    figure.dpi = dpi = matplotlib.rcParams["savefig.dpi"]
    # The canvas that it was made with knows the sizes of its texts, also of those that are in several files.
    canvas = figure.canvas
    if (layout := figure.get_layout_engine()) is not None:
        layout.execute(figure)
        figure.set_layout_engine("none")
    paths = []
    for kind in form.formats:
        paths.append(folder / f"{name}.{kind}")
        figure.dpi = dpi  # SVG and PDF leave their own behind
        with replacing(paths[-1], sync=False) as temporary:
            _WRITE[kind](canvas, temporary)
    shown = drawing.data.map(lambda value: sheet_text(value) if isinstance(value, str) else value)
    paths.append(folder / f"{name}.csv")
    write_text(paths[-1], shown.to_csv(index=False, lineterminator="\n"), sync=False)
    return paths
