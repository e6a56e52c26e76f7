"""What observing attention costs: against the bare forward pass, and against eager maps."""

from __future__ import annotations

import torch

from attndrift.bench.devices import device_named, wait_for
from attndrift.bench.ratios import compare
from attndrift.bench.result import Machine, Result
from attndrift.metrics import StructureAccumulator
from attndrift.models import load_clip
from attndrift.observing import observe


def capture(*, model: str = "config:vit-base-patch32", batch: int = 32, pairs: int = 7) -> Result:
    """The forward pass observed, all four metrics computed, against the bare forward (sdpa) and against eager maps."""
    machine = Machine()
    device = device_named("auto")
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

    wait = wait_for(device)
    what = f"observed forward with four metrics, batch {batch}"
    ratios = [
        compare(what, observed, "bare forward, sdpa", bare, pairs, wait=wait),
        compare(what, observed, "eager forward with full maps and the same metrics", full_maps, pairs, wait=wait),
    ]
    return Result(
        "capture", ratios, device=str(device), threads=torch.get_num_threads(), others_pct=machine.others_pct()
    )
