"""Seconds of forward passes, training steps, losses and drift with the attndrift that is first on the path, as JSON.

`benchmarks.gpu` runs this file with PYTHONPATH set to one checkout and then to another. So it uses nothing but torch, transformers
and the public face of attndrift.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from attndrift import AttentionPreservation, DriftMonitor, EntropyFloor, observe
from attndrift.metrics import StructureAccumulator

Work = Callable[[], object]
CLASSES = 10
WEIGHT = 0.1
WARM_UP = 3


@dataclass(frozen=True)
class Setting:
    """Sizes. ``times``: passes or steps that are timed together; ``repeats``: of which the median is taken."""

    config: CLIPVisionConfig
    forward_batch: int
    step_batch: int
    probe_images: int
    times: int
    repeats: int


FULL = Setting(CLIPVisionConfig(patch_size=32), 256, 64, 200, 10, 7)
TINY = Setting(
    CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=28, patch_size=7
    ),
    4, 4, 8, 2, 3,
)  # fmt: skip


class Classifier(nn.Module):
    """A vision tower with a linear classifier; returns the loss."""

    def __init__(self, tower: CLIPVisionModel) -> None:
        super().__init__()
        self.tower = tower
        self.classifier = nn.Linear(tower.config.hidden_size, CLASSES)

    def forward(self, pixels: Tensor, labels: Tensor) -> Tensor:
        features = self.tower(pixel_values=pixels).pooler_output
        return nn.functional.cross_entropy(self.classifier(features), labels)


def tower(setting: Setting, device: torch.device) -> CLIPVisionModel:
    torch.manual_seed(0)
    return CLIPVisionModel._from_config(setting.config, attn_implementation="sdpa").eval().to(device)


def images(setting: Setting, count: int, device: torch.device) -> Tensor:
    side = setting.config.image_size
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)


def captured(work: Work) -> Work:
    """``work`` as a CUDA graph. It must wait for nothing and take its input where it took it before."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = work()

    def replay(_: Any = found) -> None:  # its results must stay where they are
        graph.replay()

    return replay


def observed(model: nn.Module, work: Work) -> StructureAccumulator:
    """``work`` observed, with all four metrics computed on the device and left there."""
    accumulator = StructureAccumulator(check=False)
    with observe(model, check=False) as seen:
        work()
        accumulator.update(seen.attention, seen.cls_mass)
    return accumulator


def seconds(work: Work, times: int, repeats: int, device: torch.device) -> float:
    """Median seconds of one ``work``, of ``times`` that are timed together."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    found = []
    for _ in range(repeats + 1):
        wait()
        start = time.perf_counter()
        for _ in range(times):
            work()
        wait()
        found.append((time.perf_counter() - start) / times)
    return statistics.median(found[1:])


def forwards(setting: Setting, device: torch.device) -> dict[str, Work]:
    """A forward pass, bare and observed, in bfloat16 on a GPU."""
    model = tower(setting, device)
    pixels = images(setting, setting.forward_batch, device)
    if device.type == "cuda":
        model, pixels = model.to(torch.bfloat16), pixels.to(torch.bfloat16)

    @torch.no_grad()
    def bare() -> Tensor:
        return model(pixel_values=pixels).pooler_output

    return {"forward": bare, "forward, observed": partial(observed, model, bare)}


class Steps:
    """One model in training, and the ways to make a step of it."""

    def __init__(self, setting: Setting, device: torch.device) -> None:
        self.device = device
        self.pixels = images(setting, setting.step_batch, device)
        self.labels = torch.randint(CLASSES, (setting.step_batch,), generator=torch.Generator().manual_seed(0)).to(
            device
        )
        self.model = Classifier(tower(setting, device)).to(device).train()
        self.trained = list(self.model.parameters())
        on_gpu = device.type == "cuda"
        self.optimizer = torch.optim.AdamW(self.trained, 1e-5, weight_decay=0.01, fused=True, capturable=on_gpu)

    def step(self, preserve: Callable[[], Tensor] | None = None) -> None:
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda"):
            loss = self.model(self.pixels, self.labels)
        if preserve is not None:
            loss = loss + preserve()
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()

    def losses(self) -> dict[str, Callable[[], Any]]:
        """Each preservation loss by its row: what makes it, and how it is called after a forward pass."""
        with torch.no_grad(), observe(self.model) as seen:
            self.model(self.pixels, self.labels)
        cached = torch.stack([layer.detach().float() for layer in seen.log_attention])
        teacher = CLIPVisionModel._from_config(self.model.tower.config, attn_implementation="sdpa").eval()
        teacher = teacher.requires_grad_(False).to(self.device, torch.bfloat16 if self.device.type == "cuda" else None)
        entropy = DriftMonitor(self.model.tower, self.pixels).reference.structure.layers("entropy")
        return {
            "step, APR with cached teacher": lambda: AttentionPreservation(self.model, WEIGHT, lambda *_: cached),
            "step, APR with live teacher": lambda: AttentionPreservation(self.model, WEIGHT, teacher),
            "step, entropy floor": lambda: EntropyFloor(self.model, WEIGHT, pretrained_entropy=entropy),
        }


def measure(setting: Setting, device: torch.device) -> dict[str, float]:
    """Seconds by row. On a GPU passes and steps are also captured as CUDA graphs."""
    found: dict[str, float] = {}

    def time_rows(rows: dict[str, Work]) -> None:
        for row, work in rows.items():
            found[row] = seconds(work, setting.times, setting.repeats, device)
            if device.type == "cuda":
                found[f"{row}, CUDA graph"] = seconds(captured(work), setting.times, setting.repeats, device)

    time_rows(forwards(setting, device))
    steps = Steps(setting, device)
    time_rows({"step": steps.step, "step, observed": partial(observed, steps.model, steps.step)})
    index = list(range(setting.step_batch))
    for row, make in steps.losses().items():
        with make() as loss:
            asked = {"index": index} if "cached" in row else {}
            time_rows({row: partial(steps.step, partial(loss, **asked))})
    model, pixels = tower(setting, device), images(setting, setting.probe_images, device)
    monitor = DriftMonitor(model, pixels)

    @torch.no_grad()
    def two_passes() -> None:
        for _ in range(2):
            model(pixel_values=pixels)

    for row, work in {
        "two forward passes of the probe images": two_passes,
        "drift, reference included": lambda: DriftMonitor(model, pixels).measure(),
        "drift": monitor.measure,
    }.items():
        found[row] = seconds(work, 1, setting.repeats, device)
    return found


if __name__ == "__main__":
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(json.dumps(measure(TINY if "--tiny" in sys.argv else FULL, where)))
