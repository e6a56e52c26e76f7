"""What is known by name: models, datasets, metrics, methods and presets."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

MODELS = {
    "embedded": "a small CLIP inside the package (56 px, patch 8): no network needed",
    "config:vit-base-patch32": "ViT-B/32 with random weights, made from its config: for size and speed",
    "NAME, NAME@REVISION or a folder": "any CLIP model of the hub, or on this machine",
}
_USES = {
    "train": "studies, compare, baseline",
    "observe": "attndrift.observe",
    "open_clip": "attndrift.observe, open_clip",
}


def catalogue() -> dict[str, list[dict[str, Any]]]:
    """Everything that has a name, by kind, as plain values."""
    from attndrift.data.registry import DATASETS
    from attndrift.methods.registry import METHODS
    from attndrift.metrics.registry import METRICS
    from attndrift.models.known import KNOWN
    from attndrift.study.loading import load_study, preset_names

    presets = {name: load_study(name) for name in preset_names()}
    return {
        "models": [
            {
                "name": name,
                "what": what,
                "for": _USES["train"],
                "revision": None,
                "licence": None,
                "bytes": None,
                "gated": False,
            }
            for name, what in MODELS.items()
        ]
        + [
            {
                "name": known.name,
                "what": known.what,
                "for": _USES[known.use],
                "revision": known.revision,
                "licence": known.licence,
                "bytes": known.size,
                "gated": known.gated,
            }
            for known in KNOWN.values()
        ],
        "datasets": [
            {"name": spec.name, "what": spec.title or spec.name, "hub": spec.hub, "licence": spec.licence}
            for spec in DATASETS.values()
        ],
        "metrics": [
            {"name": metric.name, "what": metric.meaning, "unit": metric.unit, "range": metric.range}
            for metric in METRICS
        ],
        "methods": [
            {"name": name, "what": (getattr(method, "__doc__", "") or "").strip().splitlines()[0]}
            for name, method in METHODS.items()
        ],
        "presets": [
            {"name": name, "runs": len(study.runs), "what": study.description} for name, study in presets.items()
        ],
    }


def print_catalogue(found: dict[str, list[dict[str, Any]]], console: Console | None = None) -> None:
    """Print a table a kind."""
    console = console or Console()
    for kind, rows in found.items():
        table = Table(title=kind, title_justify="left", show_edge=False, pad_edge=False)
        for column in rows[0]:
            table.add_column(column, overflow="fold", no_wrap=column == "name")
        for row in rows:
            table.add_row(*("" if value is None else str(value) for value in row.values()))
        console.print(table)
        console.print()
