"""A study's training step before and after a change: two checkouts, process by process in turn, as a ratio.

    git worktree add ../before 17cd197
    python benchmarks/step_before_after.py ../before --pairs 5

Each process trains one run on random images with the training loop of its checkout and prints what every step
took, from one to the next, without the first ones: on a CPU processor time, of which other programs take nothing. A pair
is one process of each checkout, right after each other; which one goes first alternates, so that a machine that gets
slower is no advantage. Printed are the ratio of the medians of every pair (after / before), and the median and range of
these ratios.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

HERE = Path(__file__).resolve().parents[1]
WARM_UP = 5
METHODS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "lora": {"method": "lora", "lora_rank": 8},
    "attention_preservation": {"method": "full", "loss": "attention_preservation:0.1"},
    "entropy_floor": {"method": "full", "loss": "entropy_floor:0.1"},
}


class Clock:
    """A reporter that notes when each step was done."""

    def __init__(self, device: str) -> None:
        self.now = time.process_time if device == "cpu" else time.perf_counter
        self.times: list[float] = []

    def step(self, done: int, total: int) -> None:
        self.times.append(self.now())

    def say(self, message: str) -> None:
        pass

    def evaluated(self, step: int, total: int, values: object) -> None:
        """Nothing is shown."""

    def saved(self, step: int) -> None:
        pass


def found(name: str, *modules: str) -> Any:
    """``name`` from the first of the modules that this checkout has: packages have moved."""
    for module in modules:
        with suppress(ImportError):
            return getattr(importlib.import_module(f"attndrift.{module}"), name)
    raise ImportError(f"attndrift has no {name}")


def train(given: argparse.Namespace) -> list[float]:
    """Seconds of each step of one run of the checkout that is imported."""
    import numpy as np
    import torch

    from attndrift import DriftMonitor
    from attndrift.data import PixelStore
    from attndrift.models import load_model
    from attndrift.study.settings import RunSettings

    keep_freed_memory = found("keep_freed_memory", "study.allocator", "allocator")
    adapt = found("adapt", "methods", "models")
    adaptation = found("adaptation", "study.resolved", "study.executor", "study.running")
    fit = found("fit", "study.training", "training")
    TrainingPlan = found("TrainingPlan", "study.training", "training")

    keep_freed_memory()
    torch.set_num_threads(given.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = dict(METHODS[given.method])
    if "loss" in chosen and "loss" not in RunSettings.model_fields:
        # As checkouts before version 0.2 call it.
        name, weight = chosen.pop("loss").split(":")
        chosen |= {
            "regularizer": {"attention_preservation": "apr"}.get(name, name),
            "regularizer_weight": float(weight),
        }
    settings = RunSettings(
        model=given.model, dataset="tiles", epochs=1, batch_size=given.batch, evaluations_per_epoch=1,
        threads=given.threads, device=cast(Any, device.type), precision=given.precision, **chosen,
    )  # fmt: skip
    clip = load_model(given.model)
    side, count = clip.config.vision_config.image_size, given.batch * (given.steps + WARM_UP)
    pixels = np.random.default_rng(0).integers(0, 256, (count, 3, side, side), dtype=np.uint8)
    table, places = np.linspace(-2, 2, 3 * 256, dtype=np.float32).reshape(3, 256), np.arange(count)
    store = PixelStore(pixels, table, places, places % 10, [str(place) for place in places])
    images = store.on(device) if hasattr(store, "on") else found("pixels_on", "data.device_pixels")(store, device)
    model = adapt(clip.to(device), adaptation(settings), 10, settings.seed).to(device)
    monitor = DriftMonitor(model, images.fetch(places[:8]), embed=model.embed)
    vision = clip.config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    uniform = torch.full((vision.num_hidden_layers, count, vision.num_attention_heads, patches), -math.log(patches)).to(
        device
    )
    clock = Clock(device.type)
    # The names of both before version 0.2 were others.
    before = "track" in {field.name for field in fields(TrainingPlan)}
    unmonitored: dict[str, Any] = {
        "track" if before else "monitor_zero_shot": None,
        "track_retention" if before else "monitored_retention": lambda _: None,
    }
    entropy = monitor.reference.structure.layers("entropy")

    def teacher(positions: Any, flipped: Any) -> Any:
        return uniform[:, positions]

    context: dict[str, Any] = {"pretrained_entropy": entropy, "reference": teacher}
    if "context" in {field.name for field in fields(TrainingPlan)}:
        from attndrift.losses.base import StudyContext

        context = {"context": StudyContext(entropy, {"attention": teacher})}
    with tempfile.TemporaryDirectory() as folder:
        plan = TrainingPlan(
            settings=settings, images=images, labels=torch.from_numpy(store.labels), monitor=monitor,
            validate=lambda: 0.0, **unmonitored, baseline={"step": 0},
            save_weights=lambda name: None, **context, device=device,
        )  # fmt: skip
        fit(model, plan, Path(folder), clock)
    # The last one is measured and saved too.
    times = clock.times[WARM_UP - 1 : -1]
    return [later - earlier for earlier, later in itertools.pairwise(times)]


def of_checkout(checkout: Path, given: argparse.Namespace) -> float:
    """The median of the steps of one process, in milliseconds."""
    paths = os.pathsep.join([str(checkout / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": str(given.threads), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), str(given.before), "--train"]
    for name in ("model", "method", "batch", "steps", "threads", "precision"):
        command += [f"--{name}", str(getattr(given, name))]
    said = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return 1e3 * statistics.median(json.loads(said.splitlines()[-1]))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("before", type=Path, help="a checkout of the commit to compare with")
    options.add_argument("--after", type=Path, default=HERE, help="the other checkout; default: this one")
    options.add_argument("--model", default="embedded", help="as a study's `model`, e.g. config:vit-base-patch32")
    options.add_argument("--method", default="full", choices=METHODS)
    options.add_argument("--precision", default="float32")
    options.add_argument("--batch", type=int, default=16)
    options.add_argument("--steps", type=int, default=40)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--pairs", type=int, default=5)
    options.add_argument("--train", action="store_true", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.train:
        print(json.dumps(train(given)))
        return
    ratios = []
    for pair in range(given.pairs):
        order = [given.before, given.after] if pair % 2 == 0 else [given.after, given.before]
        took = {checkout: of_checkout(checkout, given) for checkout in order}
        before, after = took[given.before], took[given.after]
        ratios.append(after / before)
        print(
            f"pair {pair + 1}: before {before:.2f} ms, after {after:.2f} ms a step, ratio {ratios[-1]:.3f}", flush=True
        )
    spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
    print(
        f"{given.model}, {given.method}, batch {given.batch}, {given.precision}: after / before "
        f"{statistics.median(ratios):.3f} (median of {len(ratios)} pairs, {spread})"
    )


if __name__ == "__main__":
    main()
