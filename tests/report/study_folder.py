"""A small study folder for the report: synthetic tables, with records, attention maps and figures beside them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from attndrift.results.tables import Tables
from benchmarks.synthetic import synthetic_tables

HOSTILE = "<script>alert(1)</script>|`x`\n</script><!-- *bold* [a](javascript:b) \u2028"


@dataclass
class DrawnFigure:
    name: str
    files: list[Path] = field(default_factory=list)
    caption: str | None = None
    left_out: str | None = None


def study_tables(*, seeds: int = 2, hostile: bool = True, **options: Any) -> Tables:
    """Synthetic tables in which the first run bears a name that breaks careless templates."""
    arguments = {"datasets": ("eurosat",), "rates": 3, "layers": 4, "heads": 3} | options
    tables = synthetic_tables(seeds=seeds, **arguments)
    if not hostile:
        return tables
    old = tables.runs["run_id"].iloc[0]
    frames = {}
    for name in ("runs", "history", "layers", "interpolation"):
        frame = getattr(tables, name).copy()
        frame["run_id"] = frame["run_id"].astype(object).replace({old: HOSTILE})
        frames[name] = frame
    return Tables(**frames)


def write_records(folder: Path, tables: Tables, *, images: int = 3, layers: int = 4, heads: int = 3) -> None:
    """Records and maps of every run whose name can be a folder's."""
    generator = np.random.default_rng(5)
    pixels = generator.integers(0, 256, (images, 28, 28, 3), dtype=np.uint8)
    before = generator.dirichlet(np.full(16, 0.4), (images, layers, heads)).astype(np.float32)
    for row in tables.runs.to_dict("records"):
        if row["run_id"] == HOSTILE:
            continue
        run = folder / "runs" / str(row["run_id"])
        run.mkdir(parents=True)
        (run / "record.json").write_text(json.dumps(record(row)), encoding="utf-8")
        after = generator.dirichlet(np.full(16, 0.2), (images, layers, heads)).astype(np.float32)
        np.savez(
            run / "maps.npz",
            images=pixels,
            before=before,
            after=before if row["method"] == "none" else after,
            labels=np.arange(images),
            class_names=np.array(["forest", HOSTILE, "river"]),
            grid=np.array([4, 4]),
            ids=np.array([f"image {index}" for index in range(images)]),
        )


def record(row: dict[str, Any]) -> dict[str, Any]:
    adapted = {
        "accuracy": 0.5,
        "n": 10_000,
        "embeddings_moved_mean": 0.25,
        "embeddings_moved_max": 0.75,
        "class_names": [f"class {index}" for index in range(100)],
        "templates": ["a photo of a {class}."],
        "preprocessing": {"do_resize": True, "size": {"shortest_edge": 28}, "resample": 3},
        "dataset": "cifar100",
        "split": "test",
    }
    return {
        "format": 2,
        "status": "finished",
        "row": {},
        "run_id": row["run_id"],
        "settings": {"method": row["method"], "learning_rate": row["learning_rate"], "clip_norm": 1.0},
        "settings_hash": "ab" * 32,
        "versions": {"attndrift": "0.1.0", "torch": "9.8.7"},
        "hardware": {"processor": "a processor", "cores": 2},
        "hashes": {"model": {"source": "tiny", "weights_sha256": "cd" * 32}, "data": "ef" * 32},
        "data": {"name": "eurosat", "train_split": "train", "test_split": "test"},
        "preprocessing": adapted["preprocessing"],
        "transfer": {"cifar100": {"zero_shot": {"adapted": adapted}}},
        "cka_chance_level": 0.79,
        "nulls": {"test_accuracy": "there was no test split"},
        "time": {"seconds": 12.5},
    }


def draw(folder: Path) -> list[DrawnFigure]:
    """One figure that was drawn, one that was left out."""
    folder.mkdir(parents=True)
    path = folder / "fig2 baseline.png"
    Image.new("RGB", (40, 30), "white").save(path)
    table = folder / "fig2 baseline.csv"
    table.write_text("a\n", encoding="utf-8")
    return [
        DrawnFigure("fig2_baseline_structure", [table, path], f"The caption of {HOSTILE}"),
        DrawnFigure("fig8_regularization", left_out="no preservation loss was used"),
    ]
