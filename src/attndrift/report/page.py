"""What a report's sections are made from: analysis, tables, records and figures, and tables as a page prints them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from attndrift.analysis.result import Analysis, Table
from attndrift.report.blocks import Block, FigureBlock, table_block
from attndrift.report.records import Records
from attndrift.results.tables import Tables

FEW_ROWS = 12
"""Rows of a table in the appendix; all of them lie beside the page as CSV."""
FIRST_FIGURES = ("pareto_front", "training_dynamics", "fig8_regularization", "predictor_ranking")
"""Figures of the page's body; the others stand in its appendix."""


class Page:
    """What the sections of one report share.

    Attributes:
        analysis, tables, records: of the study.
        left_out: names of the figures that are not on the page, with the reason.
        sections: names of all sections.
    """

    def __init__(
        self,
        analysis: Analysis,
        tables: Tables,
        records: Records,
        figures: Sequence[FigureBlock] = (),
        left_out: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.analysis, self.tables, self.records, self.left_out = analysis, tables, records, left_out
        self.sections: frozenset[str] = frozenset()
        self._figures = figures
        self._cited: dict[str, set[int]] = {}
        for finding in (*analysis.digest.findings, *analysis.findings):
            self._cited.setdefault(finding.table, set()).update(finding.rows[:FEW_ROWS])

    def figure(self, name: str) -> FigureBlock | None:
        """A figure of the body, without its long caption; None where it was not drawn."""
        found = next((figure for figure in self._figures if figure.name == name), None)
        return None if found is None else replace(found, long=False)

    def figures(self, section: str) -> list[FigureBlock]:
        """The figures of ``section`` that the body does not show."""
        return [figure for figure in self._figures if figure.section == section and figure.name not in FIRST_FIGURES]

    def further_figures(self) -> list[FigureBlock]:
        """The figures of no section that exists."""
        return [figure for figure in self._figures if figure.section not in self.sections]

    def block(self, table: Table, *, written: bool = True) -> Block:
        """``table`` as the appendix prints it: the first rows, and those that a finding is made from."""
        return table_block(table, limit=FEW_ROWS, cited=self._cited.get(table.name, ()), written=written)
