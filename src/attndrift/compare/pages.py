"""What the pages and pictures about models share: tables as text, maps in rows, one file that asks nothing of a network."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from attndrift.figures.canvas import MM, WIDTH
from attndrift.figures.style import DIVERGING, new_figure, styled
from attndrift.metrics.registry import METRICS
from attndrift.report.escaping import harmless

_NONE = "–"


def labels() -> dict[str, str]:
    """What each metric of attention is called in tables, by name."""
    return {
        metric.name: metric.label + (f" ({metric.unit})" if metric.unit else "")
        for metric in METRICS
        if metric.per_head
    }


def number(value: float | None, form: str = ".4g") -> str:
    """A value as text; a null as a dash, never as 0."""
    return _NONE if value is None else format(value, form)


@dataclass(frozen=True)
class Panel:
    """A column of maps, one a picture: (pictures, rows, columns), shares of the attention.

    A ``change`` has a scale of its own, centred on 0; all others of a row share one.
    """

    title: str
    maps: NDArray[np.float64]
    change: bool = False


def draw_panels(images: NDArray[np.uint8], panels: Sequence[Panel]) -> bytes:
    """Pictures and their maps side by side, in percent, as a PNG. Pictures carry numbers, as file names may be long.

    ``images``: (pictures, height, width, 3).
    """
    count, columns = len(images), 1 + len(panels)
    height, width = images.shape[1:3]
    extent = (0, width, height, 0)
    shared = [place for place, panel in enumerate(panels, 1) if not panel.change]
    with styled():
        figure, axes = new_figure(10 + count * WIDTH / MM / (columns + 0.9), count, columns)
        for row in range(count):
            axes[row, 0].imshow(images[row], extent=extent)
            axes[row, 0].set_ylabel(f"image {row + 1}")
            top = max(float(panels[place - 1].maps[row].max()) for place in shared)
            for place, panel in enumerate(panels, 1):
                values = 100 * panel.maps[row]
                if panel.change:
                    # A change of exactly nothing still needs a scale.
                    far = max(float(abs(values).max()), 1e-9)
                    drawn = axes[row, place].imshow(values, cmap=DIVERGING, vmin=-far, vmax=far, extent=extent)
                else:
                    drawn = axes[row, place].imshow(values, cmap="viridis", vmin=0, vmax=100 * top, extent=extent)
                if panel.change or place == shared[-1]:
                    bar = figure.colorbar(
                        drawn, ax=axes[row, place], location="right", fraction=0.06, pad=0.02, aspect=12
                    )
                    bar.ax.yaxis.set_major_locator(MaxNLocator(3))
                    bar.ax.set_title("%", loc="left", pad=2)
        for panel in axes.flat:
            panel.set_xticks([])
            panel.set_yticks([])
            panel.spines[["left", "bottom"]].set_visible(False)
        for place, title in enumerate(("image", *(panel.title for panel in panels))):
            axes[0, place].set_title(title, loc="center")
        out = io.BytesIO()
        figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def render(template: str, picture: bytes, **values: Any) -> str:
    """A page of this package's templates: the picture inside, no script, nothing fetched, every name escaped."""
    environment = Environment(
        loader=PackageLoader("attndrift.compare"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=harmless,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # The template puts a line break at both ends of the element's text.
    style = files("attndrift.compare").joinpath("templates", "page.css").read_text(encoding="utf-8").rstrip("\n")
    digest = base64.b64encode(hashlib.sha256(f"\n{style}\n".encode()).digest()).decode("ascii")
    return environment.get_template(template).render(
        style=Markup(style),
        style_hash=Markup(f"'sha256-{digest}'"),
        picture=data_uri(picture),
        **values,
    )


def data_uri(picture: bytes) -> Markup:
    """A PNG as what an image of a page has for its source."""
    return Markup(f"data:image/png;base64,{base64.b64encode(picture).decode('ascii')}")


def numbered(names: Sequence[str]) -> list[str]:
    """The names of the pictures beside the numbers that they carry."""
    return [f"image {place}: {name}" for place, name in enumerate(names, 1)]


def print_images(images: Mapping[str, Any], console: Console) -> None:
    """Which images were measured, and which files were not."""
    console.print(f"images: {escape(images['folder'])}, n = {images['n']}", highlight=False)
    for skipped in images["skipped"]:
        console.print(escape(f"skipped: {skipped['name']} ({skipped['reason']})"), highlight=False)
    if images["left_out"]:
        console.print(escape(images["left_out"]), highlight=False)


def print_tables(tables: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Tables of ``title``, ``headings``, ``rows`` and ``note``, on a terminal."""
    for table in tables:
        drawn = Table(title=table["title"], title_justify="left")
        for place, heading in enumerate(table["headings"]):
            words = heading.startswith("what")
            # A name that a condition may use is of no use when it is cut.
            drawn.add_column(heading, justify="left" if place == 0 or words else "right", no_wrap=not words)
        for row in table["rows"]:
            drawn.add_row(*[escape(cell) for cell in row])
        console.print(drawn)
        if table["note"]:
            console.print(escape(table["note"]), highlight=False)
