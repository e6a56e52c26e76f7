"""What is known by name: models, datasets, metrics, methods, presets and all else that a package may add to.

The facts of figures, report sections and families stand beside code that needs torch or matplotlib, whose import takes
seconds. Those of this package are read from its source text instead. The whole catalogue is kept in the cache folder
until a package changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from attndrift.cli.source_facts import source_facts
from attndrift.files import read_json, write_json
from attndrift.registry import Registry

Row = dict[str, Any]

_MODELS = {
    "embedded": "a small CLIP inside the package (56 px, patch 8): no network needed",
    "config:vit-base-patch32": "ViT-B/32 with random weights, made from its config: for size and speed",
    "NAME, NAME@REVISION or a folder": "any CLIP, SigLIP, ViT, DINOv2 or DINOv3 of the hub, or on this machine",
}
_USES = {
    "train": "studies, compare",
    "observe": "attndrift.observe",
    "open_clip": "attndrift.observe, open_clip",
}


def _models() -> list[Row]:
    from attndrift.models.known import KNOWN

    nothing = {"revision": None, "licence": None, "bytes": None, "gated": False}
    return [{"name": name, "what": what, "for": _USES["train"], **nothing} for name, what in _MODELS.items()] + [
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
    ]


def _rows(registry: Registry[Any], *facts: str, what: str) -> list[Row]:
    """A row a member: its name, what it is, further facts, and the package that it comes from."""
    return [
        {"name": one.name, "what": getattr(one, what), **{fact: getattr(one, fact) for fact in facts}}
        | {"from": registry.origin(one.name)}
        for one in registry
    ]


def _with_settings(registry: Registry[Any], *facts: str, what: str) -> list[Row]:
    """The same, with the names of each member's own settings."""
    return [
        row | {"settings": ", ".join(registry[row["name"]].Settings.model_fields)}
        for row in _rows(registry, *facts, what=what)
    ]


def _datasets() -> list[Row]:
    from attndrift.data.registry import DATASETS

    return _rows(DATASETS, "hub", "licence", what="title")


def _suites() -> list[Row]:
    from attndrift.data.registry import SUITES

    return _rows(SUITES, "source", what="title")


def _metrics() -> list[Row]:
    from attndrift.metrics.registry import METRICS

    return _rows(METRICS, "unit", "range", what="meaning")


def _methods() -> list[Row]:
    from attndrift.methods.registry import METHODS

    return _with_settings(METHODS, "source", what="trains")


def _heads() -> list[Row]:
    from attndrift.methods.registry import HEADS

    return _with_settings(HEADS, "source", what="starts")


def _losses() -> list[Row]:
    from attndrift.losses.registry import LOSSES

    return _with_settings(LOSSES, "formula", "source", "needed", "cost", what="meaning")


def _outcomes() -> list[Row]:
    from attndrift.study.outcomes.registry import OUTCOMES

    return _rows(OUTCOMES, "parameter", "default", "source", what="meaning")


def _backbones() -> list[Row]:
    from attndrift.models.backbone import BACKBONES

    return _rows(BACKBONES, "source", what="label")


def _measures() -> list[Row]:
    from attndrift.results.measures import MEASURES

    return _with_settings(MEASURES, "source", "needs", "cost", what="meaning")


def _trackers() -> list[Row]:
    from attndrift.trackers import TRACKERS

    return _rows(TRACKERS, what="label")


def _launchers() -> list[Row]:
    from attndrift.study.launchers import LAUNCHERS

    return _rows(LAUNCHERS, "extra", what="meaning")


def _families() -> list[Row]:
    found = source_facts("attndrift.attention.families", "Family", ("name", "models"), group="attndrift.families")
    if found is not None:
        # Those of text encoders have a registry of their own.
        return [_of_ours(row["name"], row["models"]) for row in found if row["module"] != "text"]
    from attndrift.attention.families import FAMILIES

    return _rows(FAMILIES, what="models")


def _figures() -> list[Row]:
    found = source_facts("attndrift.figures", "figure", ("name", "section", "title"))
    if found is not None:
        return [_of_ours(row["name"], row["title"], section=row["section"]) for row in found]
    from attndrift.figures.registry import FIGURES

    return _rows(FIGURES, "section", what="title")


def _sections() -> list[Row]:
    found = source_facts("attndrift.report.sections", "section", ("name", "title"), group="attndrift.report_sections")
    if found is not None:
        return [_of_ours(row["name"], row["title"]) for row in found]
    from attndrift.report.registry import SECTIONS

    return _rows(SECTIONS, what="title")


def _of_ours(name: str, what: str, **facts: Any) -> Row:
    return {"name": name, "what": what, **facts, "from": "attndrift"}


def _settings() -> list[Row]:
    from attndrift.study.settings import RunSettings, own_fields

    fields = {**RunSettings.model_fields, **own_fields()}
    return [
        {"name": name, "what": one.description or "", "default": str(one.get_default())} for name, one in fields.items()
    ]


def _presets() -> list[Row]:
    from attndrift.study.loading import load_study, preset_names

    studies = {name: load_study(name) for name in preset_names()}
    return [{"name": name, "runs": len(study.runs), "what": study.description} for name, study in studies.items()]


KINDS: dict[str, Callable[[], list[Row]]] = {
    "models": _models,
    "backbones": _backbones,
    "datasets": _datasets,
    "suites": _suites,
    "metrics": _metrics,
    "methods": _methods,
    "heads": _heads,
    "losses": _losses,
    "outcomes": _outcomes,
    "measures": _measures,
    "trackers": _trackers,
    "launchers": _launchers,
    "families": _families,
    "figures": _figures,
    "sections": _sections,
    "settings": _settings,
    "presets": _presets,
}
"""What is listed, by kind."""


def catalogue(kinds: Iterable[str] = KINDS) -> dict[str, list[Row]]:
    """Everything that has a name, by kind, as plain values."""
    # Imported here: a list of one kind that is in the cache needs nothing else.
    from attndrift.data.cache import cache_folder, code_key

    path, key = cache_folder() / "catalogue.json", code_key()
    held: dict[str, list[Row]] = {}
    with suppress(OSError, ValueError, AttributeError):
        content = read_json(path)
        held = content["kinds"] if content.get("key") == key else {}
    kinds = list(kinds)
    missing = [kind for kind in kinds if kind not in held]
    if missing:
        held = held | {kind: KINDS[kind]() for kind in missing}
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"key": key, "kinds": held})
    return {kind: held[kind] for kind in kinds}


def print_catalogue(found: dict[str, list[Row]], console: Console | None = None) -> None:
    """Print a table a kind, or a block a name where the terminal is too narrow for that."""
    console = console or Console()
    for kind, rows in found.items():
        # That everything comes from this package need not be said.
        others = any(row.get("from", "attndrift") != "attndrift" for row in rows)
        columns = [column for column in rows[0] if others or column != "from"]
        cells = [[_cell(row[column]) for column in columns] for row in rows]
        if _least_width(columns, cells) > console.width:
            _print_blocks(kind, columns, cells, console)
            continue
        table = Table(title=kind, title_justify="left", show_edge=False, pad_edge=False)
        for column in columns:
            table.add_column(column, overflow="fold", no_wrap=column == "name")
        for row in cells:
            table.add_row(*row)
        console.print(table)
        console.print()


def _cell(value: Any) -> str:
    return "" if value is None or value is False else str(value)


def _least_width(columns: list[str], cells: list[list[str]]) -> int:
    """The width at which no column but the text's needs many lines."""
    longest = [max(len(text) for text in (column, *texts)) for column, *texts in zip(columns, *cells, strict=True)]
    return sum(
        width if column == "name" else min(width, 20) for column, width in zip(columns, longest, strict=True)
    ) + (3 * len(columns))


def _print_blocks(kind: str, columns: list[str], cells: list[list[str]], console: Console) -> None:
    console.print(kind, style="italic", highlight=False)
    for name, *texts in cells:
        console.print(name, style="bold", highlight=False, markup=False, soft_wrap=True)
        told = [
            f"{text}" if column == "what" else f"{column}: {text}"
            for column, text in zip(columns[1:], texts, strict=True)
            if text
        ]
        for line in told:
            console.print(Padding(Text(line), (0, 0, 0, 4)))
    console.print()
