"""Data for the page's heatmaps and attention maps: small enough to be embedded, its precision stated."""

from __future__ import annotations

import base64
import hashlib
import io
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from attndrift.analysis.numbers import format_rate
from attndrift.analysis.result import Analysis
from attndrift.files import is_inside
from attndrift.metrics.registry import METRICS, structure_metrics
from attndrift.report.blocks import counted
from attndrift.report.records import Record, Records
from attndrift.results.attention_maps import read_maps
from attndrift.results.tables import Tables

_MAX_STEPS = 12
_MAX_VALUES = 120_000
_VALUES = ("cka",)
"""Metrics that a heatmap shows themselves: their values compare with the pretrained model already."""
_CURVES = {
    "val_accuracy": ("Validation accuracy, %", 100.0),
    "monitor_zero_shot_retention_pct": ("Retention while training, %", 1.0),
    "cka_mean": ("CKA, mean over blocks", 1.0),
    "entropy_change_pct": ("Entropy change, %", 1.0),
}
"""Columns of ``history`` that are drawn for one run, with their label and scale."""
_MAX_POINTS = 60
_IMAGE_SIDE = 224


def heatmap_data(tables: Tables, analysis: Analysis) -> dict[str, Any]:
    """Change of each layer mean from step 0, percent, of every run and metric, and CKA: ``values[layer][step]``.

    Of more than 12 steps evenly spaced ones are kept (the first and the last always); where the values
    would outgrow the page, later runs are left out, and ``notes`` says so.
    """
    frame, shown = tables.layers, (*structure_metrics(), *_VALUES)
    frame = frame[frame["head"].isna() & frame["metric"].isin(shown) & frame["value"].notna()]
    variants = {str(row["run_id"]): row for row in analysis.tables["runs"].rows}
    notes: list[str] = []
    runs: dict[str, dict[str, Any]] = {}
    spent = without = too_many = 0
    for metric in shown:
        chosen = frame[frame["metric"] == metric]
        for run_id, group in chosen.groupby("run_id", sort=False):
            grid = group.drop_duplicates(["layer", "step"]).pivot(index="layer", columns="step", values="value")
            if grid.shape[1] < 2 or (metric not in _VALUES and int(grid.columns.min()) != 0):
                without += metric == "entropy" and grid.shape[1] > 1
                continue
            grid = grid.iloc[:, _spaced(grid.shape[1], _MAX_STEPS)]
            if spent + grid.size > _MAX_VALUES:
                too_many += metric == "entropy"
                continue
            spent += grid.size
            values = grid.to_numpy(dtype=float)
            if metric not in _VALUES:
                with np.errstate(divide="ignore", invalid="ignore"):
                    values = 100.0 * (values - values[:, :1]) / values[:, :1]
            row = variants.get(str(run_id), {})
            entry = runs.setdefault(
                str(run_id), {"run": str(run_id), "what": _describe(row), "metrics": {}, "curves": []}
            )
            entry["metrics"][metric] = {
                "layers": [int(v) for v in grid.index],
                "steps": [int(v) for v in grid.columns],
                "values": [[_rounded(v) for v in line] for line in values],
            }
    if without:
        notes.append(f"Without layer values at step 0 and not shown: {counted(without, 'run')}.")
    if too_many:
        notes.append(f"Left out to keep the page small: {counted(too_many, 'run')}.")
    for run_id, history in tables.history.groupby("run_id", sort=False):
        if str(run_id) in runs:
            runs[str(run_id)]["curves"] = _curves(history)
    return {
        "metrics": [
            {"name": m, "label": METRICS[m].label + ("" if m in _VALUES else " change, %"), "value": m in _VALUES}
            for m in shown
        ],
        "runs": list(runs.values()),
        "notes": notes,
    }


def _curves(history: pd.DataFrame) -> list[dict[str, Any]]:
    """What was measured of one run while it trained: at most 60 evaluations, the first and the last always."""
    found = []
    for column, (label, scale) in _CURVES.items():
        known = history[history[column].notna()] if column in history else history.iloc[:0]
        if len(known) > 1:
            known = known.sort_values("step", kind="stable").iloc[_spaced(len(known), _MAX_POINTS)]
            values = scale * known[column].to_numpy(dtype=float)
            found.append({"label": label, "steps": known["step"].tolist(), "values": [_rounded(v) for v in values]})
    return found


def _describe(row: dict[str, Any]) -> str:
    parts = [str(row[name]) for name in ("dataset", "variant") if row.get(name) is not None]
    rate = row.get("learning_rate")
    return ", ".join([*parts, format_rate(rate)] if isinstance(rate, float) else parts)


def _rounded(value: float) -> float | None:
    return float(f"{value:.3g}") if math.isfinite(value) else None


def _spaced(count: int, most: int) -> NDArray[np.intp]:
    if count <= most:
        return np.arange(count)
    return np.unique(np.round(np.linspace(0, count - 1, most)).astype(np.intp))


@dataclass
class _Pool:
    """Equal content once: runs of one dataset share their images and their maps before training.

    ``made``: what content became as an item, and its size, also in an earlier pool.
    """

    made: dict[str, tuple[Any, int]]
    items: list[Any] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)
    size: int = 0

    def put(self, content: bytes, make: Callable[[], tuple[Any, int]]) -> int:
        key = hashlib.sha256(content).hexdigest()
        if key not in self.made:
            self.made[key] = make()
        if key not in self.places:
            item, size = self.made[key]
            self.places[key] = len(self.items)
            self.items.append(item)
            self.size += size
        return self.places[key]

    def truncate(self, length: int, size: int) -> None:
        """Take back what was put after the pool had this length and size."""
        self.places = {key: place for key, place in self.places.items() if place < length}
        del self.items[length:]
        self.size = size


@dataclass(frozen=True)
class _Maps:
    images: NDArray[np.uint8]
    before: NDArray[np.float32]
    after: NDArray[np.float32]
    names: list[str]
    grid: tuple[int, int]


def maps_data(records: Records, analysis: Analysis, *, budget: int) -> dict[str, Any]:
    """Attention maps before and after, as bytes: ``budget`` bounds the characters they take in the page.

    Every map (image, layer, head) is stored as integers 0..255 of its own maximum, which is stored with
    it, so that a value is off by at most 1/510 of that maximum.
    """
    notes: list[str] = []
    found: list[tuple[str, Record]] = []
    for run_id, record in records.found.items():
        path = record.folder / "maps.npz"
        if path.is_file() and is_inside(path, record.folder):
            found.append((run_id, record))
    if not found:
        return {"runs": [], "images": [], "maps": [], "notes": ["No run keeps attention maps (`maps.npz`)."]}
    content: dict[str, Any] = {}
    made: dict[str, tuple[Any, int]] = {}
    for most in (8, 6, 4, 3, 2, 1):
        content, left = _packed(found, analysis, most, budget, made)
        if not left:
            break
    if most < 8:
        notes.append(f"At most {most} of the kept images a run are shown, to keep the page small.")
    if left:
        notes.append(f"Left out to keep the page small: {counted(left, 'run')}; their maps are in their `maps.npz`.")
    content["notes"] = [*content["notes"], *notes]
    return content


def _packed(
    found: list[tuple[str, Record]], analysis: Analysis, most: int, budget: int, made: dict[str, tuple[Any, int]]
) -> tuple[dict[str, Any], int]:
    """The data with at most ``most`` images a run, and the number of runs that do not fit ``budget``."""
    images, maps = _Pool(made), _Pool(made)
    runs: list[dict[str, Any]] = []
    notes: list[str] = []
    variants = {str(row["run_id"]): row for row in analysis.tables["runs"].rows}
    left = 0
    for run_id, record in found:
        try:
            loaded = _read(record, most)
        except (OSError, ValueError) as error:
            notes.append(f"{run_id}: maps.npz cannot be shown ({str(error).replace(f'{record.folder}/', '')}).")
            continue
        marks = [(pool, len(pool.items), pool.size) for pool in (images, maps)]
        places = [_put_image(images, image) for image in loaded.images]
        before, after = _put_maps(maps, loaded.before), _put_maps(maps, loaded.after)
        if images.size + maps.size > budget:
            for pool, length, size in marks:
                pool.truncate(length, size)
            left += 1
            continue
        runs.append(
            {
                "run": run_id,
                "what": _describe(variants.get(run_id, {})),
                "images": places,
                "names": loaded.names,
                "grid": list(loaded.grid),
                "layers": loaded.before.shape[1],
                "heads": loaded.before.shape[2],
                "before": before,
                "after": after,
            }
        )
    return {"runs": runs, "images": images.items, "maps": maps.items, "notes": notes}, left


def _read(record: Record, most: int) -> _Maps:
    maps = read_maps(record.folder / "maps.npz")
    names = [maps.name(index) for index in range(len(maps.images))]
    return _Maps(maps.images[:most], maps.before[:most], maps.after[:most], names[:most], maps.grid)


def _put_maps(pool: _Pool, maps: NDArray[np.float32]) -> int:
    top = maps.max(axis=-1).astype("<f4")
    codes = np.round(255.0 * maps / np.maximum(top, np.finfo(np.float32).tiny)[..., None]).astype(np.uint8)

    def make() -> tuple[dict[str, str], int]:
        item = {"codes": _base64(codes.tobytes()), "top": _base64(top.tobytes())}
        return item, len(item["codes"]) + len(item["top"])

    return pool.put(b"maps" + codes.tobytes() + top.tobytes(), make)


def _put_image(pool: _Pool, pixels: NDArray[np.uint8]) -> int:
    return pool.put(f"image {pixels.shape}".encode() + pixels.tobytes(), lambda: _image_item(pixels))


def _image_item(pixels: NDArray[np.uint8]) -> tuple[str, int]:
    picture = Image.fromarray(pixels)
    picture.thumbnail((_IMAGE_SIDE, _IMAGE_SIDE))
    out = io.BytesIO()
    kind = "png" if max(picture.size) <= 96 else "jpeg"
    picture.save(out, kind, **({"quality": 88} if kind == "jpeg" else {"optimize": True}))
    item = f"data:image/{kind};base64,{_base64(out.getvalue())}"
    return item, len(item)


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def run_order(frame: pd.DataFrame) -> list[str]:
    """Names of the runs in the order of the table."""
    return [str(name) for name in frame["run_id"]]
