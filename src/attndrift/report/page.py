"""What a report's sections are made from: analysis, tables, records and figures, and tables as a page prints them."""

from __future__ import annotations

from collections.abc import Sequence

from attndrift.analysis.result import SINGLE_SEED, Analysis, Table
from attndrift.report.blocks import Block, FigureBlock, table_block
from attndrift.report.last_block import by_configuration, with_last_blocks
from attndrift.report.records import Records
from attndrift.results.columns import Column
from attndrift.results.tables import Tables

MANY_ROWS = 300
_FOLDED = {"dynamics_runs", "interpolation", "interpolation_choice", "baseline_heads", "early_warning"}


class Page:
    """What the sections of one report share.

    Attributes:
        analysis, tables, records: of the study.
        left_out: names of the figures not drawn, with the reason.
        caution: the note that every table of a study of one seed carries; None where there are several.
        sections: names of all sections.
    """

    def __init__(
        self,
        analysis: Analysis,
        tables: Tables,
        records: Records,
        figures: Sequence[FigureBlock] = (),
        left_out: Sequence[tuple[str, str]] = (),
        *,
        row_limit: int = MANY_ROWS,
    ) -> None:
        self.analysis, self.tables, self.records, self.left_out = analysis, tables, records, left_out
        self.row_limit = row_limit
        self.sections: frozenset[str] = frozenset()
        self.caution = SINGLE_SEED if analysis.data.single_seed else None
        self._figures = figures
        self._last_blocks = by_configuration(analysis)

    def figures(self, section: str) -> list[FigureBlock]:
        """The figures of ``section``."""
        return [figure for figure in self._figures if figure.section == section]

    def further_figures(self) -> list[FigureBlock]:
        """The figures of no section that exists."""
        return [figure for figure in self._figures if figure.section not in self.sections]

    def block(self, table: Table, *, folded: bool = False) -> Block:
        table = with_last_blocks(self._named(table), self._last_blocks, "configuration")
        folded = folded or table.name in _FOLDED or len(table.rows) > 40
        return table_block(table, caution=self.caution, limit=self.row_limit, folded=folded)

    def _named(self, table: Table) -> Table:
        """``table`` with the configuration of each row, where its other columns name exactly one."""
        keys = ("model_name", "selection_name", "dataset", "variant", "learning_rate")
        present = {column.name for column in table.columns}
        if "configuration" in present or not present.issuperset(keys):
            return table
        known: dict[tuple[object, ...], list[object]] = {}
        for row in self.analysis.tables["configurations"].rows:
            known.setdefault(tuple(row.get(key) for key in keys), []).append(row["configuration"])
        matches = [known.get(tuple(row.get(key) for key in keys), []) for row in table.rows]
        # Interpolated points belong to no configuration: a column of dashes serves nobody.
        if 2 * sum(len(match) == 1 for match in matches) < len(matches):
            return table
        rows = [
            {**row, "configuration": match[0] if len(match) == 1 else None}
            for row, match in zip(table.rows, matches, strict=True)
        ]
        column = Column(name="configuration", label="Configuration")
        return table.model_copy(update={"columns": [column, *table.columns], "rows": rows})
