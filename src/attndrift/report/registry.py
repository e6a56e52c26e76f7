"""The registry of the report's sections: one :class:`SectionSpec` a section, its heading, its place and what it holds.

@section("seeds", title="Seeds", order=450)
def seeds(page: Page) -> list[Block]:
    return [Text(f"{page.analysis.data.n_seeds} seeds.")]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from attndrift.registry import Registry
from attndrift.report.blocks import Block, Section
from attndrift.report.page import Page

Make = Callable[[Page], list[Block]]


@dataclass(frozen=True)
class SectionSpec:
    """One section.

    Attributes:
        name: of its anchor; figures name it as their ``section``.
        title: its heading.
        order: where it stands: sections follow one another from the lowest number on; ours have 100, 200, ...; those of
            the appendix come last.
        make: its blocks; none leaves the section out.
        appendix: whether it is folded, at the end of the page.
    """

    name: str
    title: str
    order: int
    make: Make
    appendix: bool = False


SECTIONS: Registry[SectionSpec] = Registry("report section", "attndrift.report.sections", "attndrift.report_sections")
"""All sections: those of this package, those of installed packages, and those of this process."""


def section(name: str, *, title: str, order: int, appendix: bool = False) -> Callable[[Make], Make]:
    """Register the function below as a section; the arguments are those of :class:`SectionSpec`."""

    def register(make: Make) -> Make:
        SECTIONS.register(SectionSpec(name, title, order, make, appendix))
        return make

    return register


def build_sections(page: Page) -> list[Section]:
    """Every section that has something to say, in order."""
    page.sections = frozenset(SECTIONS.names())
    made = ((spec, spec.make(page)) for spec in sorted(SECTIONS, key=lambda spec: (spec.appendix, spec.order)))
    return [Section(spec.name, spec.title, blocks, spec.appendix) for spec, blocks in made if blocks]
