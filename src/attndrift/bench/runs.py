"""How many runs an hour has: the real training loop of a study, its measurements, validation and checkpoints included.

EuroSAT's numbers on pixels that are made up: 21,600 training images and 2,700 held-out ones of 224 x 224 under the protocol
`seed`, 200 probe images measured five times an epoch. Decoding the files is left out, as a study does it once.
"""

from __future__ import annotations

import copy
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attndrift.bench.devices import device_named
from attndrift.bench.ratios import Ratio
from attndrift.bench.result import Machine, Result

METHODS: dict[str, dict[str, Any]] = {
    "full": {"method": "full", "learning_rate": 1e-5},
    "lora": {"method": "lora", "lora_rank": 8, "learning_rate": 1e-4},
}
MODEL = "config:vit-base-patch32"
IMAGES, PROBE, CLASSES = 21_600, 200, 10
EPOCHS = 20
"""Of a whole run; fewer are trained, and the rest is reckoned from them."""

_DISTINCT = 500
"""Images that differ; the others repeat them, as nothing here depends on what they show."""

_PATIENCE = 600.0


@dataclass(frozen=True)
class Training:
    """What one process trains.

    Attributes:
        settings: of the run, as JSON.
        images, held_out: how many to train on and to validate on.
        device: what torch calls it.
    """

    settings: str
    images: int
    held_out: int
    device: str


@dataclass
class Times:
    """What one process took; moments on the clock that all processes of a machine share.

    Attributes:
        before: seconds from the model's configuration to the first step.
        began: when training began.
        steps: moment of each step's end, as the host saw it, which on an accelerator may run ahead by a few steps.
        epochs: moments of the epochs' ends, at which everything was done: their accuracy has been read.
        memory: most megabytes that torch held on an accelerator; None on a CPU.
    """

    before: float
    began: float
    steps: list[float]
    epochs: list[float]
    memory: float | None


class _Clock:
    """A reporter that notes when."""

    def __init__(self, steps_per_epoch: int) -> None:
        self.steps: list[float] = []
        self.epochs: list[float] = []
        self._per_epoch = steps_per_epoch

    def step(self, done: int, total: int) -> None:
        self.steps.append(time.monotonic())

    def say(self, message: str) -> None:
        # The line of a measurement at an epoch's end comes when its accuracy has been read.
        if len(self.steps) % self._per_epoch == 0 and len(self.epochs) < len(self.steps) // self._per_epoch:
            self.epochs.append(time.monotonic())

    def saved(self, step: int) -> None:
        pass


def _store(count: int, side: int, seed: int) -> Any:
    from attndrift.data import PixelStore

    some = np.random.default_rng(seed).integers(0, 256, (min(count, _DISTINCT), 3, side, side), dtype=np.uint8)
    pixels = np.concatenate([some] * (count // len(some) + 1))[:count]
    table = np.linspace(-2, 2, 3 * 256, dtype=np.float32).reshape(3, 256)
    places = np.arange(count)
    return PixelStore(pixels, table, places, places % CLASSES, [str(place) for place in places])


def train_one(work: Training, together: Any) -> Times:
    """Train one run as a study does, from the model to the last epoch. ``together``: a barrier before the first step."""
    from attndrift.models import adapt, class_token_alone, load_clip, save_adapted
    from attndrift.monitor import DriftMonitor
    from attndrift.study.running import adaptation, split_accuracy
    from attndrift.study.settings import RunSettings
    from attndrift.training import TrainingPlan, fit

    device = torch.device(work.device)
    settings = RunSettings.model_validate_json(work.settings)
    torch.set_num_threads(settings.threads)
    pretrained = load_clip(settings.model)
    side = pretrained.config.vision_config.image_size
    train, held_out, probe = (
        _store(count, side, seed).on(device) for seed, count in enumerate((work.images, work.held_out, PROBE))
    )
    began = time.monotonic()
    pretrained = class_token_alone(pretrained).eval().to(device)
    model = adapt(copy.deepcopy(pretrained), adaptation(settings), CLASSES, settings.seed).to(device)
    size = settings.evaluation_batch_size

    def batches() -> list[torch.Tensor]:
        return [probe.fetch(np.arange(start, min(start + size, PROBE))) for start in range(0, PROBE, size)]

    monitor = DriftMonitor(model, batches, embed=model.embed)
    steps = -(-work.images // settings.batch_size)
    clock = _Clock(steps)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plan = TrainingPlan(
            settings=settings,
            images=train,
            labels=torch.from_numpy(train.labels),
            monitor=monitor,
            validate=lambda: split_accuracy(model, held_out, held_out.labels, settings),
            track=None,
            track_retention=lambda _: None,
            baseline={"step": 0},
            save_weights=lambda which: save_adapted(
                model,
                folder / which,
                base_source=settings.model,
                probe_pixels=probe.fetch(np.arange(8)),
                pretrained=pretrained,
                pretrained_sha256="of random weights",
                class_names=[f"class {number}" for number in range(CLASSES)],
            ),
            pretrained_entropy=monitor.reference.structure.layers("entropy"),
            reference=None,
            device=device,
        )
        before = time.monotonic() - began
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        together.wait(_PATIENCE)
        start = time.monotonic()
        result = fit(model, plan, folder, clock)
    if result.status != "finished":
        raise RuntimeError(f"bench runs: the run {result.status}: {result.problem}")
    held = torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else None
    return Times(before, start, clock.steps, clock.epochs, held)


class _Alone:
    """A barrier of one."""

    def wait(self, timeout: float) -> None:
        pass


def _process(work: Training, together: Any, found: Any) -> None:
    try:
        found.put(train_one(work, together))
    except BaseException as error:
        together.abort()
        found.put(f"{type(error).__name__}: {error}")
        raise


def train_at_once(work: Training, jobs: int) -> list[Times]:
    """``jobs`` processes that train the same run at the same time. Raises RuntimeError where one fails."""
    if jobs == 1:
        return [train_one(work, _Alone())]
    context = multiprocessing.get_context("spawn")
    together, found = context.Barrier(jobs), context.Queue()
    processes = [context.Process(target=_process, args=(work, together, found), daemon=True) for _ in range(jobs)]
    for process in processes:
        process.start()
    outcomes = [found.get(timeout=2 * _PATIENCE) for _ in processes]
    for process in processes:
        process.join()
    problems = [one for one in outcomes if isinstance(one, str)]
    if problems:
        # A broken barrier is what the others say when one has failed.
        raise RuntimeError(f"bench runs: {next((one for one in problems if 'Broken' not in one), problems[0])}")
    return outcomes


def _row(name: str, jobs: int, times: Sequence[Times], images: int) -> dict[str, Any]:
    """What the runs of one kind took, and what 20 epochs would."""
    first = statistics.mean(one.epochs[0] - one.began for one in times)
    later = [after - before for one in times for before, after in zip(one.epochs, one.epochs[1:], strict=False)]
    epoch = statistics.median(later)
    before = statistics.mean(one.before for one in times)
    run = before + first + (EPOCHS - 1) * epoch
    memory = [one.memory for one in times if one.memory is not None]
    # Runs that begin together need not end together, and the last one would have the device for itself.
    together = min(one.epochs[-1] for one in times) - max(one.epochs[0] for one in times)
    lasted = statistics.mean(one.epochs[-1] - one.epochs[0] for one in times)
    return {
        "runs": name,
        "at once": jobs,
        "before training s": before,
        "first epoch s": first,
        "later epoch s": epoch,
        "fastest": min(later),
        "slowest": max(later),
        "of them all at work, %": 100 * max(0.0, together) / lasted,
        "images/s of all": jobs * images / epoch,
        f"run of {EPOCHS} epochs s": run,
        "runs an hour": jobs * 3600 / run,
        "GB of the device, each": max(memory) / 1e3 if memory else None,
    }


def runs(
    *,
    methods: Sequence[str] = tuple(METHODS),
    jobs: Sequence[int] = (1,),
    epochs: int = 2,
    images: int = IMAGES,
    model: str = MODEL,
    batch: int = 64,
    overrides: Mapping[str, Any] | None = None,
    device: str = "auto",
    progress: Callable[[str], None] = lambda line: None,
) -> Result:
    """Train every method, each number of runs at a time, for ``epochs`` epochs.

    Args:
        methods: of METHODS.
        jobs: how many runs at once.
        epochs: at least 2: the first has what is done once in it.
        images: training images; an eighth as many are held out.
        model, batch: what is trained, images a step.
        overrides: of the runs' settings.
        device: see :mod:`attndrift.bench.devices`.
    """
    from attndrift.study.settings import RunSettings

    for method in methods:
        if method not in METHODS:
            raise ValueError(f"--method {method}: choose from {', '.join(METHODS)}")
    if epochs < 2:
        raise ValueError(f"--epochs {epochs}: at least 2, of which the first has what is done once in it")
    machine = Machine()
    where = device_named(device)
    more = dict(overrides or {})
    words = "".join(f", {name} {value}" for name, value in more.items())
    case = f"{model.removeprefix('config:')}, batch {batch}, {images:,} images{words}"
    rows: list[dict[str, Any]] = []
    ratios: list[Ratio] = []
    for method in methods:
        values: dict[str, Any] = {
            "model": model, "dataset": "eurosat", "protocol": "seed", "epochs": epochs, "batch_size": batch,
            "track_size": 0, "device": where.type, "threads": 2 if where.type == "cpu" else 1,
        }  # fmt: skip
        settings = RunSettings(**values | METHODS[method] | more)
        work = Training(settings.model_dump_json(), images, max(CLASSES, images // 8), str(where))
        for count in jobs:
            row = _row(method, count, train_at_once(work, count), images)
            rows.append(row)
            progress(
                f"{method}, {count} at once: an epoch {row['later epoch s']:.2f} s, {row['runs an hour']:.1f} runs an hour"
            )
        alone = next((row for row in rows if row["runs"] == method and row["at once"] == 1), None)
        ratios += [
            _ratio(row, alone, case)
            for row in rows
            if alone is not None and row["runs"] == method and row["at once"] > 1
        ]
    return Result(
        "runs",
        ratios,
        {f"runs of {EPOCHS} epochs: {case}": rows},
        [
            f"{epochs} epochs were trained, by the loop that trains a study's runs, and {EPOCHS} reckoned from them: what comes before "
            f"training, the first epoch, and {EPOCHS - 1} times the median later one. An epoch has its training steps, five "
            "measurements of drift on 200 probe images, the validation of an eighth as many images, and its checkpoint and "
            "state where they are due.",
            "Left out: starting a process, decoding the images (once a study), the test pass and zero-shot transfer at a run's end.",
            "Pixels and weights are made up: no time here depends on their values.",
        ],
        device=str(where),
        threads=torch.get_num_threads(),
        others_pct=machine.others_pct(),
    )  # fmt: skip


def _ratio(row: Mapping[str, Any], alone: Mapping[str, Any], case: str) -> Ratio:
    """Seconds a run takes of the device where several share it, against one after the other."""
    each, single = (3600 / one["runs an hour"] for one in (row, alone))
    return Ratio(
        f"a run of `{row['runs']}` where {row['at once']} share the device", "one after the other",
        each / single, each / single, each / single, each, single, 1, case=case,
    )  # fmt: skip
