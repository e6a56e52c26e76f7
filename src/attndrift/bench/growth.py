"""How the cost of observing grows with tokens, layers and heads, and that of a measurement with probe images."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from attndrift.allocator import keep_freed_memory
from attndrift.bench.devices import device_named, wait_for
from attndrift.bench.memory import KEPT, RETURNED, peak_bytes
from attndrift.bench.ratios import rounds, timed
from attndrift.bench.result import Machine, Result
from attndrift.bench.spent import Stopwatch, observed_pass, timed_hooks
from attndrift.monitor import DriftMonitor

WIDTH = 768
_MEGA = 1e6


@dataclass(frozen=True)
class Shape:
    """A vision transformer and a batch of images for it; ``grid`` x ``grid`` patches and a class token."""

    grid: int = 14
    layers: int = 2
    heads: int = 12
    width: int = WIDTH
    batch: int = 8

    @property
    def tokens(self) -> int:
        return self.grid**2 + 1


TOKENS = tuple(Shape(grid=grid) for grid in (7, 10, 14, 20, 24, 32))
LAYERS = tuple(Shape(grid=7, layers=layers) for layers in (2, 4, 8, 16))
HEADS = tuple(Shape(heads=heads) for heads in (2, 4, 8, 16, 32))
PROBE = Shape(grid=7, layers=4)
IMAGES = (25, 50, 100, 200, 400)


def growth(
    *,
    pairs: int = 5,
    device: str = "auto",
    tokens: Sequence[Shape] = TOKENS,
    layers: Sequence[Shape] = LAYERS,
    heads: Sequence[Shape] = HEADS,
    probe: Shape = PROBE,
    images: Sequence[int] = IMAGES,
    keep_freed: bool = True,
    progress: Callable[[str], None] = lambda line: None,
) -> Result:
    """Cost against size, each as a table with the exponent of a straight line through the logarithms.

    The seconds of observing are taken where they are spent, in the hooks and in the metrics, during a real forward
    pass, and those of a measurement beyond the model's own work likewise: the difference of two passes would drown in
    their own spread.
    """
    machine = Machine()
    where = device_named(device)
    notes = ["Weights and images are random: no time here depends on their values."]
    if where.type == "cpu":
        notes.append(KEPT if keep_freed and keep_freed_memory() else RETURNED)
    tables: dict[str, list[dict[str, Any]]] = {}
    exponents: list[dict[str, Any]] = []
    for name, shapes in (("tokens", tokens), ("layers", layers), ("heads", heads)):
        if not shapes:
            continue
        rows = []
        for shape in shapes:
            rows.append({name: getattr(shape, name), **_observing(shape, where, pairs)})
            progress(f"{name} {getattr(shape, name)}: {rows[-1]['observing s']:.4f} s")
        tables[f"observing against {name}: {_fixed(shapes, name)}"] = rows
        exponents += [
            _exponent(rows, name, measure) for measure in ("observing s", "forward s", "extra MB", "all maps MB")
        ]
    rows = []
    for count in images:
        rows.append({"images": count, **_measuring(probe, count, where, pairs)})
        progress(f"images {count}: {rows[-1]['measuring s']:.3f} s")
    if rows:
        tables[f"measuring drift against probe images: {_words(probe, without='batch')}"] = rows
        for measure in ("measuring s", "forward s", "beyond the forward s"):
            exponents.append(_exponent(rows, "images", measure))
    tables["exponents: slope of the logarithm over that of the size"] = exponents
    return Result(
        "growth",
        [],
        tables=tables,
        notes=notes,
        device=str(where),
        threads=torch.get_num_threads(),
        others_pct=machine.others_pct(),
    )


def _words(shape: Shape, without: str = "") -> str:
    parts = {
        "tokens": f"{shape.tokens} tokens",
        "layers": f"{shape.layers} layers",
        "heads": f"{shape.heads} heads",
        "width": f"width {shape.width}",
        "batch": f"batch {shape.batch}",
    }
    return ", ".join(words for name, words in parts.items() if name != without)


def _fixed(shapes: Sequence[Shape], name: str) -> str:
    return _words(shapes[0], without=name)


def _model(shape: Shape, device: torch.device) -> CLIPVisionModel:
    config = CLIPVisionConfig(
        hidden_size=shape.width, intermediate_size=4 * shape.width, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, image_size=16 * shape.grid, patch_size=16,
    )  # fmt: skip
    return CLIPVisionModel._from_config(config, attn_implementation="sdpa").eval().to(device)


def _images(shape: Shape, count: int, device: torch.device) -> Tensor:
    side = 16 * shape.grid
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)


def _observing(shape: Shape, device: torch.device, pairs: int) -> dict[str, Any]:
    model = _model(shape, device)
    pixels = _images(shape, shape.batch, device)
    wait = wait_for(device)
    spent: list[float] = []

    @torch.no_grad()
    def bare() -> None:
        model(pixel_values=pixels)

    @torch.no_grad()
    def observed() -> None:
        watch = Stopwatch(wait)
        observed_pass(model, bare, watch)
        spent.append(watch.seconds)

    found = rounds({"bare": bare, "observed": observed}, pairs, wait=wait)
    cost, forward = statistics.median(spent[1:]), statistics.median(found["bare"])
    extra = peak_bytes(observed, device) - peak_bytes(bare, device)
    maps = shape.layers * shape.batch * shape.heads * shape.tokens**2 * 4
    return {
        "observing s": cost,
        "lowest s": min(spent[1:]),
        "highest s": max(spent[1:]),
        "forward s": forward,
        "observing, % of forward": 100 * cost / forward,
        "extra MB": extra / _MEGA,
        "all maps MB": maps / _MEGA,
    }


def _measuring(shape: Shape, images: int, device: torch.device, pairs: int) -> dict[str, Any]:
    model = _model(shape, device)
    pixels = _images(shape, images, device)
    wait = wait_for(device)
    inside = Stopwatch(wait)  # the model's own work, hooks included
    model.forward = inside.around(model.forward)
    monitor = DriftMonitor(model, pixels)
    beyond: list[float] = []

    @torch.no_grad()
    def bare() -> None:
        for part in pixels.split(200):
            model(pixel_values=part)

    def measured() -> None:
        hooks, inside.seconds = Stopwatch(wait), 0.0
        with timed_hooks(hooks):
            whole = timed(monitor.measure, wait)
        beyond.append(whole - inside.seconds + hooks.seconds)

    found = rounds({"bare": bare, "measured": measured}, pairs, wait=wait)
    return {
        "measuring s": statistics.median(found["measured"]),
        "forward s": statistics.median(found["bare"]),
        "beyond the forward s": statistics.median(beyond[1:]),
        "lowest s": min(beyond[1:]),
        "highest s": max(beyond[1:]),
    }


def _exponent(rows: Sequence[dict[str, Any]], size: str, measure: str) -> dict[str, Any]:
    """Least squares through the logarithms, with the standard error of the slope; null where a value is not positive."""
    sizes, values = ([float(row[name]) for row in rows] for name in (size, measure))
    described: dict[str, Any] = {"of": measure, "against": size, "from": sizes[0], "to": sizes[-1], "points": len(rows)}
    if len(rows) < 3 or min(values) <= 0:
        return described | {"exponent": None, "standard error": None}
    x, y = np.log(sizes), np.log(values)
    slope, intercept = np.polyfit(x, y, 1)
    residual = y - (slope * x + intercept)
    error = math.sqrt(float((residual**2).sum()) / (len(x) - 2) / float(((x - x.mean()) ** 2).sum()))
    return described | {"exponent": float(slope), "standard error": error}
