"""The dry run: what a study will do, and about what it will cost, before anything is run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from attndrift.data.derived import shared_pixels
from attndrift.data.errors import DataError, DatasetUnavailable, some
from attndrift.data.splits import Splits, evaluation_part
from attndrift.losses.registry import LOSSES
from attndrift.methods.registry import CONTRASTIVE, DEFAULT_METHOD, HEADS, METHODS
from attndrift.models.backbone import TextShape, VisionShape
from attndrift.study.check_findings import counted, size
from attndrift.study.dataset_splits import OpenDatasets, splits_key, splits_of
from attndrift.study.model_sizes import ModelSizes
from attndrift.study.record import FINGERPRINT_IMAGES
from attndrift.study.resolved import device_of
from attndrift.study.retention_cost import SetSize, retention_cost
from attndrift.study.settings import RunSettings, Study
from attndrift.study.step_costs import measured, step_cost
from attndrift.study.steps import epoch_count, total_steps, warmup_steps

# Of the rate of one large matrix product, a transformer of small width reaches about this fraction.
_EFFICIENCY = 0.5
# Nobody reads ten thousand rows, and printing them takes longer than making the plan.
_PRINTED_ROWS = 200


@dataclass
class PlannedRun:
    """One run of the dry run. Estimates are for this machine; None where the images could not be counted.

    Attributes:
        seconds: estimated time, training and evaluations.
        memory_bytes: estimated peak beyond what the program itself takes.
        disk_bytes: checkpoints that stay.
        scratch_bytes: resumable states, there while the run is under way.
        step_cost: time of a training step in that of full fine-tuning, measured before; None where it was not.
        images: who gets how many images of the target, in words.
        transfer: images that a model embeds for each transfer set, and seconds of it; an image that sets share counts once.
    """

    run_id: str
    experiment: str | None
    model: str
    dataset: str
    method: str
    learning_rate: float | None
    epochs: int
    n_train: int | None
    n_validation: int | None
    n_test: int | None
    n_probe: int | None
    steps: int | None
    trainable_parameters: int | None
    total_parameters: int | None
    seconds: float | None
    memory_bytes: float | None
    disk_bytes: float | None
    scratch_bytes: float | None
    step_cost: float | None = None
    images: str = ""
    transfer: dict[str, dict[str, float | None]] = field(default_factory=dict)
    note: str = ""

    def add_note(self, text: str) -> None:
        """Add what stands in the run's way."""
        self.note = f"{self.note}; {text}" if self.note else text

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def forward_flops(vision: VisionShape) -> float:
    """Floating-point operations of one image through an image tower."""
    width, depth, tokens = vision.width, vision.depth, vision.tokens
    patch = 2.0 * (tokens - vision.prefix_tokens) * 3 * vision.patch_size**2 * width
    block = 2.0 * tokens * (4 * width**2 + 2 * width * vision.mlp_width) + 4.0 * tokens**2 * width
    return patch + depth * block


_PROMPT_TOKENS = 16
"""Of a usual class prompt."""


def text_flops(text: TextShape) -> float:
    """Floating-point operations of one class prompt through a text tower."""
    width, tokens = text.width, _PROMPT_TOKENS
    return text.depth * (2.0 * tokens * (4 * width**2 + 2 * width * text.mlp_width) + 4.0 * tokens**2 * width)


def texts_in_step(settings: RunSettings, classes: int) -> int:
    """Class prompts that a live head encodes in a step: all of them, or one an image where that is fewer."""
    every = classes * len(settings.prompts)
    return min(every, settings.batch_size) if settings.head == CONTRASTIVE else every


@cache
def measured_rate(device: torch.device, threads: int) -> float:
    """Operations a second of a matrix product in float32 on ``device``: the best of five, once a process."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        a, b = torch.randn(1024, 768, device=device), torch.randn(768, 768, device=device)
        times = []
        for _ in range(6):
            start = time.perf_counter()
            for _ in range(4):
                c = a @ b
            float(c[0, 0])
            times.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return 4 * 2.0 * 1024 * 768 * 768 / min(times[1:])


class _Sizes:
    """Numbers of images, counted once a dataset and setting, and the sizes of models."""

    def __init__(self) -> None:
        self.models = ModelSizes()
        self._known: dict[Any, Any] = {}
        self._datasets = OpenDatasets()
        self.absent: dict[str, DataError] = {}
        """Transfer sets that cannot be had, with the reason."""

    def splits(self, settings: RunSettings) -> Splits | str:
        """The run's splits, or why they cannot be had."""
        key = splits_key(settings)
        if key not in self._known:
            self._known[key] = self._make(settings)
        found: Splits | str = self._known[key]
        return found

    def _make(self, settings: RunSettings) -> Splits | str:
        try:
            return splits_of(self._datasets.open(settings.dataset, settings), settings)
        except DataError as error:
            return str(error)

    def transfer(self, settings: RunSettings) -> dict[str, SetSize]:
        """The sizes of all transfer sets, by name; of those that cannot be had, 0."""
        found = dict[str, SetSize]()
        seen: dict[tuple[str, str], set[int]] = {}
        for name in settings.transfer:
            key = ("transfer", name, settings.transfer_limit, settings.bank_limit)
            if key not in self._known:
                try:
                    dataset = self._datasets.open(name, settings)
                    part, _ = evaluation_part(dataset, limit=settings.transfer_limit)
                    bank = len(dataset.train)
                    whole, rows = shared_pixels(dataset.test)
                    own = SetSize(len(part), min(bank, settings.bank_limit or bank), len(dataset.class_names))
                    self._known[key] = (own, (whole.dataset, whole.name), frozenset(rows[part.indices].tolist()))
                except DataError as error:
                    self._known[key] = (SetSize(0, 0, 0), (name, ""), frozenset())
                    self.absent[name] = error
            size, place, rows = self._known[key]
            known = seen.get(place, set())
            found[name] = size._replace(shared=len(rows & known), bank_shared=place in seen)
            seen[place] = known | rows
        return found

    def monitor(self, settings: RunSettings) -> int:
        """Images that a run watches while it trains."""
        count = settings.monitor_zero_shot_images
        if not count or not settings.transfer or settings.transfer[0] in self.absent:
            return 0
        key = ("monitor", settings.transfer[0])
        if key not in self._known:
            try:
                self._known[key] = len(self._datasets.open(settings.transfer[0], settings).train)
            except DataError:
                self._known[key] = 0
        return min(count, self._known[key])


def plan(study: Study, *, elsewhere: bool = False) -> list[PlannedRun]:
    """A row a run. Nothing is trained, no weights are loaded; images are decoded under ``unreadable: skip`` only.

    ``elsewhere``: the runs are run on other machines, whose devices and speed are not those of this one.
    """
    sizes = _Sizes()
    rates: dict[tuple[str, int], float] = {}
    planned = []
    for run in study.runs:
        settings = run.settings
        if elsewhere:
            planned.append(_plan_run(run.run_id, settings, sizes, None))
            continue
        try:
            device = device_of(settings)
        except ValueError as error:
            planned.append(_plan_run(run.run_id, settings, sizes, None))
            planned[-1].add_note(str(error))
            continue
        key = (str(device), settings.threads)
        if key not in rates:
            rates[key] = measured_rate(device, settings.threads)
        planned.append(_plan_run(run.run_id, settings, sizes, rates[key]))
    sizes.models.keep()
    return planned


def _plan_run(run_id: str, settings: RunSettings, sizes: _Sizes, rate: float | None) -> PlannedRun:
    splits = sizes.splits(settings)
    row = PlannedRun(
        run_id=run_id,
        experiment=settings.experiment,
        model=settings.model,
        dataset=settings.dataset,
        method=settings.method,
        learning_rate=settings.learning_rate if settings.facts.adapts else None,
        epochs=settings.epochs,
        n_train=None, n_validation=None, n_test=None, n_probe=None, steps=None, trainable_parameters=None, total_parameters=None,
        seconds=None, memory_bytes=None, disk_bytes=None, scratch_bytes=None,
    )  # fmt: skip
    try:
        shape = sizes.models.shape(settings.model)
    except (OSError, ValueError) as error:
        row.add_note(f"model: {error}")
        shape = None
    if isinstance(splits, str):
        row.add_note(f"images: {splits}")
    else:
        row.n_train, row.n_validation = len(splits.train), len(splits.validation)
        row.n_test, row.n_probe, row.images = len(splits.test), len(splits.probe), splits.who_gets_what
        row.steps, row.epochs = total_steps(settings, row.n_train), epoch_count(settings, row.n_train)
        try:
            if settings.facts.adapts:
                warmup_steps(settings, row.n_train)
        except ValueError as error:
            row.add_note(str(error))
    if shape is None or isinstance(splits, str):
        return row
    # Every class has training images; `test_limit` may leave some without test images.
    classes = len(set(splits.train.labels.tolist()))
    try:
        row.trainable_parameters, row.total_parameters = sizes.models.parameters(settings, classes)
    except ValueError as error:
        row.add_note(str(error))
        return row
    if settings.own.get("reference"):
        row.images += f"; reference: training images of {settings.own['reference']}"
        if settings.own["reference"] in settings.transfer:
            row.images += ", which is a transfer set too: its retention is that of a set that the loss holds"
    _estimate(row, settings, splits, sizes, shape, rate)
    for name in settings.transfer:
        why = sizes.absent.get(name)
        skipped = settings.missing_sets == "skip" and isinstance(why, DatasetUnavailable)
        if why is not None and not skipped:
            row.add_note(f"transfer set {name}: {why}")
    return row


def _estimate(
    row: PlannedRun, settings: RunSettings, splits: Splits, sizes: _Sizes, vision: VisionShape, rate: float | None
) -> None:
    flops = forward_flops(vision)
    assert row.trainable_parameters is not None
    assert row.total_parameters is not None
    # Backward: once for the inputs, once for the weights that are trained; a frozen tower needs neither.
    method = settings.facts
    row.step_cost = step_cost(settings)
    factor = method.cost if row.step_cost is None else METHODS[DEFAULT_METHOD].cost * row.step_cost
    references = method.reference_passes * settings.own.get("reference_images", 0)
    for loss in map(LOSSES.__getitem__, settings.losses):
        factor += loss.cached_passes / max(row.epochs, 1) + (loss.step_passes if row.step_cost is None else 0.0)
        references += loss.reference_passes * settings.own.get("reference_images", 0)
    assert row.steps is not None
    trained = references + factor * min(row.steps * settings.batch_size, len(splits.train) * row.epochs)
    evaluations = settings.evaluations_per_epoch * row.epochs * len(splits.probe)
    watched = sizes.monitor(settings) if method.adapts else 0
    validated = row.epochs * (len(splits.validation) + watched) + watched
    retained = retention_cost(settings, sizes.transfer(settings), vision.dimensions)
    tested = (len(splits.test) if method.adapts else 0) + 2 * len(splits.probe)
    by_set = {name: flops * passes + beside for name, (passes, beside) in retained.items()}
    total = flops * (trained + evaluations + validated + tested) + sum(by_set.values())
    row.transfer = {
        name: {"passes": retained[name][0], "seconds": None if rate is None else one / (_EFFICIENCY * rate)}
        for name, one in by_set.items()
    }
    tokens = vision.tokens
    # About 14 activations of the width a token and block are kept for the backward pass.
    activations = 4.0 * settings.batch_size * tokens * vision.width * vision.depth * 14
    text = sizes.models.text_shape(settings.model) if HEADS[settings.head].live else None
    if text is not None:
        texts = texts_in_step(settings, len(set(splits.train.labels.tolist())))
        passes = row.steps * METHODS[settings.text_tower].cost + (settings.evaluations_per_epoch + 2) * row.epochs
        total += passes * texts * text_flops(text)
        activations += 4.0 * texts * _PROMPT_TOKENS * text.width * text.depth * 14
    row.seconds = None if rate is None else total / (_EFFICIENCY * rate)
    evaluation = 4.0 * settings.evaluation_batch_size * tokens * (vision.mlp_width + 6 * vision.width)
    row.memory_bytes = (
        4.0 * 2 * row.total_parameters
        + 12.0 * row.trainable_parameters
        + max(activations if method.keeps_activations else activations / 6, evaluation)
    )
    if not method.adapts:
        row.disk_bytes = row.scratch_bytes = 0.0
        return
    weights = 4.0 * row.trainable_parameters
    images = min(FINGERPRINT_IMAGES, len(splits.probe))
    fingerprint = 4.0 * images * (3 * vision.image_size**2 + 2 * vision.dimensions)
    kept = {"best": 1, "best+final": 2}.get(settings.keep, 2 + row.epochs)
    # What rebuilds a decomposition is about as large as what is trained of it.
    decomposed = weights if method.rewrites_base else 0.0
    row.disk_bytes = kept * (weights + decomposed + fingerprint)
    # Two resumable states of weights and two moments, and a third while it is written.
    row.scratch_bytes = 3 * 3 * weights


def _retention_costs(row: PlannedRun) -> str:
    """The cost of each transfer set in words, without times, which differ from one estimate to the next."""
    told = (f"{name} {one['passes']:,.0f}" for name, one in row.transfer.items())
    seconds = [one["seconds"] for one in row.transfer.values() if one["seconds"] is not None]
    return (
        f"images embedded for the retention of a model ({_time(sum(seconds)) if seconds else '?'}): {', '.join(told)}"
    )


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )


def _step(row: PlannedRun) -> str:
    if row.step_cost is None:
        return "?" if row.trainable_parameters else "-"
    return f"{row.step_cost:.2f}x"


def _count(value: float | None) -> str:
    return "?" if value is None else f"{value:,.0f}"


def print_plan(study: Study, planned: Sequence[PlannedRun], console: Console | None = None) -> None:
    """Print the runs and their sums."""
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, 120)
    _print_runs(study, planned[:_PRINTED_ROWS], console)
    if len(planned) > _PRINTED_ROWS:
        console.print(f"and {counted(len(planned) - _PRINTED_ROWS, 'more run')}; --json lists them all")
    known = [row for row in planned if row.memory_bytes is not None]
    seconds = sum(row.seconds or 0.0 for row in known)
    memory = max((row.memory_bytes or 0.0 for row in known), default=None)
    disk = sum(row.disk_bytes or 0.0 for row in known)
    scratch = max((row.scratch_bytes or 0.0 for row in known), default=0.0)
    timed = any(row.seconds is not None for row in known)
    console.print(
        f"estimated on this machine: {_time(seconds if timed else None)} in all, at most {size(memory)} of memory, {size(disk)} on disk, "
        f"{size(scratch)} more while a run is under way"
        + (
            ""
            if len(known) == len(planned)
            else f" (for the {counted(len(known), 'run')} whose model and images are at hand)"
        )
    )
    if any(row.step_cost is not None for row in planned):
        console.print(
            f"a step: its time against full fine-tuning without a loss, measured on {measured()['case']}",
            highlight=False,
        )
    for images in dict.fromkeys(row.images for row in planned if row.images):
        console.print(images, highlight=False, markup=False)
    for costs in dict.fromkeys(_retention_costs(row) for row in planned[:_PRINTED_ROWS] if row.transfer):
        console.print(costs, highlight=False, markup=False)
    for note, runs in runs_by_note(planned).items():
        console.print(f"{some(runs, 3)}: {note}", style="yellow", highlight=False, markup=False)


def _print_runs(study: Study, planned: Sequence[PlannedRun], console: Console) -> None:
    """A row a run; its name on a line of its own where the terminal is too narrow for both."""
    cells = [
        [_count(row.n_train), _count(row.steps), _count(row.trainable_parameters),
         _step(row), _time(row.seconds), size(row.memory_bytes), size(row.disk_bytes)]
        for row in planned
    ]  # fmt: skip
    title = f"{study.name}: {counted(len(study.runs), 'run')}"
    if console.width < max((len(row.run_id) for row in planned), default=0) + 82:
        console.print(title, style="italic", highlight=False)
        for row, values in zip(planned, cells, strict=True):
            told = zip(_HEADINGS, values, strict=True)
            console.print(row.run_id, highlight=False, markup=False, soft_wrap=True)
            console.print(
                "    " + "  ".join(f"{name} {value}" for name, value in told), highlight=False, soft_wrap=True
            )
        return
    table = Table(title=title, title_justify="left", box=SIMPLE)
    for name in ("run", *_HEADINGS):
        table.add_column(name, justify="left" if name == "run" else "right", no_wrap=True)
    for row, values in zip(planned, cells, strict=True):
        table.add_row(row.run_id, *values)
    console.print(table)


_HEADINGS = ("images", "steps", "trainable", "a step", "time", "memory", "disk")


def runs_by_note(planned: Sequence[PlannedRun]) -> dict[str, list[str]]:
    """What stands in the way of runs, each said once, with the runs that it concerns."""
    found: dict[str, list[str]] = {}
    for row in planned:
        if row.note:
            found.setdefault(row.note, []).append(row.run_id)
    return found
