"""The least that a study can take: its training steps and forward passes on tensors in memory, and nothing else."""

from __future__ import annotations

import copy
import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

from attndrift.study.allocator import keep_freed_memory
from attndrift.study.settings import RunSettings, Study
from benchmarks.result import ROOT

_READY = "ready"
_SERVE = "import sys; from benchmarks.study_floor import serve; serve(sys.argv[1])"
CLASSES = 10


@dataclass(frozen=True)
class Kind:
    """Runs whose training steps are the same arithmetic."""

    method: str
    own: tuple[tuple[str, object], ...]
    freeze_layers: int

    @classmethod
    def of(cls, settings: RunSettings) -> Kind:
        return cls(
            settings.method, tuple(settings.settings_of(settings.facts).model_dump().items()), settings.freeze_layers
        )

    @classmethod
    def all_of(cls, study: Study) -> dict[Kind, RunSettings]:
        """Those of a study in the order of its runs, each with the settings of a run of it."""
        return {cls.of(run.settings): run.settings for run in study.runs if run.settings.method != "none"}


class FloorMeasurement:
    """Times the bare steps and forward passes of ``study`` in ``jobs`` processes at once. A context manager.

    The processes do the same at the same time, and wait in between. ``path`` holds the study as JSON. ``environment``: their
    variables.
    """

    def __init__(self, study: Study, path: Path, jobs: int, environment: Mapping[str, str]) -> None:
        self._study, self._jobs = study, jobs
        self._kinds = list(Kind.all_of(study))
        # The last place is that of the forward pass.
        self._found: list[list[float]] = [[] for _ in range(len(self._kinds) + 1)]
        self._turn = itertools.cycle(range(len(self._found)))
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-c", _SERVE, str(path)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(environment), cwd=ROOT,
            )
            for _ in range(jobs)
        ]  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            for pipe in (process.stdin, process.stdout):
                # A pipe to a process that died cannot be flushed.
                with suppress(OSError):
                    if pipe is not None:
                        pipe.close()
            process.wait()

    def measure_all(self, count: int) -> None:
        """Time every kind of step, and the forward pass, ``count`` times each. Raises as :meth:`measure_one`."""
        for place in range(len(self._found)):
            self._measure(place, count)

    def measure_one(self, count: int) -> None:
        """Time one of them ``count`` times; they take turns.

        Raises RuntimeError where a process ended; it has printed why.
        """
        self._measure(next(self._turn), count)

    def _measure(self, place: int, count: int) -> None:
        try:
            if any(answer.strip() != _READY for answer in self._ask(f"{place} {count}")):
                raise ValueError("a process is not ready")
            answers = [float(answer) for answer in self._ask("go")]
        except (OSError, ValueError) as error:
            raise RuntimeError("the floor of the study could not be measured; the error is above") from error
        self._found[place].append(statistics.mean(answers))

    def _ask(self, line: str) -> list[str]:
        """Send ``line`` to all processes, then wait for their answers."""
        for process in self._processes:
            assert process.stdin is not None
            print(line, file=process.stdin, flush=True)
        answers = []
        for process in self._processes:
            assert process.stdout is not None
            answers.append(process.stdout.readline())
        return answers

    def seconds(self) -> float:
        """The floor of the whole study with ``jobs`` runs at a time, of the means of all measurements."""
        return self._floor([statistics.mean(found) for found in self._found])

    def repeats(self) -> list[float]:
        """:meth:`seconds` of the first measurement of everything, of the second, and so on."""
        return [self._floor(one) for one in zip(*self._found, strict=False)]

    def _floor(self, seconds: Sequence[float]) -> float:
        *steps, image = seconds
        return floor_seconds(self._study, dict(zip(self._kinds, steps, strict=True)), image) / self._jobs


def serve(path: str) -> None:
    """Answer each line ``PLACE COUNT`` on standard input by ``ready``, and the next line by seconds, a mean of ``COUNT``.

    Of the study in ``path``, by place: a bare step of each of its kinds, in their order; then a forward pass of one image. The
    line in between lets all processes begin to measure together, after they have warmed up.
    """
    import torch

    from attndrift.methods import adapt
    from attndrift.models import load_model, prune_last_block_to_cls
    from attndrift.study.resolved import adaptation
    from benchmarks.train import bare_step

    keep_freed_memory()  # as the processes of a study do
    kinds = list(Kind.all_of(Study.model_validate_json(Path(path).read_text(encoding="utf-8"))).values())
    one = kinds[0]
    torch.set_num_threads(one.threads)
    pretrained = prune_last_block_to_cls(load_model(one.model))
    side = pretrained.config.vision_config.image_size
    batch, many = torch.randn(one.batch_size, 3, side, side), torch.randn(one.evaluation_batch_size, 3, side, side)
    labels = torch.randint(0, CLASSES, (one.batch_size,))

    def step(chosen: RunSettings) -> Callable[[], object]:
        model = adapt(copy.deepcopy(pretrained), adaptation(chosen), CLASSES, 0).train()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, chosen.learning_rate, fused=True)
        return partial(bare_step, model, trained, optimizer, pixel_values=batch, labels=labels)

    @torch.no_grad()
    def forward() -> None:
        pretrained.get_image_features(pixel_values=many)

    while line := sys.stdin.readline():
        place, count = map(int, line.split())
        work, images = (step(kinds[place]), 1) if place < len(kinds) else (forward, len(many))
        work()
        print(_READY, flush=True)
        sys.stdin.readline()
        started = time.perf_counter()
        for _ in range(count):
            work()
        # A mean: a study takes the sum of its steps, slow ones among them.
        print((time.perf_counter() - started) / count / images, flush=True)


def floor_seconds(study: Study, step: Mapping[Kind, float], image: float) -> float:
    """Seconds of a study's arithmetic, summed over its runs.

    ``step``: seconds of a step by kind. ``image``: of a forward pass of one image. A regularized run counts as one that is not.
    """
    total = 0.0
    probed: set[str] = set()
    cached: set[str] = set()
    for run in study.runs:
        settings = run.settings
        transfer = settings.transfer_limit or 0
        # The pretrained model sees a target's probe once, and the transfer images, which all runs share, once.
        if settings.dataset not in probed:
            total += ((settings.probe_size or 0) + (0 if probed else transfer)) * image
            probed.add(settings.dataset)
        if settings.method == "none":
            continue
        training, validation = _images(settings)
        if "attention_preservation" in settings.losses and settings.dataset not in cached:
            # The pretrained attention of a target's training images is computed once, in both orientations.
            total += (2 if settings.flip else 1) * training * image
            cached.add(settings.dataset)
        steps = training / settings.batch_size  # a partial last batch counts as its part
        total += settings.epochs * steps * step[Kind.of(settings)]
        measured = min(settings.evaluations_per_epoch, -(-training // settings.batch_size)) * (settings.probe_size or 0)
        total += (settings.epochs * (measured + validation) + transfer) * image
    return total


def _images(settings: RunSettings) -> tuple[int, int]:
    """Numbers of training images and of validation images."""
    from attndrift.study.dataset_splits import OpenDatasets, splits_of

    splits = splits_of(OpenDatasets().open(settings.dataset, settings), settings)
    return len(splits.train), len(splits.validation)
