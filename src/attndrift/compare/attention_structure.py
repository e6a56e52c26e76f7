"""The attention of one model on a folder of images: structure by block and head, with its spread, and maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from torch import Tensor, nn

from attndrift.attention.errors import ObservationError
from attndrift.attention.observer import observe
from attndrift.compare.attention_maps import attention_maps
from attndrift.compare.errors import CompareError
from attndrift.compare.image_folder import ImageFolder, open_images
from attndrift.compare.pages import Panel, draw_panels, labels, number, numbered, print_images, print_tables, render
from attndrift.compare.resolved import ResolvedModel
from attndrift.compare.sources import named, resolve
from attndrift.files import write_bytes, write_json, write_text
from attndrift.metrics.registry import METRICS
from attndrift.metrics.structure_accumulator import StructureAccumulator, StructureSummary
from attndrift.models.embedding import image_embeddings
from attndrift.models.evaluation import evaluation_mode
from attndrift.version import __version__

PAGE, PICTURE, RECORD = "structure.html", "attention.png", "structure.json"
SHOWN_BLOCKS = 4
"""Blocks of which maps are drawn, the first and the last among them."""

_NO_SPREAD = "head diversity compares the mean maps of all images; an image has none of its own"


@dataclass(frozen=True)
class BlockMaps:
    """Attention in some ``blocks`` (counting from 1), mean over heads, on ``k`` of the images.

    ``images`` (k, height, width, 3) uint8 as the model sees them; ``maps`` (blocks, k, rows, columns), shares that
    sum to 1; ``names`` (k,) of the files.
    """

    images: NDArray[np.uint8]
    blocks: list[int]
    maps: NDArray[np.float64]
    names: list[str]


@dataclass(frozen=True)
class ModelStructure:
    """What the attention of one model is like.

    Every ``sd`` is a sample standard deviation (n - 1): ``sd_images`` over images, of the image's value (in a block
    and in the whole model, its mean over heads, then blocks); ``sd_heads`` over the heads of a block, of their means.

    Attributes:
        model: the model, as plain values.
        images: folder, number of images, names of those skipped with the reason, files left out, names in the maps.
        summary: per metric ``mean`` and ``sd_images``, over heads, then blocks.
        layers: a row a block (``layer`` counts from 1): each metric's mean, ``_sd_images`` and ``_sd_heads``.
        heads: a row a head: each metric's mean and ``_sd_images``.
        reasons: why a value is None, by name.
        maps: attention maps of a few images.
        notes: what a reader has to know.
    """

    model: dict[str, Any]
    images: dict[str, Any]
    summary: dict[str, dict[str, float | None]]
    layers: list[dict[str, Any]]
    heads: list[dict[str, Any]]
    reasons: dict[str, str]
    maps: BlockMaps
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the maps."""
        return {
            "format": 1,
            "attndrift": __version__,
            "model": self.model,
            "images": self.images,
            "summary": self.summary,
            "layers": self.layers,
            "heads": self.heads,
            "reasons": self.reasons,
            "notes": self.notes,
        }


def measure_structure(
    model: str | Path | nn.Module,
    images: str | Path,
    *,
    skip_unreadable: bool = False,
    batch_size: int = 64,
    progress: Callable[[str], None] | None = None,
) -> ModelStructure:
    """Measure the attention of ``model`` on the images of a folder.

    Args:
        model: whatever BASE of a comparison may be, see :mod:`attndrift.compare.sources`.
        images: a folder of images, any depth; at least two.
        skip_unreadable: leave out (and list) images that cannot be decoded.
        batch_size: images a forward pass.
        progress: told in words what is being done.

    Raises ``ValueError`` (in its kinds) for a model that is not there, not whole or not finite, and for images that
    cannot be read.
    """
    say = progress or (lambda message: None)
    opened = open_images(images, skip_unreadable=skip_unreadable)
    say(f"loading {named(model)}")
    side = resolve(model)
    try:
        say(f"measuring {len(opened)} images")
        summary, single = _measure(side, opened, batch_size)
        maps = _maps(side, opened)
    except (ObservationError, FloatingPointError) as error:
        raise CompareError(str(error)) from error
    return ModelStructure(
        model=side.to_json(),
        images=opened.to_json(),
        summary={
            name: {
                "mean": float(summary.heads(name).mean(1).mean()),
                "sd_images": _sd(single[name].mean(2).mean(1)) if name in single else None,
            }
            for name in summary.values
        },
        layers=_layers(summary, single),
        heads=_heads(summary, single),
        reasons={"head_diversity_sd_images": _NO_SPREAD},
        maps=maps,
        notes=[f"{note}." for note in side.notes],
    )


def _measure(side: ResolvedModel, images: ImageFolder, batch_size: int) -> tuple[StructureSummary, dict[str, Tensor]]:
    """Means over all images, and per metric the value of every image: (images, layers, heads), float64."""
    accumulator = StructureAccumulator()
    of_an_image = [metric for metric in METRICS if metric.needs == "attention"]
    found: dict[str, list[Tensor]] = {name: [] for name in (*(metric.name for metric in of_an_image), "cls_mass")}
    with evaluation_mode(side.model):
        for pixels in images.batches(side.image_processor, batch_size):
            with observe(side.model) as seen:
                embeddings = image_embeddings(side.model, pixels)
                if not torch.isfinite(embeddings).all():
                    raise CompareError("the model's image embeddings are not finite; its weights are damaged")
                attention, mass = seen.attention, seen.cls_mass
            accumulator.update(attention, mass)
            for metric in of_an_image:
                found[metric.name].append(torch.stack([metric.function(layer).double() for layer in attention], dim=1))
            found["cls_mass"].append(torch.stack([layer.double() for layer in mass], dim=1))
    return accumulator.compute(), {name: torch.cat(values) for name, values in found.items()}


def _sd(values: Tensor) -> float:
    return float(values.double().std(correction=1))


def _layers(summary: StructureSummary, single: dict[str, Tensor]) -> list[dict[str, Any]]:
    rows = []
    for layer in range(len(summary.heads("entropy"))):
        row: dict[str, Any] = {"layer": layer + 1}
        for name in summary.values:
            heads = summary.heads(name)[layer]
            row[name] = float(heads.mean())
            row[f"{name}_sd_images"] = _sd(single[name][:, layer].mean(1)) if name in single else None
            row[f"{name}_sd_heads"] = _sd(heads)
        rows.append(row)
    return rows


def _heads(summary: StructureSummary, single: dict[str, Tensor]) -> list[dict[str, Any]]:
    rows = []
    layers, heads = summary.heads("entropy").shape
    for layer in range(layers):
        for head in range(heads):
            row: dict[str, Any] = {"layer": layer + 1, "head": head + 1}
            for name in summary.values:
                row[name] = float(summary.heads(name)[layer, head])
                row[f"{name}_sd_images"] = _sd(single[name][:, layer, head]) if name in single else None
            rows.append(row)
    return rows


def _maps(side: ResolvedModel, images: ImageFolder) -> BlockMaps:
    maps = attention_maps(side.model, images.pixels(side.image_processor, images.in_maps))
    shown = np.unique(np.linspace(0, len(maps) - 1, min(SHOWN_BLOCKS, len(maps))).round().astype(np.int64))
    return BlockMaps(
        images=images.pictures(side.image_processor),
        blocks=[int(block) + 1 for block in shown],
        maps=maps[shown],
        names=[images.names[place] for place in images.in_maps],
    )


def write_structure(structure: ModelStructure, folder: Path) -> list[Path]:
    """Write ``structure.json``, ``layers.csv``, ``heads.csv``, ``attention.png`` and ``structure.html`` into ``folder``.

    Files of these names are replaced, others left alone. Returns their paths.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RECORD, structure.to_json())
    written = [folder / RECORD]
    for name in ("layers", "heads"):
        written.append(folder / f"{name}.csv")
        write_text(written[-1], pd.DataFrame(getattr(structure, name)).to_csv(index=False))
    maps = structure.maps
    panels = [Panel(f"block {block}", values) for block, values in zip(maps.blocks, maps.maps, strict=True)]
    picture = draw_panels(maps.images, panels)
    written.append(folder / PICTURE)
    write_bytes(written[-1], picture)
    written.append(folder / PAGE)
    write_text(
        written[-1],
        render(
            "structure.html.j2",
            picture,
            structure=structure,
            images=structure.images,
            notes=structure.notes,
            tables=_tables(structure),
            shown=numbered(maps.names),
        ),
    )
    return written


def print_structure(structure: ModelStructure, written: Sequence[Path], console: Console | None = None) -> None:
    """Print the tables of a model's structure and the files that hold them."""
    console = console or Console()
    console.print(f"model: {escape(structure.model['source'])} ({structure.model['kind']})", highlight=False)
    print_images(structure.images, console)
    print_tables(_tables(structure)[:-1], console)
    for line in structure.notes:
        console.print(escape(line), highlight=False)
    for path in written:
        console.print(escape(str(path)), highlight=False, soft_wrap=True)


def _tables(structure: ModelStructure) -> list[dict[str, Any]]:
    """The tables as text: all blocks together, each metric by block, and (last, the longest) by head."""
    whole = [
        [label, number(structure.summary[name]["mean"]), number(structure.summary[name]["sd_images"])]
        for name, label in labels().items()
    ]
    tables = [
        {
            "title": "All blocks",
            "headings": ["metric", "mean", "sd over images"],
            "rows": whole,
            "note": f"{_NO_SPREAD.capitalize()}: no sd over images.",
        }
    ]
    for name, label in labels().items():
        rows = [
            [str(row["layer"]), *(number(row[column]) for column in (name, f"{name}_sd_images", f"{name}_sd_heads"))]
            for row in structure.layers
        ]
        headings = ["block", "mean", "sd over images", "sd over heads"]
        tables.append({"title": f"{label} by block", "headings": headings, "rows": rows, "note": ""})
    heads = [
        [str(row["layer"]), str(row["head"])]
        + [f"{number(row[name])} ± {number(row[f'{name}_sd_images'], '.2g')}" for name in labels()]
        for row in structure.heads
    ]
    tables.append(
        {
            "title": "By head",
            "headings": ["block", "head", *labels().values()],
            "rows": heads,
            "note": "Mean ± one standard deviation over images. Blocks and heads count from 1.",
        }
    )
    return tables
