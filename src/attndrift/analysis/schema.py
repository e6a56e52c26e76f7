"""The documentation of ``analysis.json`` and of the tables, generated from the types."""

from __future__ import annotations

import re
from typing import Any

from attndrift.analysis import result
from attndrift.analysis.signal_sources import signals
from attndrift.analysis.summary import sweeps
from attndrift.importing.foreign import SUFFIXES
from attndrift.results import tables as stored
from attndrift.results.columns import Column
from attndrift.results.means import columns_of_means
from attndrift.results.measures import MEASURES
from attndrift.results.tables import agreement_column, corruption_column, transfer_columns


def table_meanings() -> dict[str, str]:
    """What each table of the analysis holds."""
    return {
        "overview": "each method at its best validation setting: the table of the first screen",
        "runs": "the grand comparison table, a row a run; excluded runs too, their `status` says so",
        "configurations": "mean and sample standard deviation (`<measure>_sd`) over the seeds of each configuration",
        **{f"sweep_{sweep.name}": sweep.meaning for sweep in sweeps()},
        "baseline": "the pretrained model: mean, standard deviation and range over layers, for each metric",
        "baseline_layers": "the pretrained model layer by layer, with the standard deviation over heads where given",
        "baseline_heads": "the pretrained model head by head",
        "change_per_layer": "change of each layer in percent, mean and standard deviation over seeds",
        "dynamics": "onset of collapse and convergence, a row a configuration (medians)",
        "dynamics_runs": "onset of collapse and convergence, a row a run",
        "timing": "whether the attention entropy fell before the zero-shot monitor lost the transfer, a row a run",
        "operating_points": "each method at its best validation, and at its best retention with enough accuracy",
        "operating_differences": "differences between methods, each at its own operating point",
        "equal_compute": "differences between methods after the same number of training images, or seconds of training",
        "differences": "differences between methods at equal settings: mean over the rates, slope, and each rate",
        "changes": "changes of each method against the pretrained model, also of early, middle and late blocks",
        "variance_components": "standard deviations between seeds, configurations and datasets",
        "power": "seeds needed for a difference of 2, 5 and 10 points",
        "signals": "which signal goes with the retention, in sample and of configurations left out",
        "signals_within_groups": "the same within the runs of each method",
        "signal_differences": "two signals compared: difference of their rank correlations with the retention",
        "partial_associations": "what a signal adds given another one: partial rank correlations",
        "early_warning": "thresholds that warn of a low retention: in sample, held out by configuration and by dataset",
        "selection_rules": "what each signal would have chosen among the runs near the best validation accuracy",
        "pareto": "configurations by accuracy and retention; `pareto` marks those that no other one dominates",
        "interpolation": "accuracy, retention and drift along alpha",
        "corruption": "test accuracy on corrupted images, a row a configuration: their mean, what is lost, each of them",
        "transfer_agreement": "for two transfer sets how alike they rank the configurations, and which runs each calls damaged",
        "suites": "mean and worst retention over the transfer sets of each suite, with intervals; `pareto` marks the front with accuracy",
        "transfer_matrix": "retention of each configuration on each transfer set: targets by sets",
        "damage": "mean of every measure over damaged and over healthy configurations",
        "reported_means": "rows that are means over seeds: mean, standard deviation, interval",
        "reported_differences": "differences of such rows under equal settings, with an interval",
        "interpolation_choice": "the alpha that each label-free rule chooses for a wanted retention, and the retention there",
    }


def schema_markdown() -> str:
    """The page ``docs/analysis-schema.md``."""
    lines = [
        "# analysis.json",
        "",
        "Generated from `attndrift.analysis.result`; do not edit. Schema version "
        f"{result.SCHEMA_VERSION}. Percentages are in percent, accuracies in 0..1, entropies in nats. "
        "A number that could not be computed is null and a `reason` stands beside it. The replicates are seeds.",
        "",
    ]
    schema = result.Analysis.model_json_schema(mode="serialization")
    for name, part in {"Analysis": schema, **schema["$defs"]}.items():
        lines += [f"## {name}", "", re.sub(r"\s+", " ", part["description"].replace("``", "`")), ""]
        lines += ["| field | type | meaning |", "| --- | --- | --- |"]
        for field, info in part["properties"].items():
            kind = _kind(info).replace("|", "\\|")
            lines.append(f"| `{field}` | {kind} | {info.get('description', '')} |")
        lines.append("")
    lines += ["## Tables", "", "Written to `tables/` as CSV (stored values), Markdown and LaTeX (rounded).", ""]
    lines += ["| table | content |", "| --- | --- |"]
    lines += [f"| `{name}` | {meaning} |" for name, meaning in table_meanings().items()]
    lines += [
        "",
        "## Signals",
        "",
        "| signal | at the end, in `runs` | during training, in `history` | expected sign |",
    ]
    lines += ["| --- | --- | --- | --- |"]
    for source in signals():
        places = (
            f"`{column}`" if column else "last of `history`" if at == 0 else ""
            for at, column in enumerate((source.final, source.during))
        )
        size = " (absolute value)" if source.absolute else ""
        lines.append(f"| `{source.name}`{size} | {' | '.join(places)} | {source.expected_sign:+d} |")
    return "\n".join(lines) + "\n"


_TABLE_WORDS = {
    "runs": "A row a run. Only this table has to be there.",
    "losses": "A row a run and preservation loss, where there are any.",
    "history": "A row an evaluation.",
    "layers": "A row a run, step, layer, head and metric. A table with a column a metric is made long by the import.",
    "interpolation": "A row a run and alpha, where sweeps were made.",
}


def tables_markdown() -> str:
    """The page ``docs/tables.md``."""
    lines = [
        "# The tables",
        "",
        "Generated from `attndrift.results.tables`; do not edit. Everything that is analysed comes from these four Parquet tables, "
        "whoever made them. Percentages are in percent, accuracies and CKA in 0..1, entropies in nats. A column that does "
        "not apply is null, one that is absent is read as null; infinite numbers are read as null and named in the notes.",
        "",
        "Each file has a format number in the metadata of its schema (`attndrift_format`). One without it, or with that of "
        "another version, is refused: records of other programs come in through `attndrift import`, which needs no number.",
        "",
        "A file named `runs`, `history`, `layers`, `interpolation` or `losses` is that table, any other is told by its columns. Forms are "
        f"{', '.join(f'`{suffix}`' for suffix in SUFFIXES)}; under another suffix the content tells:",
        "",
        "```",
        "attndrift import theirs/ -o imported --check                        # what is missing, and what that costs",
        "attndrift import theirs/ -o imported --rename lr=learning_rate --scale test_accuracy=0.01 --null lost",
        'attndrift import theirs.csv -o imported --number-rows --map "method:Full FT=full" --set dataset=eurosat --decimal comma',
        "attndrift report imported",
        "```",
        "",
        "The words of `method`, `head`, `loss`, `metric` and `guard` are compared with what is registered: other "
        "spellings are read and said, near ones are asked for. A number in `loss` is refused. The table `losses` is made "
        "from the column `loss`, and compared with it where both are given.",
        "",
        "Nothing is guessed about names and units: a likely misnomer and a likely other unit are pointed out, a value out "
        "of range is an error. A cell with a percent sign has its unit, and `--scale` leaves it alone. "
        "`transfer_SET_pretrained` is read as `transfer_SET_zero_shot_pretrained`, and said.",
        "",
        "Tables are compared with each other: a run that contradicts its whole history is refused, with the option that sets "
        "one of them aside. What may have another reason, such as a history that was cut short, is said.",
        "",
        "Exports of trackers are made a row a run and step: a chart of W&B (`Name: RUN - METRIC`), a scalar of TensorBoard "
        "(`run-RUN-tag-TAG.csv`), a row a value (`run`, `tag`, `step`, `value`). Usual names (`params.lr`, `val/accuracy`) "
        "are pointed out with the option that renames them.",
        "",
        "Several files of one table are joined: other runs, or other columns of the same runs, such as one TensorBoard export a "
        "run and tag. Files that contradict each other are refused by name.",
        "",
        "A row of `runs` may be a mean over seeds: `n_seeds` says of how many, `MEASURE_sd` is the standard deviation. "
        "A cell such as `91.2 ± 0.3` becomes both; `--set n_seeds=5` gives the number for all rows. The analysis counts "
        "these seeds, and gives intervals in `reported_means` and `reported_differences`.",
    ]
    for table in stored.TABLES:
        lines += ["", f"## {table}", "", _TABLE_WORDS[table], ""]
        lines += ["| column | type | range | meaning |", "| --- | --- | --- | --- |"]
        shown = list(stored.schema(table))
        if table == "runs":
            shown += [*transfer_columns("SET"), corruption_column("NAME")]
            shown += columns_of_means(
                [Column("MEASURE_accuracy", low=0.0, high=1.0)], ["n_seeds", "MEASURE_accuracy_sd"]
            )
        elif table == "interpolation":
            shown += [
                column
                for measure in MEASURES
                for column in (transfer_columns("SET", measure.name)[0], agreement_column("SET", measure.name))
            ]
        for column in shown:
            name = f"`{column.name}`" + (" (required)" if column.required else "")
            meaning = column.meaning.replace("|", "\\|")
            lines.append(f"| {name} | {column.kind} | {_range(column.low, column.high)} | {meaning} |")
    lines += [
        "",
        "`SET` stands for the name of a transfer set, `NAME` for that of a corruption, `MEASURE` for a measured column; there may be several. "
        "The columns of `runs` that hold `zero_shot` exist for every retention measure of the run, such as "
        "`transfer_SET_knn_retention_pct`.",
        "",
    ]
    return "\n".join(lines)


def _range(low: float | None, high: float | None) -> str:
    if low is None and high is None:
        return ""
    return f"{low:g} .. {high:g}" if low is not None and high is not None else f"from {low:g}"


_WORDS = {"string": "text", "integer": "integer", "number": "number", "boolean": "true/false", "null": "null"}


def _kind(schema: dict[str, Any]) -> str:
    """The type that a JSON schema describes, in words."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " | ".join(_kind(one) for one in schema["anyOf"])
    if "enum" in schema:
        return " | ".join(f'"{value}"' for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_kind(schema['items'])}"
    inside = schema.get("additionalProperties")
    if isinstance(inside, dict):
        return f"map to {_kind(inside)}"
    return _WORDS.get(schema.get("type", ""), "map to any" if inside else "any")
