"""The documentation of ``analysis.json`` and of the tables, generated from the types."""

from __future__ import annotations

import re
from typing import Any

from attndrift.analysis import result
from attndrift.analysis.measures import signals
from attndrift.analysis.summary import sweeps
from attndrift.importing.foreign import SUFFIXES
from attndrift.results import tables as stored
from attndrift.results.tables import agreement_column, transfer_columns


def table_meanings() -> dict[str, str]:
    """What each table of the analysis holds."""
    return {
        "runs": "the grand comparison table, a row a run; excluded runs too, their `status` says so",
        "configurations": "mean and sample standard deviation (`<measure>_sd`) over the seeds of each configuration",
        **{f"sweep_{sweep.name}": sweep.meaning for sweep in sweeps()},
        "baseline": "the pretrained model: mean, standard deviation and range over layers, for each metric",
        "baseline_layers": "the pretrained model layer by layer, with the standard deviation over heads where given",
        "baseline_heads": "the pretrained model head by head",
        "change_per_layer": "change of each layer in percent, mean and standard deviation over seeds",
        "dynamics": "onset of collapse and convergence, a row a configuration (medians)",
        "dynamics_runs": "onset of collapse and convergence, a row a run",
        "best_validation": "for each method and dataset the configuration with the best mean validation accuracy",
        "iso_accuracy": "methods at equal validation accuracy, interpolated in log10 rate, never beyond measured rates",
        "pareto": "configurations by accuracy and retention; `pareto` marks those that no other one dominates",
        "interpolation": "accuracy, retention and drift along alpha",
        "interpolation_choice": "the alpha that each label-free rule chooses for a wanted retention, and the retention there",
    }


def schema_markdown() -> str:
    """The page ``docs/analysis-schema.md``."""
    lines = [
        "# analysis.json",
        "",
        "Generated from `attndrift.analysis.result`; do not edit. Schema version "
        f"{result.SCHEMA_VERSION}. Percentages are in percent, accuracies in 0..1, entropies in nats. "
        "A number that could not be computed is null and a `reason` stands beside it. Levels: `cells` are single "
        "(conditions, rate, seed) runs, `configurations` are means over the seeds of one configuration; claims rest on "
        "configurations.",
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
    lines += ["", "## Signals", "", "| signal | column | expected sign |", "| --- | --- | --- |"]
    for source in signals():
        column = f"absolute value of `{source.column}`" if source.absolute else f"`{source.column}`"
        lines.append(f"| `{source.name}` | {column} | {source.expected_sign:+d} |")
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
        "A file named `runs`, `history`, `layers`, `interpolation` or `losses` is that table, any other is told by its columns; suffixes are "
        f"{', '.join(f'`{suffix}`' for suffix in SUFFIXES)}:",
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
        "of range is an error.",
    ]
    for table in stored.TABLES:
        lines += ["", f"## {table}", "", _TABLE_WORDS[table], ""]
        lines += ["| column | type | range | meaning |", "| --- | --- | --- | --- |"]
        shown = list(stored.schema(table))
        if table == "runs":
            shown += transfer_columns("SET")
        elif table == "interpolation":
            shown += [transfer_columns("SET")[0], agreement_column("SET")]
        for column in shown:
            name = f"`{column.name}`" + (" (required)" if column.required else "")
            meaning = column.meaning.replace("|", "\\|")
            lines.append(f"| {name} | {column.kind} | {_range(column.low, column.high)} | {meaning} |")
    lines += ["", "`SET` stands for the name of a transfer set; there may be several.", ""]
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
