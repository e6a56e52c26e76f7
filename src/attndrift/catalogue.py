"""What is known by name: models, datasets, metrics, methods and presets."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

MODELS = {
    "embedded": "a small CLIP inside the package (56 px, patch 8): no network needed",
    "config:vit-base-patch32": "ViT-B/32 with random weights, made from its config: for size and speed",
    "openai/clip-vit-base-patch32": "CLIP ViT-B/32, from the hub; so is any name or folder of a CLIPModel",
    "openai/clip-vit-base-patch16": "CLIP ViT-B/16, from the hub",
    "openai/clip-vit-large-patch14-336": "CLIP ViT-L/14 at 336 px, from the hub",
}


def catalogue() -> dict[str, list[dict[str, Any]]]:
    """Everything that has a name, by kind, as plain values."""
    from attndrift.data import DATASETS
    from attndrift.metrics import METRICS
    from attndrift.models import METHODS
    from attndrift.study.loading import load_study, preset_names

    presets = {name: load_study(name) for name in preset_names()}
    return {
        "models": [{"name": name, "what": what} for name, what in MODELS.items()],
        "datasets": [
            {"name": spec.name, "what": spec.title or spec.name, "hub": spec.hub, "licence": spec.licence}
            for spec in DATASETS.values()
        ],
        "metrics": [
            {"name": metric.name, "what": metric.meaning, "unit": metric.unit, "range": metric.range}
            for metric in METRICS.values()
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
