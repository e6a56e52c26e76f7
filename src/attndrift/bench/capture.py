"""What observing attention costs: against the bare forward pass, and against eager maps."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from attndrift.bench.ratios import Ratio
from attndrift.metrics import StructureAccumulator
from attndrift.models import load_clip
from attndrift.observing import observe
from attndrift.study.record import hardware, versions


def _timed(work: Callable[[], object]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(
    what: str, work: Callable[[], object], against: str, alternative: Callable[[], object], pairs: int
) -> Ratio:
    """Time ``work`` against ``alternative`` in interleaved pairs, the order changing from pair to pair."""
    times: list[tuple[float, float]] = []
    for index in range(pairs + 1):
        if index % 2:
            second = _timed(alternative)
            first = _timed(work)
        else:
            first = _timed(work)
            second = _timed(alternative)
        times.append((first, second))
    kept = times[1:]
    ratios = [first / second for first, second in kept]
    return Ratio(
        what,
        against,
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        statistics.median(first for first, _ in kept),
        statistics.median(second for _, second in kept),
        pairs,
    )


def capture(*, model: str = "config:vit-base-patch32", batch: int = 32, pairs: int = 7) -> list[Ratio]:
    """The forward pass observed, all four metrics computed, against the bare forward (sdpa) and against eager maps."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clip = load_clip(model).to(device)
    size = clip.config.vision_config.image_size
    pixels = torch.randn(batch, 3, size, size, device=device)
    eager = load_clip(model).to(device)
    eager.set_attn_implementation("eager")

    def bare() -> None:
        with torch.no_grad():
            clip.vision_model(pixel_values=pixels)

    def observed() -> None:
        accumulator = StructureAccumulator()
        with torch.no_grad(), observe(clip) as seen:
            clip.vision_model(pixel_values=pixels)
            accumulator.update(seen.attention, seen.cls_mass)
        accumulator.compute()

    def full_maps() -> None:
        accumulator = StructureAccumulator()
        with torch.no_grad():
            maps = eager.vision_model(pixel_values=pixels, output_attentions=True).attentions
        rows = [layer[:, :, 0, 1:] for layer in maps]
        accumulator.update([row / row.sum(-1, keepdim=True) for row in rows])
        accumulator.compute()

    return [
        compare(f"observed forward with four metrics, batch {batch}", observed, "bare forward, sdpa", bare, pairs),
        compare(
            f"observed forward with four metrics, batch {batch}", observed,
            "eager forward with full maps and the same metrics", full_maps, pairs,
        ),
    ]  # fmt: skip


def result(name: str, ratios: list[Ratio]) -> dict[str, Any]:
    """Plain values, with versions and machine."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {
        "bench": name,
        "ratios": [ratio.to_json() for ratio in ratios],
        "versions": versions(),
        "hardware": hardware(device, torch.get_num_threads()),
    }
