"""What measuring drift on probe images costs, against forward passes of the same images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
import typer
from torch import Tensor

from attndrift import DriftMonitor
from attndrift.models import load_model
from attndrift.study.allocator import keep_freed_memory
from benchmarks.memory import KEPT
from benchmarks.ratios import ratio_of, rounds
from benchmarks.result import OtherPrograms, Output, Pairs, Result, say

AT_MOST = 1.15


def drift(model: str, images: int, pairs: int, progress: Callable[[str], object] = say) -> Result:
    """Drift of ``model`` (all metrics, CKA, embedding and weight drift), against two bare forward passes."""
    others = OtherPrograms()
    keep_freed_memory()
    clip = load_model(model)
    size = clip.config.vision_config.image_size
    pixels = torch.randn(images, 3, size, size, generator=torch.Generator().manual_seed(0))
    monitor = DriftMonitor(clip, pixels)

    @torch.no_grad()
    def forward() -> Tensor:
        return clip.get_image_features(pixel_values=pixels).pooler_output

    found = rounds(
        {
            "two passes": lambda: (forward(), forward()),
            "reference and drift": lambda: DriftMonitor(clip, pixels).measure(),
            "drift": monitor.measure,
        },
        pairs,
        progress,
    )
    case = f"{model.removeprefix('config:')}, {images} probe images, float32"
    two = "two bare forward passes of the same images"
    both, one = "reference taken, then drift measured", "each further measurement of drift"
    return Result(
        "drift",
        [
            ratio_of(both, two, found["reference and drift"], found["two passes"], case=case, at_most=AT_MOST),
            ratio_of(one, two, found["drift"], found["two passes"], case=case),
        ],
        notes=["Weights and images are random: no time here depends on their values.", KEPT],
        others_pct=others.percent(),
    )


def main(
    model: Annotated[str, typer.Option(help="As attndrift.models.load_model takes it.")] = "config:vit-base-patch32",
    images: Annotated[int, typer.Option(min=4, help="Probe images.")] = 200,
    pairs: Pairs = 3,
    output: Output = None,
) -> None:
    """What measuring drift on probe images costs, against forward passes of the same images."""
    drift(model, images, pairs).deliver(output)


if __name__ == "__main__":
    typer.run(main)
