"""What `torch.compile` saves of a study's recorded training step, and what compiling takes.

    python benchmarks/gpu_compiled.py > benchmarks/results/gpu-compiled.txt

Needs a CUDA device and a C compiler. A whole step of ViT-B/32 on 64 images in bfloat16 autocast: forward, backward, clipping,
fused AdamW.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from attndrift.bench.arithmetic import bare_step
from attndrift.bench.graphs import captured
from attndrift.bench.runs import METHODS, MODEL
from attndrift.models import adapt, class_token_alone, load_clip
from attndrift.study.running import adaptation
from attndrift.study.settings import RunSettings

ROUNDS, STEPS = 5, 40


def milliseconds(work: Callable[[], None]) -> str:
    work()
    times = []
    for _ in range(ROUNDS):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(STEPS):
            work()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - began) / STEPS * 1e3)
    return f"{statistics.median(times):.2f} ms ({min(times):.2f}-{max(times):.2f})"


def main() -> None:
    pretrained = class_token_alone(load_clip(MODEL))
    side = pretrained.config.vision_config.image_size
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(64, 3, side, side, generator=generator).cuda()
    labels = torch.randint(0, 10, (64,), generator=generator).cuda()
    mixed = partial(torch.autocast, "cuda", dtype=torch.bfloat16)
    for name, method in METHODS.items():
        settings = RunSettings.model_validate({"model": MODEL, "dataset": "eurosat"} | method)
        works = []
        for compiled in (False, True):
            model: Any = adapt(copy.deepcopy(pretrained), adaptation(settings), 10, 0).cuda().train()
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            optimizer = torch.optim.AdamW(trained, settings.learning_rate, fused=True, capturable=True)
            called = torch.compile(model) if compiled else model
            work = partial(bare_step, called, trained, optimizer, mixed, pixel_values=pixels, labels=labels)
            if compiled:
                began = time.perf_counter()
                work()
                torch.cuda.synchronize()
                print(f"{name} compiling took {time.perf_counter() - began:.1f} s", flush=True)
                print(f"{name} compiled, as it comes {milliseconds(work)}", flush=True)
            works.append(captured(work))
            print(f"{name} {'compiled and ' if compiled else ''}recorded {milliseconds(works[-1])}", flush=True)


if __name__ == "__main__":
    main()
