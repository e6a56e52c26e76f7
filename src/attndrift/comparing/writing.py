"""A comparison as tables on a terminal, as files, and as one page that asks nothing of any network."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from attndrift.comparing.compare import SUMMARY, Comparison, MapPictures
from attndrift.figures.style import DIVERGING, MM, WIDTH, new_figure, styled
from attndrift.files import write_json, write_text
from attndrift.tables import STRUCTURE_METRICS

PAGE, PICTURE, RECORD = "compare.html", "attention.png", "compare.json"
_LABELS = {"entropy": "entropy (nats)", "erf95": "ERF@0.95", "gini": "Gini", "head_diversity": "head diversity"}
_NONE = "–"


def write_comparison(comparison: Comparison, folder: Path) -> list[Path]:
    """Write ``compare.json``, three CSV tables, ``attention.png`` and ``compare.html`` into ``folder``.

    Files of these names are replaced, others left alone. Returns their paths.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RECORD, comparison.to_json())
    written = [folder / RECORD]
    for name in ("layers", "heads", "weights"):
        written.append(folder / f"{name}.csv")
        write_text(written[-1], pd.DataFrame(getattr(comparison, name)).to_csv(index=False))
    picture = draw_maps(comparison.maps)
    written.append(folder / PICTURE)
    written[-1].write_bytes(picture)
    written.append(folder / PAGE)
    write_text(written[-1], page(comparison, picture))
    return written


def draw_maps(maps: MapPictures) -> bytes:
    """The attention maps side by side, as a PNG. Images carry numbers: their names stand beside the picture."""
    count = len(maps.images)
    height, width = maps.images.shape[1:3]
    extent = (0, width, height, 0)
    with styled():
        figure, axes = new_figure(10 + count * WIDTH / MM / 4.9, count, 4)
        for row in range(count):
            base, adapted = 100 * maps.base[row], 100 * maps.adapted[row]
            change = adapted - base
            top = max(float(base.max()), float(adapted.max()))
            # A change of exactly nothing still needs a scale.
            far = max(float(abs(change).max()), 1e-9)
            axes[row, 0].imshow(maps.images[row], extent=extent)
            axes[row, 0].set_ylabel(f"image {row + 1}")
            for place, values in ((1, base), (2, adapted)):
                shares = axes[row, place].imshow(values, cmap="viridis", vmin=0, vmax=top, extent=extent)
            differences = axes[row, 3].imshow(change, cmap=DIVERGING, vmin=-far, vmax=far, extent=extent)
            for panels, mesh in ((axes[row, 2], shares), (axes[row, 3], differences)):
                bar = figure.colorbar(mesh, ax=panels, location="right", fraction=0.06, pad=0.02, aspect=12)
                bar.ax.yaxis.set_major_locator(MaxNLocator(3))
        for panel in axes.flat:
            panel.set_xticks([])
            panel.set_yticks([])
            panel.spines[["left", "bottom"]].set_visible(False)
        for panel, title in zip(axes[0], ("image", "base", "adapted", "change"), strict=True):
            panel.set_title(title, loc="center")
        out = io.BytesIO()
        figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def page(comparison: Comparison, picture: bytes) -> str:
    """The comparison as one HTML page: pictures inside, no script, nothing fetched, every name escaped."""
    environment = Environment(
        loader=PackageLoader("attndrift.comparing"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # The template puts a line break at both ends of the element's text.
    style = files("attndrift.comparing").joinpath("templates", "compare.css").read_text(encoding="utf-8").rstrip("\n")
    digest = base64.b64encode(hashlib.sha256(f"\n{style}\n".encode()).digest()).decode("ascii")
    return environment.get_template("compare.html.j2").render(
        comparison=comparison,
        style=Markup(style),
        style_hash=Markup(f"'sha256-{digest}'"),
        picture=Markup(f"data:image/png;base64,{base64.b64encode(picture).decode('ascii')}"),
        tables=tables(comparison),
        shown=_shown_names(comparison),
        zero_shot=zero_shot_lines(comparison),
    )


def _shown_names(comparison: Comparison) -> list[str]:
    return [f"image {number}: {name}" for number, name in enumerate(comparison.maps.names, 1)]


def number(value: float | None, form: str = ".4g") -> str:
    """A value as text; a null as a dash, never as 0."""
    return _NONE if value is None else format(value, form)


def tables(comparison: Comparison) -> list[dict[str, Any]]:
    """The tables of a comparison as text: ``title``, ``headings``, ``rows`` and ``note`` each."""
    return [_summary(comparison), *_layers(comparison), _heads(comparison), _weights(comparison)]


def _summary(comparison: Comparison) -> dict[str, Any]:
    rows = []
    for name in SUMMARY:
        value, reason = comparison.summary[name], comparison.reasons.get(name, "")
        rows.append([name, number(value), reason if value is None else SUMMARY[name]])
    return {
        "title": "Summary",
        "headings": ["name", "value", "what it is, or why there is none"],
        "rows": rows,
        "note": "",
    }


def _layers(comparison: Comparison) -> list[dict[str, Any]]:
    found = []
    for metric in STRUCTURE_METRICS:
        rows = [
            [str(row["layer"]), number(row[f"{metric}_base"]), number(row[f"{metric}_adapted"]),
             number(row[f"{metric}_change_pct"], "+.2f")]
            for row in comparison.layers
        ]  # fmt: skip
        headings = ["block", "base", "adapted", "change %"]
        found.append({"title": f"{_LABELS[metric]} by block", "headings": headings, "rows": rows, "note": ""})
    rows = [
        [str(row["layer"]), number(row["cka"], ".4f"), number(row["cka_debiased"], ".4f")] for row in comparison.layers
    ]
    note = (
        f"Chance level with {comparison.images['n']} images: plain at most {comparison.cka_chance:.3f} (unrelated isotropic "
        "features; real ones lie lower), debiased 0."
    )
    reason = comparison.reasons.get("cka_debiased_mean")
    if reason:
        note += f" No debiased CKA: {reason}."
    found.append({"title": "CKA by block", "headings": ["block", "CKA", "debiased CKA"], "rows": rows, "note": note})
    return found


def _heads(comparison: Comparison) -> dict[str, Any]:
    rows = [
        [row["metric"], str(row["layer"]), str(row["head"]), number(row["base"]), number(row["adapted"]),
         number(row["change_pct"], "+.2f")]
        for row in comparison.heads
    ]  # fmt: skip
    headings = ["metric", "block", "head", "base", "adapted", "change %"]
    return {
        "title": "Heads that changed most",
        "headings": headings,
        "rows": rows,
        "note": "Blocks and heads count from 1.",
    }


def _weights(comparison: Comparison) -> dict[str, Any]:
    rows = [[row["module"], number(row["drift"]), f"{row['parameters']:,}"] for row in comparison.weights]
    headings = ["module", "‖ΔW‖ / ‖W₀‖", "parameters"]
    return {"title": "Weight drift by module", "headings": headings, "rows": rows, "note": ""}


def zero_shot_lines(comparison: Comparison) -> list[str]:
    """What is left of the zero-shot accuracy, in sentences; none where it was not asked for."""
    found = comparison.zero_shot
    if found is None:
        return []
    lines = [
        f"Zero-shot accuracy on {found['dataset']} ({found['split']}, n = {found['n']}, {found['classes']} classes, chance "
        f"{100 * found['chance']:.1f}%): base {100 * found['base_accuracy']:.2f}%, adapted {100 * found['adapted_accuracy']:.2f}%.",
        f"Change {found['change_points']:+.2f} points{_interval(found['change_points_interval'])}.",
    ]
    if found["retention_pct"] is None:
        lines.append(f"Retention: none, {found['retention_reason']}.")
    else:
        lines.append(f"Retention {found['retention_pct']:.1f}%{_interval(found['retention_pct_interval'])}.")
    lines.append(f"Prompts: {'; '.join(found['templates'])}")
    return lines


def _interval(value: Mapping[str, Any] | None) -> str:
    if value is None or value["low"] is None:
        return ""
    return (
        f" ({100 * value['level']:.0f}% interval {value['low']:.2f} to {value['high']:.2f}; {value['method']}, unit: "
        f"{value['unit']}, {value['resamples']:,} resamples, seed {value['seed']})"
    )


def print_comparison(comparison: Comparison, written: Sequence[Path], console: Console | None = None) -> None:
    """Print the tables of a comparison and the files that hold them."""
    console = console or Console()
    for side in (("base", comparison.base), ("adapted", comparison.adapted)):
        console.print(f"{side[0]}: {escape(side[1]['source'])} ({side[1]['kind']})", highlight=False)
    images = comparison.images
    console.print(f"images: {escape(images['folder'])}, n = {images['n']}", highlight=False)
    for skipped in images["skipped"]:
        console.print(escape(f"skipped: {skipped['name']} ({skipped['reason']})"), highlight=False)
    for table in tables(comparison):
        drawn = Table(title=table["title"], title_justify="left")
        for place, heading in enumerate(table["headings"]):
            words = heading.startswith("what")
            # A name that a condition may use is of no use when it is cut.
            drawn.add_column(heading, justify="left" if place == 0 or words else "right", no_wrap=not words)
        for row in table["rows"]:
            drawn.add_row(*[escape(cell) for cell in row])
        console.print(drawn)
        if table["note"]:
            console.print(escape(table["note"]), highlight=False)
    for line in (*zero_shot_lines(comparison), *comparison.notes):
        console.print(escape(line), highlight=False)
    for path in written:
        console.print(escape(str(path)), highlight=False, soft_wrap=True)
