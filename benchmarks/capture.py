"""What observing costs a forward pass, against the bare pass and against eager attention with full maps."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from attndrift.models import load_model
from attndrift.study.allocator import keep_freed_memory
from benchmarks import hook_overhead, memory, reference_capture, roofline
from benchmarks.ratios import Work, ratio_of, rounds
from benchmarks.result import OtherPrograms, Output, Pairs, Result, say

WORDS = {
    "bare": "bare forward, fused attention (sdpa)",
    "observed": "forward with all four metrics",
    "reference": "reference: eager forward, full maps, metrics a batch",
}
AT_MOST = 1.05
REFERENCE_AT_MOST = {"config:vit-base-patch32": 1.0, "config:vit-large-patch14-336": 1 / 1.3}
MEGABYTE = 1e6


class Forwards:
    """The three ways to run one forward pass of ``batch`` random images through ``model``, in float32."""

    def __init__(self, model: str, batch: int) -> None:
        self.clip = load_model(model)
        self.eager = reference_capture.eager_clip(self.clip.config, self.clip.state_dict())
        vision = self.clip.config.vision_config
        self.tokens = (vision.image_size // vision.patch_size) ** 2 + 1
        self.width = vision.hidden_size
        generator = torch.Generator().manual_seed(0)
        self.pixels = torch.randn(batch, 3, vision.image_size, vision.image_size, generator=generator)
        self.maps_bytes = 4 * vision.num_hidden_layers * batch * vision.num_attention_heads * self.tokens**2
        self.case = f"{model.removeprefix('config:')}, {self.tokens} tokens, batch {batch}, float32"
        self.overhead: list[float] = []
        self.works: dict[str, Work] = {
            "bare": self._bare,
            "observed": self._observed,
            "reference": partial(reference_capture.measure_attention, self.eager, [self.pixels]),
        }

    @torch.no_grad()
    def _bare(self) -> Tensor:
        return self.clip.vision_model(pixel_values=self.pixels).pooler_output

    @torch.no_grad()
    def _observed(self) -> None:
        self.overhead.append(hook_overhead.observed_pass(self.clip, self._bare))

    def rates(self) -> tuple[float, float]:
        """Of products as large as this model's: see :func:`benchmarks.roofline.rates`."""
        return roofline.rates(len(self.pixels) * self.tokens, self.width)

    @torch.no_grad()
    def operations(self) -> float:
        one = self.pixels[:1]
        return len(self.pixels) * roofline.operations(lambda: self.eager.vision_model(pixel_values=one))

    def memory(self) -> list[dict[str, Any]]:
        """Peak memory of each, and what it is beyond the bare forward's."""
        peaks = {name: memory.peak_bytes(work) for name, work in self.works.items()}
        return [
            {
                "case": self.case, "what": WORDS[name], "peak MB": peak / MEGABYTE,
                "extra MB": (peak - peaks["bare"]) / MEGABYTE, "all maps MB": self.maps_bytes / MEGABYTE,
                "extra, % of all maps": 100 * (peak - peaks["bare"]) / self.maps_bytes,
            }
            for name, peak in peaks.items()
        ]  # fmt: skip


def capture(model: str, batch: int, pairs: int, progress: Callable[[str], object] = say) -> Result:
    """Time and peak memory of the three ways to run a forward pass of ``model``."""
    others = OtherPrograms()
    forwards = Forwards(model, batch)
    traced = forwards.memory()
    keep_freed_memory()
    before = forwards.rates()
    found = rounds(forwards.works, pairs, progress)
    after = forwards.rates()
    count = forwards.operations()
    maps = float(roofline.MAP_PASSES * forwards.maps_bytes)
    case = forwards.case
    return Result(
        "capture",
        [
            ratio_of(WORDS[what], WORDS[other], found[what], found[other], case=case, at_most=at_most)
            for what, other, at_most in (
                ("observed", "bare", AT_MOST),
                ("observed", "reference", REFERENCE_AT_MOST.get(model)),
                ("reference", "bare", None),
            )
        ],
        {
            hook_overhead.TITLE: [
                hook_overhead.overhead_row(WORDS["observed"], case, forwards.overhead[-pairs:], found["observed"])
            ],
            roofline.TITLE: [
                roofline.roofline_row(
                    case, words, statistics.median(found[name]), count, maps if name == "reference" else 0.0, before, after
                )
                for name, words in WORDS.items()
            ],
            "extra peak memory of a forward pass": traced,
        },
        ["Weights and images are random: no time here depends on their values.", memory.HOW, memory.KEPT],
        others.percent(),
    )  # fmt: skip


def main(
    model: Annotated[str, typer.Option(help="As attndrift.models.load_model takes it.")] = "config:vit-base-patch32",
    batch: Annotated[int, typer.Option(min=1, help="Images a forward pass.")] = 32,
    pairs: Pairs = 18,
    output: Output = None,
) -> None:
    """What observing costs a forward pass, against the bare pass and against eager attention with full maps."""
    capture(model, batch, pairs).deliver(output)


if __name__ == "__main__":
    typer.run(main)
