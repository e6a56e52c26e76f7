"""The reference pages in docs/ that are made from the code: commands, settings, metrics, tables, analysis.json.

python scripts/reference_pages.py       # writes them; a test compares them
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typer.main import get_command

from attndrift.analysis.schema import schema_markdown, tables_markdown
from attndrift.cli import console
from attndrift.cli.main import app
from attndrift.losses.registry import LOSSES
from attndrift.methods.registry import HEADS, METHODS
from attndrift.metrics.registry import METRICS
from attndrift.results.measures import MEASURES
from attndrift.study.outcomes.registry import OUTCOMES
from attndrift.study.settings import DatasetSource, RunSettings

DOCS = Path(__file__).resolve().parents[1] / "docs"

EXIT_CODES = {
    0: "it is done",
    console.EXIT_PROBLEM: "a problem: the message says what was wrong, where, and what to do. `run`: also where a run failed",
    2: "the command line itself is wrong: an unknown command or option, or one that is missing. `verify`: no published values, no results, or nothing that could be compared",
    console.EXIT_CONDITION: "`compare`: a `--fail-if` condition holds. `verify`: a number is out of tolerance",
    console.EXIT_DEFECT: "a defect of attndrift: worth a report; `ATTNDRIFT_TRACEBACK=1` shows where it happened",
    console.EXIT_INTERRUPTED: "`run`, `demo`: Ctrl-C; the same command goes on",
}

VARIABLES = {
    "ATTNDRIFT_DATA": "a folder of datasets that goes before the hub",
    "ATTNDRIFT_CACHE": "decoded pixels and pretrained attention; default: `~/.cache/attndrift`",
    "ATTNDRIFT_TRACEBACK": "1: an error shows its traceback",
    "HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_ENDPOINT, HF_TOKEN": "the hub's own: caches, no network, a mirror, a token",
    "RAY_ADDRESS": "the Ray cluster of `--engine ray`",
}


def command_line() -> str:
    """The page of all commands with their options, exit codes and variables."""
    lines = [
        "# The command line",
        "",
        "Made from the commands themselves. `attndrift COMMAND --help` prints the same.",
        "",
        "## Exit codes",
        "",
        "| code | meaning |",
        "| ---: | --- |",
        *(f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items()),
        "",
        "Results go to standard output, messages and progress to standard error. With `--json`, standard output holds one JSON object.",
        "",
        "## Environment variables",
        "",
        "| variable | meaning |",
        "| --- | --- |",
        *(f"| `{name}` | {meaning} |" for name, meaning in VARIABLES.items()),
    ]
    commands: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
    for panel in (console.STUDIES, console.RESULTS, console.MODELS, console.NAMES):
        lines += ["", f"## {panel}"]
        for name, command in commands.items():
            if command.rich_help_panel == panel:
                lines += ["", f"### {name}", "", *_command(name, command)]
    return "\n".join(lines) + "\n"


def _command(name: str, command: Any) -> list[str]:
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    options = [one for one in command.params if one.param_type_name == "option"]
    called = " ".join(
        [one.name.upper() if one.required else f"[{one.name.upper()}]" for one in arguments]
        + [f"{one.opts[0]} {one.name.upper()}" for one in options if one.required]
    )
    lines = [_cell(command.help), "", "```", f"attndrift {name} {called}".rstrip(), "```", ""]
    if command.epilog:
        example = command.epilog.replace("[bold]", "`").replace("[/bold]", "`")
        lines += [" ".join(example.split()), ""]
    lines += ["| argument or option | default | meaning |", "| --- | --- | --- |"]
    for one in arguments + options:
        shown = one.name.upper() if one in arguments else ", ".join(one.opts)
        default = "" if one.default in (None, False) or callable(one.default) else f"`{one.default}`"
        lines.append(f"| `{shown}` | {'required' if one.required else default} | {_cell(one.help)} |")
    return lines


def settings() -> str:
    """The page of the settings of a run, from their schema."""
    lines = [
        "# Settings of a run",
        "",
        "Made from the schema of the settings. Each may stand in a study file under `shared`, under a dataset, in a run or in its `grid`.",
        "On the command line it is `--set NAME=VALUE`, or `--set DATASET.NAME=VALUE`. An unknown name or a value out of range is an error.",
        "",
        "| setting | type | default | range | meaning |",
        "| --- | --- | --- | --- | --- |",
        *_fields(RunSettings.model_json_schema()),
        "",
        "## Settings that a method, a head or a loss brings",
        "",
        "They stand beside the others. A run that has another method, head or loss refuses them; shared ones are left out for it.",
        "",
        "| needs | setting | type | default | range | meaning |",
        "| --- | --- | --- | --- | --- | --- |",
        *_own_settings(),
        "",
        "## Methods",
        "",
        *_facts(METHODS, {"method": "name", "label": "label", "trains": "trains", "source": "source"}),
        "",
        "## Heads",
        "",
        *_facts(HEADS, {"head": "name", "label": "label", "starts from": "starts", "source": "source"}),
        "",
        "## Preservation losses",
        "",
        "In a study file: `loss: NAME:WEIGHT`, several joined by `+`.",
        "",
        *_facts(LOSSES, {"loss": "name", "label": "short_label", "adds": "meaning", "source": "source"}),
        "",
        "## Outcomes",
        "",
        "In a study file: `outcomes: [NAME:NUMBER]`. Each is a row of its own, without training anew.",
        "",
        *_facts(
            OUTCOMES, {"outcome": "name", "label": "label", "number": "parameter", "is": "meaning", "source": "source"}
        ),
        "",
        "## `source`: where images are that no list knows",
        "",
        "| field | type | default | range | meaning |",
        "| --- | --- | --- | --- | --- |",
        *_fields(DatasetSource.model_json_schema()),
    ]
    return "\n".join(lines) + "\n"


_TYPES = {"string": "text", "integer": "integer", "number": "number", "boolean": "true/false", "null": "null"}


def _fields(schema: dict[str, Any]) -> list[str]:
    required = schema.get("required", [])
    properties = schema.get("properties", {})
    rows = []
    for name, field in properties.items():
        default = "required" if name in required else f"`{_plain(field.get('default'))}`"
        cells = [f"`{name}`", _type(field), default, _range(field), field.get("description", "")]
        rows.append(f"| {' | '.join(_cell(cell) for cell in cells)} |")
    return rows


def _own_settings() -> list[str]:
    rows = []
    for kind, registry in (("method", METHODS), ("head", HEADS), ("loss", LOSSES)):
        for owner in registry:
            rows += [f"| `{kind}: {owner.name}` {row}" for row in _fields(owner.Settings.model_json_schema())]
    return rows


def _facts(registry: Any, columns: dict[str, str]) -> list[str]:
    """A table of the members of a registry: the fact that each column shows."""
    rows = [[_cell(str(getattr(member, fact))) for fact in columns.values()] for member in registry]
    return [
        f"| {' | '.join(columns)} |",
        f"| {' | '.join('---' for _ in columns)} |",
        *(f"| `{name}` | {' | '.join(others)} |" for name, *others in rows),
    ]


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value) or "[]"
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


def _type(field: dict[str, Any]) -> str:
    if "$ref" in field:
        return "a mapping"
    if "anyOf" in field:
        return " or ".join(_type(one) for one in field["anyOf"] if one.get("type") != "null")
    if "enum" in field:
        return " | ".join(f"`{value}`" for value in field["enum"])
    if field.get("type") == "array":
        return f"list of {_type(field['items'])}"
    return _TYPES.get(field.get("type", ""), "any")


def _range(field: dict[str, Any]) -> str:
    field = next((one for one in field.get("anyOf", []) if one.get("type") != "null"), field)
    words = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
    return " ".join(f"{word} {field[key]:.10g}" for key, word in words.items() if key in field)


def _retention() -> list[str]:
    """The section of the retention measures, from their facts."""
    rows = [
        f"| `{one.name}` | {_cell(one.meaning)} | {one.needs} | {_settings(one)} | {_cell(one.source)} | {_cell(one.cost)} |"
        for one in MEASURES
    ]
    return [
        "## Retention",
        "",
        "What the model could do before and can still do, on sets that it was not trained on. `measures` in a study names the measures. Each is an accuracy of the",
        "pretrained model and of the adapted one, on the same images. Retention is 100 x adapted / pretrained. `change_points` is adapted minus pretrained, in",
        "percentage points, which papers on linear probes print.",
        "",
        "Both have a paired 95% interval over the images: Bonett and Price's for the ratio, Tango's for the difference. It says nothing of another seed.",
        "Both are null, with the reason, where the pretrained model is at chance: its accuracy is below twice chance, or its 95% interval (Wilson) includes chance.",
        "",
        "| measure | what it measures | needs | settings of its own | source | cost beside the forward passes of the images |",
        "| --- | --- | --- | --- | --- | --- |",
        *rows,
        "",
        "- **`zero_shot`** needs a text tower, and no labels to learn from. It sees the alignment with text, which fine-tuning the image tower alone breaks first.",
        "  Its value depends on prompts.",
        "- **`knn`** works for any backbone. It is quick, has nothing to tune, and sees whether neighbours still share a class. DINOv2 reports it.",
        "  The classes' votes are sums of exp(cosine / T) over the k nearest bank images; T is 0.07. 5,000 queries against 10,000 images take half a second of two cores.",
        "- **`linear_probe`** asks what can still be read out of the features, however they have turned. It forgives most: a model may lose its neighbours and keep",
        "  its probe. It fits logistic regression to the features as they are, not normalised. C runs over a log grid from 1e-6 to 1e5 (`probe_c_values: 45` is DINOv2's)",
        "  and is chosen on a tenth of each class of the bank. Then all of the bank is fitted. With 4,000 images and 50 classes it takes seconds, and grows with",
        "  images x dimensions x classes. A fit that has not converged after `probe_iterations` steps is noted where its accuracy is printed: that accuracy depends on",
        "  this number.",
        "",
        "The bank is the training split of the transfer set, `bank_limit` images of it. Measures of one model and set share their embeddings. The dry run counts all of",
        "this, and `time` in `record.json` has the seconds of each set and measure. `attndrift compare --retention SET` measures two models by all of them.",
        "In a loop of your own: `evaluate_zero_shot`, and `DriftMonitor(..., knn=KNNRetention(...))`, which adds `knn_accuracy` and `knn_retention_pct` to every measurement.",
        "",
    ]


def _settings(owner: Any) -> str:
    return ", ".join(f"`{name}`" for name in owner.Settings.model_fields) or "none"


_CLOUD = [
    "## Has the cloud of embeddings collapsed?",
    "",
    "These look at the embeddings of all probe images together. `s` are the singular values of the centred matrix of embeddings.",
    "",
    "| name | formula | what it adds |",
    "| --- | --- | --- |",
    "| `effective_rank` | exp(-sum p ln p), p = s / sum s | Columns are centred, rows keep their lengths. It falls where images end up on few directions. At most images - 1. |",
    "| `mean_cosine` | mean cos(z_i, z_j) over i != j | Not centred, so that it sees what `effective_rank` leaves out: all images drawing to one point. |",
    "| `procrustes_residual` | min over rotations R of norm(Z0 R - Z)^2 / 2 | Z0 and Z centred, of norm 1. `embedding_drift` counts a rotation of all embeddings; this does not, as a linear probe does not. |",
    "| `modality_gap` | norm(mean z / norm(z) - mean t / norm(t)) | t are embeddings of class prompts. In a study: the target's, in the first template. |",
    "| `activation_change_mean` | norm(dW h) / norm(W0 h), mean over blocks | h are inputs of the linear layers in the pretrained model. `weight_drift` counts every change; this counts changes that these images use. |",
    "",
    "`effective_rank`, `mean_cosine` and `modality_gap` are of one model. Tables hold the pretrained value, the adapted one and the change in percent.",
    "",
    "`activation_change` is measured on request. In a study: `activation_change: true`. In a loop, before the first step:",
    "`DriftMonitor(model, images, activations=ActivationChange(model, images))`, from `attndrift.drift`.",
    "It takes 256 tokens, evenly spaced over all tokens of the images, and sums squares over the linear layers of a block.",
    "Adapters count as the weight that they make. Biases, norms and fused `in_proj_weight` are left out.",
    "",
    "`monitor.cross_layer_cka()` compares every block with every block, `monitor.plot_cross_layer_cka()` draws it,",
    "and `attndrift compare ... --cross-layer-cka` writes numbers and heatmap. It takes 8 bytes a block for every pair of images.",
]


def metrics() -> str:
    """The page of all metrics, from their facts."""
    lines = [
        "# Metrics",
        "",
        "Made from the registry. A metric that your own package registers appears in the same places: history, tables, alerts, budgets.",
        "",
        "Attention is that of the class token to the N patches, renormalised without the class token. All are computed in float32 or better.",
        "Means run over images, then heads, then layers. `damage` is the side on which an adapted model is harmed.",
        "",
        "| metric | name in tables | unit | range | damage | what it measures | source | cost |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in METRICS:
        cells = [
            one.label,
            f"`{one.name}`",
            one.unit or "none",
            one.range,
            one.worse,
            one.meaning,
            one.source,
            one.cost,
        ]
        lines.append(f"| {' | '.join(_cell(cell) for cell in cells)} |")
    lines += [
        "",
        "A relative change is 100 (M - M0) / M0; of a mean it is the change of the mean.",
        "",
        *_retention(),
        "## Which drift says what",
        "",
        "`z0` and `z` are the embeddings of one probe image, pretrained and adapted, not normalised. `W0` and `W` are weights, likewise.",
        "",
        "| name | formula | what it adds |",
        "| --- | --- | --- |",
        "| `embedding_drift` | 1 - mean cos(z0, z) | Zero-shot accuracy depends on directions alone, and this is how far they turned. Blind to length. |",
        "| `embedding_distance` | mean norm(z - z0) / mean norm(z0) | Sees length too: 0.1 is a tenth of the usual length of an embedding. A classifier on embeddings that are not normalised sees this. |",
        "| `weight_drift` | norm(W - W0) / norm(W0), vision transformer | Free to measure, but many changes of the weights change no output. For LoRA, W - W0 is the scaled product B A. |",
        "| `projection_drift` | the same, `visual_projection` alone | The one matrix between the vision transformer and the space that image and text share. `weight_drift` leaves it out, so read both. Null without such a projection. |",
        "",
        "`embedding_drift` at 0 with `embedding_distance` above 0: the embeddings have grown or shrunk and kept their directions.",
        "`projection_drift` above 0 with `weight_drift` at 0: only the projection was trained.",
        "",
        *_CLOUD,
    ]
    return "\n".join(lines) + "\n"


LOSSES_BEGIN, LOSSES_END = "<!-- losses: made by `python scripts/reference_pages.py` -->", "<!-- end of losses -->"


def losses() -> str:
    """The guide to the preservation losses, with its table made from their facts."""
    before, _, rest = (DOCS / "losses.md").read_text(encoding="utf-8").partition(LOSSES_BEGIN)
    lines = ["| loss | class | formula | what it adds | source | needs | cost besides |", "| --- " * 7 + "|"]
    for one in LOSSES:
        cells = [
            f"`{one.name}`",
            f"`{one.cls.__name__}`",
            f"`{one.formula}`",
            one.meaning,
            one.source,
            one.needed,
            one.cost,
        ]
        lines.append(f"| {' | '.join(_cell(cell) for cell in cells)} |")
    return f"{before}{LOSSES_BEGIN}\n\n" + "\n".join(lines) + f"\n\n{LOSSES_END}{rest.partition(LOSSES_END)[2]}"


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


PAGES = {
    "command-line.md": command_line,
    "settings.md": settings,
    "losses.md": losses,
    "metrics.md": metrics,
    "tables.md": tables_markdown,
    "analysis-schema.md": schema_markdown,
}


if __name__ == "__main__":
    for name, made in PAGES.items():
        (DOCS / name).write_text(made(), encoding="utf-8")
