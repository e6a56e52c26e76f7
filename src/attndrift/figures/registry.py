"""The registry of figures: one :class:`FigureSpec` a figure, its words and the function that draws it.

@figure("share_of_patches", title="Share of patches", section="rq1", alt="Lines: ...", needs=("history",))
def share_of_patches(source: Source) -> Drawing:
    ...
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from attndrift.figures.source import Drawing, NoData, Source
from attndrift.figures.style import put_title
from attndrift.registry import Registry

Draw = Callable[[Source], Drawing]


@dataclass(frozen=True)
class FigureSpec:
    """One figure.

    Attributes:
        name: of its files and in ``--only``.
        title: over it on a page.
        section: the section of the report that it stands in; one that does not exist is that of further figures.
        alt: what is seen, for who cannot see it: the kind of picture and its axes.
        needs: tables that must have rows, besides ``runs``.
        function: draws it, or raises :class:`NoData` with the reason why there is nothing to draw.
    """

    name: str
    title: str
    section: str
    alt: str
    needs: tuple[str, ...]
    function: Draw

    def draw(self, source: Source) -> Drawing:
        """Draw it from ``source``. Raises NoData where the tables hold nothing of it."""
        for table in self.needs:
            if getattr(source.tables, table).empty:
                hint = " (`attndrift interpolate RUN` makes one)" if table == "interpolation" else ""
                raise NoData(f"there is no table `{table}`{hint}, or it has no rows")
        drawing = self.function(source)
        put_title(drawing.figure, self.title, ", ".join([*_datasets(drawing, source), source.model]))
        return drawing


def _datasets(drawing: Drawing, source: Source) -> list[str]:
    """The datasets that a figure is about, the one of most runs first."""
    if "dataset" in drawing.data:
        return [name for name in source.datasets if (drawing.data["dataset"] == name).any()]
    return source.datasets[:1]


FIGURES: Registry[FigureSpec] = Registry("figure", "attndrift.figures")
"""All figures: those of this package, those of installed packages, and those of this process."""


def figure(name: str, *, title: str, section: str, alt: str, needs: tuple[str, ...] = ()) -> Callable[[Draw], Draw]:
    """Register the function below as a figure; the arguments are those of :class:`FigureSpec`."""

    def register(function: Draw) -> Draw:
        FIGURES.register(FigureSpec(name, title, section, alt, needs, function))
        return function

    return register
