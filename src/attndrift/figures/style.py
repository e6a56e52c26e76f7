"""What all figures share: size, colours, marks, and the words on their axes."""

from __future__ import annotations

import itertools
import math
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import as_file, files
from typing import Any

import matplotlib
import matplotlib.style
import matplotlib.ticker
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.textpath import TextToPath
from matplotlib.ticker import FuncFormatter, NullFormatter

from attndrift.analysis.numbers import format_rate
from attndrift.figures.canvas import MM, drawing_width, empty_figure
from attndrift.methods.registry import METHODS
from attndrift.results.columns import Column
from attndrift.results.measures import MEASURES, set_and_measure
from attndrift.results.tables import outcome_of_column, schema

SMALLEST = 6.5
"""Smallest type in points at the printed size."""

_TITLE_MM = 7.5

LEAST_CONTRAST = 3.0
"""Contrast with white paper of every mark (WCAG 2.2, 1.4.11)."""

GREY = "#767676"
DIVERGING = "RdBu_r"
"""Colours of changes: always centred on 0; the two ends differ for every form of colour blindness."""

_OTHER = ("#E69F00", "#56B4E9", "#882255", "#999933", "#117733", "#332288")
"""Colours of methods that name none, of a palette for every form of colour blindness."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
_LINES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.2, 1.2, 1.2)))


@contextmanager
def styled() -> Iterator[None]:
    """The style of the figures, alone: a user's own settings have no part in it."""
    with as_file(files("attndrift.figures") / "attndrift.mplstyle") as path, matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.style.use(path)
        yield


def new_figure(height_mm: float, rows: int = 1, columns: int = 1, **kwargs: Any) -> tuple[Figure, Any]:
    """A figure of the width that was asked for and its axes (always a 2-D array of ``rows`` x ``columns``)."""
    figure: Any = empty_figure((height_mm + _TITLE_MM) * MM)
    if _is_whole(figure):
        # Room for the title, whose words are known when the figure is drawn; a part of a user's figure has none.
        _keep_below(figure, _below_title(figure))
    return figure, figure.subplots(rows, columns, squeeze=False, **kwargs)


def _is_whole(figure: Any) -> bool:
    """Whether it is no part of a user's figure."""
    return isinstance(figure, Figure)


def put_title(figure: Any, title: str, place: str) -> None:
    """Title the figure: what it shows, and below it of which dataset and model; not a part of a user's figure."""
    if not _is_whole(figure):
        return
    top = 1 - 0.5 * MM / figure.get_figheight()
    second = top - 3.4 * MM / figure.get_figheight()
    for y, text, weight in ((top, title, "bold"), (second, place, "normal")):
        figure.text(0.012, y, wrap(text, 56, 1), ha="left", va="top", fontsize=SMALLEST, fontweight=weight)


def _keep_below(figure: Figure, top: float) -> None:
    """Lay the axes out below ``top``, a share of the figure's height."""
    layout = figure.get_layout_engine()
    if isinstance(layout, ConstrainedLayoutEngine):
        layout.set(rect=(0, 0, 1, top))


def _below_title(figure: Figure) -> float:
    return 1.0 - _TITLE_MM * MM / float(figure.get_figheight())


@dataclass(frozen=True)
class Look:
    """How one series is drawn; every series differs in marker as well as in colour."""

    color: Any
    marker: str
    line: Any


def looks(variants: Sequence[tuple[str, str]]) -> dict[str, Look]:
    """Looks of ``(variant, method)`` pairs: colour by method, shade, marker and dashes by variant."""
    colours = {method.name: method.color for method in METHODS if method.color}
    # A colour that a method has taken comes last.
    taken = {color.lower() for color in colours.values()}
    others = itertools.cycle(sorted(_OTHER, key=lambda color: color.lower() in taken))
    counts: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for _, method in variants:
        sizes[method] = sizes.get(method, 0) + 1
    found: dict[str, Look] = {}
    for place, (variant, method) in enumerate(variants):
        if method not in colours:
            colours[method] = next(others)
        index = counts.get(method, 0)
        counts[method] = index + 1
        found[variant] = Look(
            readable(_shade(colours[method], index, sizes[method])),
            MARKERS[place % len(MARKERS)],
            _LINES[index % len(_LINES)],
        )
    return found


def _shade(color: str, index: int, count: int) -> tuple[float, float, float]:
    """The colour itself first, then lighter and darker ones in turn."""
    red, green, blue = to_rgb(color)
    if index == 0 or count == 1:
        return red, green, blue
    # Each step is further from the colour itself, so that no two of one method are alike.
    step = (index - 1) // 2
    amount = min(0.45 + 0.2 * step, 0.7) if index % 2 else min(0.45 + 0.25 * step, 0.9)
    aim = 1.0 if index % 2 else 0.0
    return red + (aim - red) * amount, green + (aim - green) * amount, blue + (aim - blue) * amount


def contrast(color: Any) -> float:
    """Contrast of a colour with white, 1..21 (WCAG)."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(color)]
    return 1.05 / (0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05)


def readable(color: Any) -> tuple[float, float, float]:
    """The colour, darkened as far as it takes to be seen on white paper."""
    red, green, blue = to_rgb(color)
    while contrast((red, green, blue)) < LEAST_CONTRAST:
        red, green, blue = (0.97 * part for part in (red, green, blue))
    return red, green, blue


def axis_label(column: str) -> str:
    """Label with unit of a column of the tables."""
    if column.startswith("transfer_") and column.endswith("_retention_pct"):
        return f"{wrap(transfer_name(column), 18)}\nretention (%)"
    if column.startswith("transfer_") and column.endswith("_accuracy"):
        name, measure = set_and_measure(transfer_name(column))
        return f"{wrap(name, 18)} {MEASURES[measure].label.removesuffix(' accuracy')}\naccuracy (%)"
    known = _column(column)
    label = known.label or column.replace("_", " ")
    unit = f"({known.unit})" if known.unit else ""
    whole = f"{label} {unit}".strip()
    if len(whole) <= 24:
        return whole
    # A unit of several words stands on a line of its own.
    return f"{label}\n{unit}" if " " in unit else wrap(whole, max(16, len(whole) // 2 + 3), 2)


def short_label(column: str) -> str:
    """Few words for a column, for tick labels."""
    if column.startswith("transfer_"):
        return clip(f"{transfer_name(column)} retention", 24)
    known = _column(column)
    return clip(known.short_label or known.label or column.replace("_", " "), 24)


def _column(name: str) -> Column:
    """The facts of a column of the tables; of one that none knows, its name alone."""
    known = (column for table in ("runs", "history") for column in schema(table))
    return next((column for column in known if column.name == name), Column(name))


def transfer_name(column: str) -> str:
    """The transfer set of a column of the tables; with its measure, where that is another than zero-shot accuracy."""
    return outcome_of_column(column)


def percent(column: str) -> bool:
    """Whether the column holds a fraction that the figures show in percent."""
    return column.endswith("_accuracy")


def clip(text: str, length: int) -> str:
    """One line of at most ``length`` characters."""
    text = _one_line(text)
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def wrap(text: str, width: int = 21, lines: int = 3) -> str:
    """``text`` on at most ``lines`` lines of ``width`` characters; what does not fit ends in an ellipsis."""
    parts = textwrap.wrap(_one_line(text), width, break_long_words=True) or [""]
    if len(parts) > lines:
        parts = [*parts[: lines - 1], clip(" ".join(parts[lines - 1 :]), width)]
    return "\n".join(parts)


def _one_line(text: str) -> str:
    # Not str.split(), which also splits at the no-break spaces that hold a rate and its dot together.
    return re.sub(r"[ \t\r\n\f\v]+", " ", str(text)).strip()


def legend(
    figure: Any,
    entries: Sequence[tuple[str, Any]],
    seeds: Iterable[int] = (),
    *,
    spare: Any = None,
    images: str = "",
) -> None:
    """One legend above all axes, where it can hide nothing; says where only one seed stands behind a mark.

    ``entries`` are (label, handle); ``seeds`` are the numbers of seeds behind the marks; ``spare`` is an
    empty panel that takes the legend in where it has room for it; ``images`` says what the bars of a figure of
    one seed are, where it has any.
    """
    counts = {int(count) for count in seeds}
    shown = [(wrap(label, 38, 2), handle) for label, handle in entries]
    title = None
    if counts == {1}:
        title = f"one seed: {images}" if images else "one seed: no spread over seeds"
    elif counts:
        title = "bars, bands: one standard deviation over seeds" + ("; without: one seed" if 1 in counts else "")
    if not shown and title is None:
        return
    handles, labels = [handle for _, handle in shown], [label for label, _ in shown]
    widths = [_width(label) for label in labels]
    # A note on the seeds stands over the marks, at the left edge: it belongs to all of them, and is none.
    head: dict[str, Any] = {"title": title, "alignment": "left", "title_fontsize": SMALLEST}
    if spare is not None and max([*widths, _width(title or "")]) < 85:
        spare.set_visible(True)
        spare.axis("off")
        spare.legend(handles, labels, loc="center", borderaxespad=0, **head)
        return
    if not _is_whole(figure):
        figure.legend(handles, labels, loc="outside upper left", ncols=_columns(widths) if labels else 1, **head)
        return
    top = _below_title(figure)
    made = figure.legend(
        handles, labels, loc="upper left", bbox_to_anchor=(0.0, 0.0, 1.0, top), borderaxespad=0.3,
        ncols=_columns(widths) if labels else 1, **head,
    )  # fmt: skip
    # The layout keeps room for legends outside of the axes only where nothing stands above them, as the title does.
    height = made.get_window_extent().height / figure.bbox.height
    _keep_below(figure, top - height - MM / figure.get_figheight())


def _width(label: str) -> float:
    """Width in points of a legend's label."""
    size = FontProperties(family="DejaVu Sans", size=SMALLEST)
    return max(float(TextToPath().get_text_width_height_descent(line, size, False)[0]) for line in label.split("\n"))


def _columns(widths: Sequence[float]) -> int:
    """The most columns in which labels of these widths fit; a legend fills column after column."""
    for columns in range(min(len(widths), 5), 1, -1):
        parts = [part for part in np.array_split(np.asarray(widths), columns) if len(part)]
        if sum(float(part.max()) + 24 for part in parts) <= 72 * drawing_width() - 8:
            return columns
    return 1


def mark(look: Look, *, line: bool = True, **kwargs: Any) -> Line2D:
    """The legend's handle of a series."""
    return Line2D(
        [],
        [],
        color=look.color,
        marker=look.marker,
        linestyle=look.line if line else "none",
        **kwargs,
    )


def zero_line(axes: Any, *, vertical: bool = False) -> None:
    draw = axes.axvline if vertical else axes.axhline
    draw(0, color=GREY, linewidth=0.6, zorder=0)


def rate_axis(axes: Any, rates: Sequence[float], *, label: bool = True) -> None:
    """A logarithmic axis of learning rates, with a tick at measured rates as far as they have room."""

    axes.set_xscale("log")
    ticks = sorted(set(rates))
    room = 4 if axes.get_subplotspec().get_gridspec().ncols > 1 else 8
    if len(ticks) > room:
        step = -(-len(ticks) // room)
        ticks = ticks[::step]
    ticks = _apart(ticks, 0.22 if room == 4 else 0.11)
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_rate(value)))
    # Measured rates without room for a number keep their tick.
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_minor_locator(matplotlib.ticker.FixedLocator(sorted(set(rates) - set(ticks))))
    if label:
        axes.set_xlabel("Learning rate")


def _apart(ticks: list[float], share: float) -> list[float]:
    """Ticks of which no two stand nearer than ``share`` of the (logarithmic) axis."""

    if len(ticks) < 2:
        return ticks
    span = math.log10(ticks[-1] / ticks[0])
    kept = [ticks[0]]
    for tick in ticks[1:-1]:
        if math.log10(tick / kept[-1]) >= share * span and math.log10(ticks[-1] / tick) >= share * span:
            kept.append(tick)
    return [*kept, ticks[-1]]
