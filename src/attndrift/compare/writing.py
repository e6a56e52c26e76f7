"""A comparison as tables on a terminal, as files, and as one page that asks nothing of any network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.markup import escape

from attndrift.compare.comparison import Comparison, MapPictures
from attndrift.compare.pages import (
    Panel,
    data_uri,
    draw_panels,
    labels,
    number,
    numbered,
    print_images,
    print_tables,
    render,
)
from attndrift.compare.summary import summary_names
from attndrift.figures.cross_layer import cross_layer_png
from attndrift.files import write_bytes, write_json, write_text
from attndrift.metrics.registry import METRICS, structure_metrics

PAGE, PICTURE, HEATMAP, RECORD = "compare.html", "attention.png", "cross_layer_cka.png", "compare.json"


def write_comparison(comparison: Comparison, folder: Path) -> list[Path]:
    """Write ``compare.json``, three CSV tables, ``attention.png`` and ``compare.html`` into ``folder``; ``cross_layer_cka.png`` where it was measured.

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
    write_bytes(written[-1], picture)
    heatmap = None if comparison.cross_layer_cka is None else cross_layer_png(comparison.cross_layer_cka)
    if heatmap is not None:
        written.append(folder / HEATMAP)
        write_bytes(written[-1], heatmap)
    written.append(folder / PAGE)
    write_text(written[-1], page(comparison, picture, heatmap))
    return written


def draw_maps(maps: MapPictures) -> bytes:
    """The attention maps of both models side by side, and their change, as a PNG."""
    panels = (
        Panel("base", maps.base),
        Panel("adapted", maps.adapted),
        Panel("change", maps.adapted - maps.base, change=True),
    )
    return draw_panels(maps.images, panels)


def page(comparison: Comparison, picture: bytes, heatmap: bytes | None = None) -> str:
    """The comparison as one HTML page, with the maps and, where there is one, the heatmap of blocks against blocks."""
    return render(
        "compare.html.j2",
        picture,
        comparison=comparison,
        cross_layer=None if heatmap is None else data_uri(heatmap),
        images=comparison.images,
        tables=tables(comparison),
        shown=numbered(comparison.maps.names),
        zero_shot=zero_shot_lines(comparison),
    )


def tables(comparison: Comparison) -> list[dict[str, Any]]:
    """The tables of a comparison as text: ``title``, ``headings``, ``rows`` and ``note`` each."""
    beside = [_differences(comparison)] if comparison.differences else []
    kept = [_retention(comparison.retention)] if comparison.retention else []
    return [_summary(comparison), *kept, *beside, *_layers(comparison), _heads(comparison), _weights(comparison)]


def _retention(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    rows, lines = [], []
    for row in found:
        share = [
            number(None if row[name] is None else 100 * row[name], ".2f")
            for name in ("base_accuracy", "adapted_accuracy")
        ]
        kept = f"{number(row['retention_pct'], '.1f')}{_ends(row['retention_pct_interval'])}"
        change = f"{number(row['change_points'], '+.2f')}{_ends(row['change_points_interval'])}"
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.1f} s; "
        rows.append([row["measure"], *share, kept, change])
        why = f" No retention: {row['reason']}." if row["reason"] else ""
        lines.append(f"{row['measure']}: cost {seconds}{row['cost']}.{why}")
    first = found[0]
    banks = [row["bank"] for row in found if row["bank"]]
    note = (
        f"{first['split']} split, n = {first['n']:,}, {first['classes']} classes, chance {100 * first['chance']:.1f}%"
    )
    note += f"; measures with a bank learn from {banks[0]:,} training images" if banks else ""
    return {
        "title": f"Retention on {first['dataset']}",
        "headings": ["measure", "base %", "adapted %", "retention %", "change, points"],
        "rows": rows,
        "note": "\n".join([f"{note}. In brackets: paired 95% intervals over the images.", *lines]),
    }


def _ends(interval: Mapping[str, Any] | None) -> str:
    # On a line of its own: all columns stand beside each other on 80.
    return "" if interval is None else f"\n[{interval['low']:.1f}, {interval['high']:.1f}]"


def _differences(comparison: Comparison) -> dict[str, Any]:
    rows = [[row["setting"], row["base"], row["adapted"], row["effect"]] for row in comparison.differences]
    headings = ["setting", "base", "adapted", "what it decides"]
    return {"title": "What differs beside the weights", "headings": headings, "rows": rows, "note": ""}


def _summary(comparison: Comparison) -> dict[str, Any]:
    rows = []
    for name, meaning in summary_names().items():
        value = comparison.summary[name]
        rows.append([name, number(value), comparison.reasons[name] if value is None else meaning])
    return {
        "title": "Summary",
        "headings": ["name", "value", "what it is, or why there is none"],
        "rows": rows,
        "note": "",
    }


def _layers(comparison: Comparison) -> list[dict[str, Any]]:
    found = []
    for metric in structure_metrics():
        rows = [
            [str(row["layer"]), number(row[f"{metric}_baseline"]), number(row[f"{metric}_final"]),
             number(row[f"{metric}_change_pct"], "+.2f")]
            for row in comparison.layers
        ]  # fmt: skip
        headings = ["block", "base", "adapted", "change %"]
        found.append({"title": f"{labels()[metric]} by block", "headings": headings, "rows": rows, "note": ""})
    compared = {metric.name: metric.label for metric in METRICS if metric.needs == "hidden states"}
    rows = [[str(row["layer"]), *(number(row[name], ".4f") for name in compared)] for row in comparison.layers]
    note = (
        f"Chance level of CKA with {comparison.images['n']} images: plain at most {comparison.cka_chance:.3f} (unrelated "
        "isotropic features; real ones lie lower), debiased 0."
    )
    reason = comparison.reasons.get("cka_debiased_mean")
    if reason:
        note += f" No debiased CKA: {reason}."
    headings = ["block", *compared.values()]
    found.append({"title": "Hidden states by block", "headings": headings, "rows": rows, "note": note})
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
    ]
    if found["retention_pct"] is None:
        lines.append(f"Retention: none, {found['retention_reason']}.")
    else:
        lines.append(f"Change {found['change_points']:+.2f} points{_interval(found['change_points_interval'])}.")
        lines.append(f"Retention {found['retention_pct']:.1f}%{_interval(found['retention_pct_interval'])}.")
    lines.append(f"Prompts: {'; '.join(found['templates'])}")
    return lines


def _interval(value: Mapping[str, Any] | None) -> str:
    if value is None or value["low"] is None:
        return ""
    return (
        f" ({100 * value['level']:.0f}% interval {value['low']:.2f} to {value['high']:.2f}; {value['method']}, over {value['n']:,} "
        "images)"
    )


def print_comparison(comparison: Comparison, written: Sequence[Path], console: Console | None = None) -> None:
    """Print the tables of a comparison and the files that hold them."""
    console = console or Console()
    for side in (("base", comparison.base), ("adapted", comparison.adapted)):
        console.print(f"{side[0]}: {escape(side[1]['source'])} ({side[1]['kind']})", highlight=False)
    print_images(comparison.images, console)
    print_tables(tables(comparison), console)
    for line in (*zero_shot_lines(comparison), *comparison.notes):
        console.print(escape(line), highlight=False)
    for path in written:
        console.print(escape(str(path)), highlight=False, soft_wrap=True)
