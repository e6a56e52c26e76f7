"""What a study would take at the least: its training steps and forward passes on tensors in memory, and nothing else."""

from __future__ import annotations

import copy
import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from attndrift.allocator import keep_freed_memory
from attndrift.bench.devices import device_named
from attndrift.study.settings import RunSettings, Study

if TYPE_CHECKING:
    import torch

    from attndrift.models import CLIPClassifier

UNTOUCHED = "the untouched model"
ATTENTION = "pretrained attention of the training images"
TRANSFER = "zero-shot transfer"

_READY = "ready"
_PASSES = ("a forward pass of an image as measurements make it", "one as validation does")
_SERVE = "import sys; from attndrift.bench.arithmetic import serve_rates; serve_rates(sys.argv[1])"


@dataclass(frozen=True)
class Kind:
    """Runs whose training steps are the same arithmetic."""

    method: str
    lora_rank: int | None
    lora_targets: str | None
    freeze_layers: int

    @classmethod
    def of(cls, settings: RunSettings) -> Kind:
        return cls(settings.method, settings.lora_rank, settings.lora_targets, settings.freeze_layers)

    @classmethod
    def all_of(cls, study: Study) -> dict[Kind, RunSettings]:
        """Those of a study, in the order of its runs, each with the settings of a run of it."""
        return {cls.of(run.settings): run.settings for run in study.runs if run.settings.method != "none"}


def bare_step(
    model: Callable[..., Any],
    trained: Sequence[torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    mixed: Callable[[], AbstractContextManager[object]],
    **batch: torch.Tensor,
) -> None:
    """One training step and nothing else: forward inside ``mixed()``, backward, clipping to a norm of 1, optimiser.

    ``trained``: the parameters of ``optimizer``. ``batch``: what ``model`` takes, and returns a ``loss`` for: for example
    ``pixel_values``, float (images, 3, height, width), and ``labels``, int64 (images,).
    """
    from torch.nn.utils import clip_grad_norm_

    optimizer.zero_grad()
    with mixed():
        loss = model(**batch).loss
    loss.backward()
    clip_grad_norm_(trained, 1.0)
    optimizer.step()


class Arithmetic:
    """The bare steps and forward passes of ``study``, which ``path`` holds as JSON, measured by processes that wait in between.

    As many as the study has at a time, all at once, each the same: forward, backward, clipping and optimiser on tensors that
    are there, as the study's own models compute them, in the precision of its training; on a CUDA device as the graph that
    the study replays. A context manager.

    ``jobs``: how many processes. ``environment``: their variables.
    """

    def __init__(self, study: Study, path: Path, jobs: int, environment: Mapping[str, str]) -> None:
        self._study, self._path, self._jobs, self._environment = study, path, jobs, environment
        self._processes: list[subprocess.Popen[str]] = []
        self._kinds = list(Kind.all_of(study))
        self._found: list[list[float]] = [[] for _ in range(len(self._kinds) + len(_PASSES))]
        self._turn = itertools.cycle(range(len(self._found)))

    def __enter__(self) -> Self:
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-c", _SERVE, str(self._path)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(self._environment),
            )
            for _ in range(self._jobs)
        ]  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            for pipe in (process.stdin, process.stdout):
                # What one that had died was told is still to be written.
                with suppress(OSError):
                    if pipe is not None:
                        pipe.close()
            process.wait()
        self._processes = []

    def measure_all(self, count: int) -> None:
        """Measure every kind of step, and both kinds of forward passes, ``count`` times each. Raises as :meth:`measure_one`.

        Where nothing has been entered, by processes that end with it.
        """
        with nullcontext() if self._processes else self:
            for place in range(len(self._found)):
                self._measure(place, count)

    def measure_one(self, count: int) -> None:
        """Measure one of them ``count`` times, each time the next; they take turns.

        Raises RuntimeError where a process ended over it; it has printed why.
        """
        self._measure(next(self._turn), count)

    def _measure(self, place: int, count: int) -> None:
        try:
            if any(answer.strip() != _READY for answer in self._ask(f"{place} {count}")):
                raise ValueError("a process is not ready")
            answers = [float(answer) for answer in self._ask("go")]
        except (OSError, ValueError) as error:
            problem = "bench study: the arithmetic alone could not be measured; the error is above"
            raise RuntimeError(problem) from error
        self._found[place].append(statistics.mean(answers))

    def _ask(self, line: str) -> list[str]:
        """Say ``line`` to all processes, then wait for their answers."""
        for process in self._processes:
            assert process.stdin is not None
            print(line, file=process.stdin, flush=True)
        answers = []
        for process in self._processes:
            assert process.stdout is not None
            answers.append(process.stdout.readline())
        return answers

    def phases(self) -> dict[str, float]:
        """Seconds of the study's arithmetic alone, by phase, summed over its runs: of the means of all measurements."""
        return self._by_phase([statistics.mean(found) for found in self._found])

    def repeats(self) -> list[dict[str, float]]:
        """:meth:`phases` of the first measurement of everything, of the second, and so on, as often as all were measured."""
        return [self._by_phase(one) for one in zip(*self._found, strict=False)]

    def _by_phase(self, seconds: Sequence[float]) -> dict[str, float]:
        kinds = len(self._kinds)
        return by_phase(self._study, dict(zip(self._kinds, seconds[:kinds], strict=True)), *seconds[kinds:])


def serve_rates(path: str) -> None:
    """Answer each line ``PLACE COUNT`` on standard input by ``ready``, and the next line by seconds, the mean of ``COUNT``.

    So all processes are past what prepares and warms up when they begin to measure.
    Of the study in ``path``, by place: a bare step of each of its kinds in their order; a forward pass of one image in the
    precision of the weights, as measurements are; one in that of the training.
    """
    keep_freed_memory()  # as the processes of a study do

    def together() -> None:
        print(_READY, flush=True)
        sys.stdin.readline()

    rates = _Rates(Study.model_validate_json(Path(path).read_text(encoding="utf-8")), together)
    while line := sys.stdin.readline():
        place, count = map(int, line.split())
        print(rates.measure(place, count), flush=True)


class _Rates:
    """``together`` is called before something is measured, and returns when all are ready for it."""

    def __init__(self, study: Study, together: Callable[[], None]) -> None:
        import torch

        from attndrift.bench.devices import wait_for
        from attndrift.models import class_token_alone, load_clip
        from attndrift.training.fit import precision_of

        self.together = together
        self.kinds = list(Kind.all_of(study).values())
        self.one = one = self.kinds[0]
        torch.set_num_threads(one.threads)
        self.device = device_named(one.device)
        self.wait = wait_for(self.device)
        generator = torch.Generator().manual_seed(0)
        self.untouched = class_token_alone(load_clip(one.model))
        side = self.untouched.config.vision_config.image_size
        self.batch = torch.randn(one.batch_size, 3, side, side, generator=generator).to(self.device)
        self.many = torch.randn(one.evaluation_batch_size, 3, side, side, generator=generator).to(self.device)
        self.labels = torch.randint(0, 10, (one.batch_size,), generator=generator).to(self.device)
        self.half = precision_of(one, self.device) == "bfloat16"

    def mixed(self) -> torch.autocast:
        import torch

        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.half)

    def seconds(self, work: Callable[[], object], count: int) -> float:
        """Mean of ``count``, after one that warms up."""
        work()
        self.wait()
        self.together()
        started = time.perf_counter()
        for _ in range(count):
            work()
            self.wait()
        # A study takes the sum of its steps, slow ones among them, and not so many times the median.
        return (time.perf_counter() - started) / count

    def measure(self, place: int, count: int) -> float:
        if place < len(self.kinds):
            return self.step(self.kinds[place], count)
        return self.forward(count, mixed=place > len(self.kinds))

    def adapted(self, chosen: RunSettings) -> CLIPClassifier:
        from attndrift.models import adapt
        from attndrift.study.running import adaptation

        return adapt(copy.deepcopy(self.untouched), adaptation(chosen), 10, 0).to(self.device)

    def step(self, chosen: RunSettings, count: int) -> float:
        import torch

        from attndrift.bench.graphs import captured

        model = self.adapted(chosen).train()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        recorded = self.device.type == "cuda"
        optimizer = torch.optim.AdamW(trained, chosen.learning_rate, fused=True, capturable=recorded)
        work = partial(bare_step, model, trained, optimizer, self.mixed, pixel_values=self.batch, labels=self.labels)
        return self.seconds(captured(work) if recorded else work, count)

    def forward(self, count: int, *, mixed: bool) -> float:
        import torch

        model = self.adapted(self.one).eval()

        def validate() -> None:
            with self.mixed():
                model(pixel_values=self.many)

        with torch.no_grad():
            return self.seconds(validate if mixed else lambda: model.embed(self.many), count) / len(self.many)


def by_phase(study: Study, step: Mapping[Kind, float], image: float, validated: float) -> dict[str, float]:
    """Seconds of a study's arithmetic by phase, summed over its runs.

    ``step``: seconds of a step by kind. ``image``, ``validated``: of a forward pass of one image, in the precision of
    measurements and in that of the training.
    """
    phases = dict.fromkeys(("training", "test", TRANSFER, UNTOUCHED, ATTENTION), 0.0)
    probed: set[str] = set()
    kept: set[str] = set()
    for run in study.runs:
        settings = run.settings
        # The untouched model sees a target's probe once, and the transfer images, the same for all, once.
        if settings.dataset not in probed:
            phases[UNTOUCHED] += (settings.probe_size + (0 if probed else settings.transfer_limit or 0)) * image
            probed.add(settings.dataset)
        if settings.method == "none":
            continue
        training, evaluations, validation = _amounts(settings)
        if settings.regularizer == "apr" and settings.dataset not in kept:
            # Its attention on a target's training images is computed once, in both orientations.
            phases[ATTENTION] += (2 if settings.flip else 1) * training * image
            kept.add(settings.dataset)
        # The last batch of an epoch may be a part of one, and counts as that part: the least, whatever it costs.
        phases["training"] += settings.epochs * training / settings.batch_size * step[Kind.of(settings)]
        phases["training"] += evaluations * settings.probe_size * image + settings.epochs * validation * validated
        if settings.protocol != "seed":  # there the last state is reported on, which training has measured
            phases["test"] += settings.probe_size * image
        phases[TRANSFER] += (settings.transfer_limit or 0) * image
    return {phase: seconds for phase, seconds in phases.items() if seconds}


def _amounts(settings: RunSettings) -> tuple[int, int, int]:
    """Training images, evaluations in all, and validation images an epoch."""
    from attndrift.study.images import open_dataset, splits_of
    from attndrift.training.fit import evaluation_steps

    splits = splits_of(open_dataset(settings.dataset, settings), settings)
    n = len(splits.train)
    return n, len(evaluation_steps(settings, n)), len(splits.validation)
