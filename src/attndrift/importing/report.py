"""What an import found: what came in, what is missing and what that costs, which units look wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from attndrift.losses.registry import LOSSES
from attndrift.methods.registry import METHODS
from attndrift.metrics.registry import METRICS, structure_metrics
from attndrift.own_settings import fields_of, words_of
from attndrift.results.columns import Column, metric_columns
from attndrift.results.means import seeds_behind
from attndrift.results.tables import Tables, transfer_sets


@dataclass
class TableReport:
    """What was found in one table."""

    name: str
    source: str | None
    rows: int = 0
    present: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)
    scaled: dict[str, float] = field(default_factory=dict)
    read_as: list[str] = field(default_factory=list)


@dataclass
class ImportReport:
    """What came in, what is missing and what that costs; ``written`` is empty after a mere check."""

    output: Path
    tables: list[TableReport]
    costs: list[str] = field(default_factory=list)
    suggestions: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)
    written: list[Path] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report as text, a line each."""
        text: list[str] = []
        for table in self.tables:
            if table.source is None:
                text.append(f"{table.name}: no file")
                continue
            text.append(f"{table.name}: {table.rows} rows, {len(table.present)} known columns from {table.source}")
            text += [f"  renamed `{old}` to `{new}`" for old, new in table.renamed.items()]
            text += [f"  multiplied `{name}` by {factor:g}" for name, factor in table.scaled.items()]
            text += [f"  {line}" for line in table.read_as]
            if table.unknown:
                text.append("  kept, but read by no analysis: " + ", ".join(f"`{name}`" for name in table.unknown))
        for title, items in (
            ("Misnamed?", self.suggestions),
            ("Check:", self.hints),
            ("Missing, and what it costs:", self.costs),
        ):
            if items:
                text.append(title)
                text += [f"  {item}" for item in items]
        text += [f"wrote {path}" for path in self.written]
        return text

    def __str__(self) -> str:
        return "\n".join(self.lines())


def _costs() -> list[tuple[str, tuple[str, ...], str]]:
    """(table, columns, what the analysis loses if one of these columns is missing)."""
    swept = [(name, words_of(name, one)["sweep"]) for name, one in fields_of([*METHODS, *LOSSES]).items()]
    return [
        ("runs", ("seed",), "telling seeds apart: all runs count as one seed, so everything is descriptive"),
        ("runs", ("dataset",), "telling data sets apart: all runs are taken to share one"),
        ("runs", ("learning_rate",), "rate tables, correlations with the rate, cells, operating points"),
        ("runs", ("best_val_accuracy",), "selection rules, operating points of best validation, iso-accuracy"),
        ("runs", ("test_accuracy",), "the accuracy-retention front on test accuracy (validation is used instead)"),
        ("runs", ("selected_epoch",), "which step the final layer values belong to (the last one is used)"),
        ("runs", ("status",), "setting diverged runs aside (all count as finished)"),
        ("runs", ("selection",), "telling selections apart"),
        ("runs", ("entropy_last_layer_change_pct",), "the last block beside the mean"),
        *(("runs", (c.name,), f"{c.label} as an outcome and as a signal") for c in _compared("runs")),
        *(("runs", (name,), f"the table: {title}") for name, title in swept if title),
        ("runs", ("weight_decay",), "the weight decay table"),
        ("runs", ("freeze_layers",), "the freezing table"),
        ("runs", ("loss",), "the table of preservation losses"),
        ("history", ("entropy_change_pct",), "collapse onset, entropy as a signal after the first epoch"),
        ("history", ("val_accuracy",), "convergence"),
        ("history", ("epoch",), "the first epoch (derived from steps and planned epochs where those are given)"),
        ("history", tuple(c.name for c in _compared("history")), "drift signals after the first epoch"),
        ("layers", ("value",), "change per layer, the ANOVA over layer groups, the baseline by layer"),
        ("interpolation", ("alpha",), "interpolation sweeps"),
    ]


def _compared(table: Literal["runs", "history"]) -> list[Column]:
    """The columns that compare the adapted model with the pretrained one, the mean over blocks of each metric."""
    compared = {metric.name for metric in METRICS if metric.compared and metric.analysed}
    return [one for one in metric_columns(table) if one.metric in compared and one.statistic in ("value", "mean")]


def missing_costs(reports: list[TableReport], tables: Tables) -> list[str]:
    """What the analysis cannot do without the columns that are missing, a line each."""
    by_name = {report.name: report for report in reports}
    result: list[str] = []
    for table, columns, cost in _costs():
        report = by_name[table]
        absent = [column for column in columns if column not in report.present]
        if report.source is None:
            text = f"no table `{table}`: {cost}"
        elif absent == ["seed"] and (seeds_behind(tables.runs) > 1).any():
            continue
        elif absent:
            text = f"no {', '.join(f'`{c}`' for c in absent)} in `{table}`: {cost}"
        else:
            continue
        result.append(text)
    changes = [m for m in structure_metrics() if tables.runs[f"{m}_change_pct"].isna().all()]
    for metric in changes:
        ends = tables.runs[[f"{metric}_baseline", f"{metric}_final"]]
        if ends.isna().any(axis=1).all():
            result.append(f"no `{metric}_change_pct` (nor both its ends) in `runs`: everything about {metric}")
    if not transfer_sets(tables.runs):
        result.append("no `transfer_<set>_...` columns in `runs`: retention, its predictors, selection, the front")
    if not (tables.runs["method"] == "none").any():
        result.append("no run of method `none`: the baseline is taken from step 0 of the other runs, where given")
    return result
