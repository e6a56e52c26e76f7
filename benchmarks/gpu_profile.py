"""What a GPU does in a pass, a step and a measurement, kernel by kernel, and how long the host takes to ask for it.

    python benchmarks/gpu_profile.py > benchmarks/results/gpu-profile.txt

Under the profiler, which slows the host; the device's own times are as without it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from attndrift.bench.capture import CASES, _Forwards
from attndrift.bench.train import _Steps
from attndrift.models import load_clip
from attndrift.monitor import DriftMonitor

SHOWN = 14
PASSES = 4


def show(name: str, work: Callable[[], object], passes: int = 1) -> None:
    for _ in range(3):
        work()
    torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    asked = time.perf_counter() - started
    torch.cuda.synchronize()
    whole = time.perf_counter() - started
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        work()
        torch.cuda.synchronize()
    kernels = [event for event in profiler.key_averages() if event.device_type.name == "CUDA"]
    total = sum(event.self_device_time_total for event in kernels) / 1e3
    count = sum(event.count for event in kernels)
    print(
        f"== {name}: host {asked * 1e3 / passes:.2f} ms, whole {whole * 1e3 / passes:.2f} ms, "
        f"kernels {total / passes:.2f} ms in {count / passes:.0f} launches"
    )
    for event in sorted(kernels, key=lambda event: -event.self_device_time_total)[:SHOWN]:
        print(
            f"   {event.self_device_time_total / 1e3 / passes:8.3f} ms {event.count / passes:6.1f}  {event.key[:110]}"
        )


def main() -> None:
    device = torch.device("cuda")
    for case in CASES:
        forwards = _Forwards(case, device, torch.bfloat16)
        forwards.passes = PASSES
        show(f"{forwards.title} bare", forwards.works["bare"], PASSES)
        show(f"{forwards.title} observed", forwards.works["observed"], PASSES)
        forwards.record()
        show("bare graph", forwards.works["bare graph"], PASSES)
        show("observed graph", forwards.works["observed graph"], PASSES)
        del forwards
    steps = _Steps("config:vit-base-patch32", 64, PASSES, device, True)
    for kind in ("plain", "observed", "cached", "live"):
        show(f"step {kind}", steps.works[kind], PASSES)
    for dtype in (torch.bfloat16, torch.float32):
        clip = load_clip("config:vit-base-patch32").to(device, dtype)
        pixels = torch.randn(200, 3, 224, 224).to(device, dtype)
        monitor = DriftMonitor(clip, pixels)
        with torch.no_grad():
            show(f"forward of 200 {dtype}", lambda c=clip, p=pixels: c.get_image_features(pixel_values=p))
        show(f"measure {dtype}", monitor.measure)
        show(f"both {dtype}", lambda c=clip, p=pixels: DriftMonitor(c, p).measure())


if __name__ == "__main__":
    main()
