"""The report's sections, question by question; every sentence comes from the analysis or from a record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from attndrift.analysis.result import SINGLE_SEED, Analysis, Column, Table
from attndrift.report.background import limits_section, method_section, reproducibility_section
from attndrift.report.blocks import Block, Bullets, FigureBlock, Findings, Section, Text, View, table_block
from attndrift.report.evidence import transfer_table
from attndrift.report.last_block import baseline_with_last_block, by_configuration, by_run, with_last_blocks
from attndrift.report.printed_statistics import printed_statistics
from attndrift.report.records import Records
from attndrift.results.tables import Tables

QUESTIONS = {
    "RQ1": "Does fine-tuning reduce attention entropy?",
    "RQ2": "How do the adaptation methods compare in structural preservation?",
    "RQ3": "How does structural drift relate to the loss of zero-shot transfer?",
    "RQ4": "Do regularizers reduce the change while the accuracy is kept?",
    "RQ5": "Which hyperparameters matter most?",
}

_STRENGTHS = ("supported", "no evidence", "descriptive", "too few")

# Tables of the analysis by question; the statistics on them stand in a section of their own.
_TABLES = {
    "RQ1": ("change_per_layer", "dynamics", "dynamics_runs"),
    "RQ2": ("configurations", "best_validation", "iso_accuracy"),
    "RQ3": ("pareto", "interpolation", "interpolation_choice"),
    "RQ4": ("sweep_regularizer",),
    "RQ5": (
        "sweep_rate",
        "sweep_rank",
        "sweep_freezing",
        "sweep_targets",
        "sweep_weight_decay",
        "sweep_projection",
    ),
}
_STATISTICS = {
    "RQ1": ("changes", "anova"),
    "RQ2": ("comparisons",),
    "RQ3": ("signals", "selections"),
    "RQ5": ("rate_correlations",),
}
_FOLDED = {"dynamics_runs", "interpolation", "interpolation_choice", "baseline_heads"}

# The first word that a figure's name contains says where it belongs.
_FIGURE_PLACES = (
    ("baseline", "baseline"),
    ("zeroshot", "RQ3"),
    ("transfer", "RQ3"),
    ("predictor", "RQ3"),
    ("pareto", "RQ3"),
    ("interpolation", "RQ3"),
    ("metric_correlation", "RQ3"),
    ("regulariz", "RQ4"),
    ("lr_sweep", "RQ5"),
    ("dose", "RQ5"),
    ("frozen", "RQ5"),
    ("freez", "RQ5"),
    ("qkvo", "RQ5"),
    ("rank", "RQ5"),
    ("fullft_vs_lora", "RQ2"),
    ("statistical", "RQ2"),
    ("fig", "RQ1"),
    ("layer", "RQ1"),
    ("dynamics", "RQ1"),
    ("convergence", "RQ1"),
    ("attention", "RQ1"),
    ("evolution", "RQ1"),
)
_MANY_ROWS = 300
_FIRST = 5


def build_sections(
    analysis: Analysis,
    tables: Tables,
    records: Records,
    figures: Sequence[FigureBlock],
    left_out: Sequence[tuple[str, str]],
    *,
    row_limit: int = _MANY_ROWS,
) -> list[Section]:
    """All sections of the report. ``left_out``: names of the figures not drawn, with the reason."""
    maker = _Maker(analysis, tables, row_limit)
    places: dict[str, list[FigureBlock]] = {}
    for figure in figures:
        places.setdefault(figure_place(figure.name), []).append(figure)
    sections = [_summary(analysis), maker.baseline(places.pop("baseline", []))]
    for key, question in QUESTIONS.items():
        extra: list[Table] = []
        if key == "RQ3":
            extra = [transfer_table(analysis, tables, records)] if analysis.data.transfer_sets else []
        sections.append(maker.question(key, question, extra, places.pop(key, [])))
    sections.append(Section("explore", "Layers and attention maps", [View("heatmap"), View("maps")]))
    sections.append(maker.runs())
    sections.append(maker.statistics())
    rest: list[Block] = [figure for found in places.values() for figure in found]
    rest += _left_out(left_out)
    if rest:
        sections.append(Section("figures", "Further figures", rest))
    sections.append(method_section(analysis, tables))
    sections.append(limits_section(analysis, tables, records))
    sections.append(reproducibility_section(analysis, records, maker.caution))
    return sections


def figure_place(name: str) -> str:
    """The section that a figure belongs to: ``baseline``, a question, or ``figures``."""
    lowered = name.lower()
    return next((place for word, place in _FIGURE_PLACES if word in lowered), "figures")


def caution(analysis: Analysis) -> str | None:
    """The note that every table of a study of one seed carries."""
    if not analysis.data.single_seed:
        return None
    return SINGLE_SEED


def _summary(analysis: Analysis) -> Section:
    data = analysis.data
    counted: Counter[str] = Counter(finding.strength for finding in analysis.findings)
    strengths = ", ".join(f"{counted[name]} {name}" for name in _STRENGTHS if counted[name])
    blocks: list[Block] = []
    note = caution(analysis)
    if note:
        blocks.append(Text(note, warning=True))
    blocks += [
        Text(
            f"{data.n_runs} runs, of which {data.n_analysed} are analysed, in {data.n_configurations} configurations "
            f"({data.label}). Findings: {strengths or 'none'}."
        ),
        Bullets(
            [
                f"{label}: {', '.join(f'`{name}`' for name in names) or 'none'}"
                for label, names in (
                    ("Datasets", data.datasets),
                    ("Models", data.models),
                    ("Protocols", data.protocols),
                    ("Methods", data.methods),
                    ("Transfer sets", data.transfer_sets),
                )
            ]
        ),
        *_first(analysis),
        *([Bullets(analysis.notes)] if analysis.notes else []),
    ]
    if data.excluded:
        shown = [f"`{e.run_id}` ({e.status or 'no status'}): {e.reason}" for e in data.excluded[:_MANY_ROWS]]
        hidden = len(data.excluded) - len(shown)
        if hidden:
            shown.append(f"and {hidden} more, listed in analysis.json")
        blocks += [Text("Not analysed:"), Bullets(shown)]
    return Section("summary", "Summary", blocks)


def _first(analysis: Analysis) -> list[Block]:
    """The findings to read first; each stands under its question again."""
    first = analysis.most_important(_FIRST)
    return [Text("What to know first:"), Findings(first)] if first else []


def _left_out(left_out: Sequence[tuple[str, str]]) -> list[Block]:
    if not left_out:
        return []
    return [Text("Figures left out:"), Bullets([f"`{name}`: {reason}" for name, reason in left_out])]


def _why_empty(table: Table) -> str:
    """The notes that say why; the others explain columns that are not there."""
    return " ".join([note for note in table.notes if note.startswith("No ")] or table.notes) or "no rows."


class _Maker:
    """Sections made of the analysis' tables, each with the caution of a single-seed study."""

    def __init__(self, analysis: Analysis, tables: Tables, row_limit: int) -> None:
        self.analysis, self.tables, self.row_limit = analysis, tables, row_limit
        self.caution = caution(analysis)
        self.last_blocks = by_configuration(analysis)
        self.counts = printed_statistics(analysis)

    def block(self, table: Table, *, folded: bool = False) -> Block:
        table = with_last_blocks(self._named(table), self.last_blocks, "configuration")
        if table.name == "iso_accuracy" and table.rows:
            note = (
                "Interpolated points give the last block for entropy alone; the measured ones are in the tables above."
            )
            table = table.model_copy(update={"notes": [*table.notes, note]})
        folded = folded or table.name in _FOLDED or len(table.rows) > 40
        return table_block(table, caution=self.caution, limit=self.row_limit, folded=folded)

    def _named(self, table: Table) -> Table:
        """``table`` with the configuration of each row, where its other columns name exactly one."""
        keys = ("model_name", "protocol_name", "dataset", "variant", "learning_rate")
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

    def baseline(self, figures: Sequence[FigureBlock]) -> Section:
        known = self.analysis.tables
        first = baseline_with_last_block(known["baseline"], known["baseline_layers"])
        blocks: list[Block] = [
            Text(
                "The pretrained model before the first step: mean and sample standard deviation over layers and "
                "heads, then layer by layer (standard deviation over heads), then head by head."
            ),
            *(self.block(table) for table in (first, known["baseline_layers"], known["baseline_heads"])),
            *figures,
        ]
        return Section("baseline", "Baseline: the pretrained model", blocks)

    def question(self, key: str, question: str, extra: Sequence[Table], figures: Sequence[FigureBlock]) -> Section:
        findings = sorted(
            (finding for finding in self.analysis.findings if finding.question == key),
            key=lambda finding: _STRENGTHS.index(finding.strength),
        )
        blocks: list[Block] = [Findings(findings)] if findings else [Text("The tables hold nothing on this question.")]
        blocks += figures
        blocks += [self.block(table) for table in extra]
        empty: list[str] = []
        for name in _TABLES.get(key, ()):
            table = self.analysis.tables[name]
            if table.rows:
                blocks.append(self.block(table))
            else:
                empty.append(f"{table.title}: {_why_empty(table)}")
        if any(self.counts[name].rows for name in _STATISTICS.get(key, ())):
            blocks.append(Text("The tests behind these sentences are under Statistics."))
        if empty:
            blocks += [Text("Tables without rows:"), Bullets(empty)]
        return Section(key.lower(), f"{key}: {question}", blocks)

    def runs(self) -> Section:
        table = with_last_blocks(self.analysis.tables["runs"], by_run(self.tables), "run_id")
        # The page sorts the whole table; a printed one of thousands of rows serves nobody.
        block = table_block(table, caution=self.caution, limit=max(self.row_limit, 2000), sortable=True)
        return Section("runs", "All runs", [View("runs"), block])

    def statistics(self) -> Section:
        section = Section(
            "statistics",
            "Statistics",
            [
                Text(
                    "Tests on single runs or cells and on configuration means are both given; claims rest on "
                    "the latter."
                )
            ],
        )
        for table in self.counts.values():
            if table.rows:
                section.blocks.append(self.block(table, folded=True))
            else:
                section.blocks.append(Text(f"{table.title}: no rows; the data does not allow it."))
        return section
