"""What a training step costs that is observed, and one that holds attention back, against the step without."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from attndrift.allocator import keep_freed_memory
from attndrift.bench.devices import device_named, wait_for
from attndrift.bench.graphs import captured, observed_once, observed_throughout
from attndrift.bench.memory import HOW, KEPT, RETURNED, peak_bytes
from attndrift.bench.physical import OPTIMIZER_PASSES, STEP_TITLE, floor_row, rates, step_operations
from attndrift.bench.ratios import Ratio, Work, ratio_of, rounds
from attndrift.bench.reference import reference
from attndrift.bench.result import Machine, Result, check_parts
from attndrift.bench.spent import SPENT, Stopwatch, spent_row, timed_hooks
from attndrift.metrics import StructureAccumulator
from attndrift.models import AdaptationSettings, adapt, load_clip
from attndrift.monitor.weights import copy_without_hooks
from attndrift.observing import observe
from attndrift.regularizers import AttentionCache, AttentionPreservation

MODEL = "config:vit-base-patch32"
CLASSES = 10
WEIGHT = 0.1
PARTS = ("time", "memory", "profile")
OBSERVED_AT_MOST = 1.05
COMPARED: tuple[tuple[str, str, float | None], ...] = (
    ("observed", "plain", OBSERVED_AT_MOST),
    ("cached", "plain", 1.10),
    ("live", "plain", 1.45),
    ("observed", "reference", None),
    ("live", "reference_live", None),
    ("cached", "reference_live", None),
    ("reference", "plain", None),
    ("reference_live", "plain", None),
)
GRAPHS = ("plain", "observed", "cached", "live")
"""Kinds that an accelerator also replays as CUDA graphs."""
_MEGA = 1e6
_SHOWN = 16
_PROFILED = 3

WORDS = {
    "plain": "step without observation, fused attention (sdpa)",
    "observed": "step observed, all four metrics of every step",
    "cached": "step with attention preservation, pretrained attention cached",
    "live": "step with attention preservation, live teacher",
    "reference": "reference: eager step, full maps, metrics a batch",
    "reference_live": "reference: eager step, full maps, metrics a batch, second live model for preservation",
    "teacher": "forward pass of the vision tower without gradients",
}


def train(
    *,
    model: str = MODEL,
    batch: int = 64,
    only: Collection[str] = PARTS,
    kinds: Collection[str] = tuple(WORDS),
    pairs: int = 5,
    steps: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    keep_freed: bool = True,
    progress: Callable[[str], None] = lambda line: None,
) -> Result:
    """Full fine-tuning of ``model``: forward, loss, backward, clipping, AdamW; every kind of step in every round.

    Args:
        model: as :func:`attndrift.models.load_clip` takes it.
        batch: images a step.
        only: which of PARTS: times, peak memory, the profile of one step of each kind.
        kinds: which of WORDS are timed.
        pairs: rounds.
        steps: steps that are timed together; by default 1 on a CPU and 10 on an accelerator, where nothing inside a
            step waits for it.
        device, precision: see :mod:`attndrift.bench.devices`; bfloat16 is autocast, weights stay float32.
        keep_freed: time with :func:`attndrift.allocator.keep_freed_memory`, on a CPU.
    """
    check_parts(only, PARTS)
    check_parts(kinds, WORDS, option="--kind")
    compared = [one for one in COMPARED if {one[0], one[1]} <= set(kinds)]
    if "time" in only and not compared and not {"teacher", "plain"} <= set(kinds):
        raise ValueError(f"--kind {', '.join(kinds)}: there is nothing to compare with; add plain")
    machine = Machine()
    where = device_named(device)
    half = _autocast(precision, where)
    setting = _Steps(model, batch, steps or (10 if where.type == "cuda" else 1), where, half)
    title = setting.title
    ratios: list[Ratio] = []
    tables: dict[str, list[dict[str, Any]]] = {}
    notes = ["Weights and images are random: no time here depends on their values."]
    if "memory" in only:
        tables[f"peak memory of a step: {title}"] = setting.memory()
        notes.append(f"Memory: {HOW}.")
        progress("memory traced")
    if {"time", "profile"} & set(only) and where.type == "cpu":
        notes.append(KEPT if keep_freed and keep_freed_memory() else RETURNED)
    if "time" in only:
        chosen = {name: work for name, work in setting.works.items() if name in kinds}
        words = dict(WORDS)
        if where.type == "cuda":
            recorded = {f"{name} graph": setting.recorded(name) for name in GRAPHS if name in kinds}
            chosen |= recorded
            words |= {name: f"{WORDS[name.removesuffix(' graph')]}, as a CUDA graph" for name in recorded}
            compared += [
                (f"{what} graph", f"{other} graph", at_most)
                for what, other, at_most in compared
                if f"{what} graph" in recorded and f"{other} graph" in recorded
            ]
            if "plain graph" in recorded:
                compared.append(("plain graph", "plain", None))
            notes.append(
                f"{setting.steps} steps are timed together. As a CUDA graph a step is recorded once, from the forward pass to "
                "the optimiser, and replayed, on both sides: the functions that launch it do not run again. The metrics of "
                "an observed step are then left on the device. The pretrained attention of a batch is looked up and sent "
                "before each replay."
            )
        before = setting.rates(wait_for(where))
        found = rounds(chosen, pairs, wait=wait_for(where), say=progress)
        ratios = [
            ratio_of(words[what], words[other], found[what], found[other], case=title).aiming_at(at_most)
            for what, other, at_most in compared
        ]
        tables[STEP_TITLE] = setting.floors(found, before, setting.rates(wait_for(where)))
        if "observed" in chosen and where.type == "cpu":
            own = setting.spent[-pairs:]
            tables[SPENT] = [spent_row(WORDS["observed"], title, own, found["observed"])]
        if {"teacher", "plain"} <= set(chosen):
            teacher = ratio_of("", "", found["teacher"], found["plain"]).ratio
            tables["the floor of a live teacher: one more forward pass"] = [
                {
                    "what": WORDS["teacher"],
                    "of a step without": teacher,
                    "so a live teacher costs at least": 1 + teacher,
                }
            ]
    if "profile" in only:
        tables[f"profile of one step, milliseconds of operators (calls), median of {_PROFILED}: {title}"] = (
            setting.profile()
        )
    return Result(
        "train",
        ratios,
        tables=tables,
        notes=notes,
        device=str(where),
        threads=torch.get_num_threads(),
        others_pct=machine.others_pct(),
    )


def _autocast(precision: str, device: torch.device) -> bool:
    if precision not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"--precision {precision}: choose float32, bfloat16 or auto")
    return precision == "bfloat16" or (precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported())


class _Steps:
    """One model in training, and the ways to make a step of it."""

    def __init__(self, model: str, batch: int, steps: int, device: torch.device, half: bool) -> None:
        self.device, self.half, self.steps = device, half, steps
        clip = load_clip(model)
        vision = self._vision = clip.config.vision_config
        plain = reference("reference_capture")
        # First the reference's own copies, as adapting works on the model that it is given.
        self._eager = plain.ImageClassifier(plain.eager_clip(clip.config, clip.state_dict()), CLASSES).to(device)
        self._eager.clip.requires_grad_(False)
        for part in (self._eager.clip.vision_model, self._eager.clip.visual_projection):
            part.requires_grad_(True)
        self._eager_optimizer = plain.make_optimizer(self._eager)
        self._eager_teacher = plain.eager_clip(clip.config, clip.state_dict()).to(device).requires_grad_(False)
        self._teacher: nn.Module = copy_without_hooks(clip.vision_model).requires_grad_(False).to(device)
        if half:
            # A teacher runs in the precision of its weights, whatever autocast surrounds it.
            self._teacher.to(torch.bfloat16)
        self._model = adapt(clip, AdaptationSettings(method="full"), CLASSES, seed=0).to(device).train()
        trained = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        self._trained = trained
        # Its count of steps lies on the device, where a graph can go on with it.
        self._optimizer = torch.optim.AdamW(
            trained, 1e-5, weight_decay=0.01, fused=device.type in ("cpu", "cuda"), capturable=device.type == "cuda"
        )
        generator = torch.Generator().manual_seed(0)
        size = vision.image_size
        self._pixels = torch.randn(batch, 3, size, size, generator=generator).to(device)
        self._labels = torch.randint(CLASSES, (batch,), generator=generator).to(device)
        self._numbers = list(range(batch))
        self._cache = AttentionCache(self._model, self._pixels, flips=False)
        self.title = (
            f"{model.removeprefix('config:')}, {(size // vision.patch_size) ** 2 + 1} tokens, batch {batch}, "
            f"{'bfloat16 autocast' if half else 'float32'}"
        )
        self._reference_step = plain.training_step
        self.spent: list[float] = []
        self.works: dict[str, Callable[[], object]] = {
            "plain": partial(self._repeat, self._step),
            "observed": self._observed,
            "cached": partial(self._protected, self._cache),
            "live": partial(self._protected, self._teacher),
            "reference": partial(self._repeat, self._reference),
            "reference_live": partial(self._repeat, lambda: self._reference(self._eager_teacher)),
            "teacher": partial(self._repeat, self._teach),
        }

    def _repeat(self, step: Callable[[], None]) -> None:
        for _ in range(self.steps):
            step()

    def _step(self, protect: Callable[[], Tensor] | None = None) -> None:
        self._optimizer.zero_grad()
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.half):
            loss = self._model(pixel_values=self._pixels, labels=self._labels).loss
        if protect is not None:
            loss = loss + protect()
        loss.backward()
        nn.utils.clip_grad_norm_(self._trained, 1.0)
        self._optimizer.step()

    def _observed(self) -> None:
        if self.device.type == "cuda":
            observed_throughout(self._model, self._step, self.steps)
            return
        watch = Stopwatch()
        for _ in range(self.steps):
            with timed_hooks(watch), ExitStack() as observing:
                with watch.running():
                    seen = observing.enter_context(observe(self._model))
                self._step()
                with watch.running():
                    observing.close()
            with watch.running():
                accumulator = StructureAccumulator()
                accumulator.update(seen.attention, seen.cls_mass)
                accumulator.compute()
        self.spent.append(watch.seconds)

    def _protected(self, teacher: nn.Module | AttentionCache) -> None:
        with AttentionPreservation(self._model, WEIGHT, teacher=teacher) as protect:
            for _ in range(self.steps):
                if protect.needs_index:
                    self._step(lambda: protect(index=self._numbers))
                else:
                    self._step(protect)

    def recorded(self, kind: str) -> Work:
        """Steps of a kind as replays of one CUDA graph."""
        if kind == "plain":
            return partial(self._repeat, captured(self._step))
        if kind == "observed":
            return partial(self._repeat, captured(partial(observed_once, self._model, self._step)))
        if kind == "live":
            with AttentionPreservation(self._model, WEIGHT, teacher=self._teacher) as protect:
                return partial(self._repeat, captured(lambda: self._step(protect)))
        flips = [False] * len(self._numbers)
        place = torch.as_tensor(self._cache(self._numbers, flips)).to(self.device)
        with AttentionPreservation(self._model, WEIGHT, teacher=lambda numbers, flipped: place) as protect:
            replay = captured(lambda: self._step(lambda: protect(index=self._numbers)))

        def step() -> None:
            place.copy_(torch.as_tensor(self._cache(self._numbers, flips)), non_blocking=True)
            replay()

        return partial(self._repeat, step)

    def _reference(self, teacher: nn.Module | None = None) -> None:
        self._reference_step(
            self._eager, self._eager_optimizer, self._pixels, self._labels, teacher, WEIGHT, bf16=self.half
        )

    def rates(self, wait: Work) -> tuple[float, float]:
        """What the machine does now, at products of this model's size: see :func:`attndrift.bench.physical.rates`."""
        tokens = (self._vision.image_size // self._vision.patch_size) ** 2 + 1
        like = self._pixels.to(torch.bfloat16) if self.half else self._pixels
        return rates(len(self._pixels) * tokens, self._vision.hidden_size, like, wait)

    def floors(
        self, seconds: Mapping[str, Sequence[float]], before: tuple[float, float], after: tuple[float, float]
    ) -> list[dict[str, Any]]:
        """What a step must take at least: its operations, and what clipping and the optimiser send through memory.

        Without a second model alone; what observing and the loss of attention preservation add is left out.
        """
        one = self._pixels[:1], self._labels[:1]
        self._eager.train()
        count = len(self._pixels) * step_operations(lambda: nn.functional.cross_entropy(self._eager(one[0])[0], one[1]))
        self._eager_optimizer.zero_grad()
        moved = 4.0 * OPTIMIZER_PASSES * sum(parameter.numel() for parameter in self._trained)
        return [
            floor_row(
                self.title,
                WORDS[kind],
                statistics.median(seconds[kind]),
                self.steps * count,
                self.steps * moved,
                before,
                after,
            )
            for kind in ("plain", "observed", "cached")
            if kind in seconds
        ]

    @torch.no_grad()
    def _teach(self) -> None:
        weight = next(self._teacher.parameters())
        self._teacher(pixel_values=self._pixels.to(weight.dtype))

    def memory(self) -> list[dict[str, Any]]:
        """Peak memory of each kind of step beyond weights, gradients and the optimiser's state."""
        kinds = [name for name in self.works if name != "teacher"]
        peaks = {}
        # The first steps make the optimisers' states, and on an accelerator what libraries take for themselves.
        for name in kinds:
            self.works[name]()
        for name in kinds:
            peaks[name] = peak_bytes(self.works[name], self.device) / _MEGA
        return [
            {"what": WORDS[name], "peak MB": peaks[name], "beyond the step without, MB": peaks[name] - peaks["plain"]}
            for name in kinds
        ]

    def profile(self) -> list[dict[str, Any]]:
        """Self times of operators in one step of each kind, medians over rounds, those with the longest first."""
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if self.device.type == "cuda" else [])
        kinds = ("plain", "observed", "cached", "live", "reference")
        for kind in ("plain", "reference"):
            self.works[kind]()
        # Several rounds, and of each operator the median: one step can fall into a second when the machine is slow.
        rounds_found: dict[str, list[dict[str, tuple[float, int]]]] = {kind: [] for kind in kinds}
        for place in range(_PROFILED):
            for kind in kinds[place:] + kinds[:place]:
                with profile(activities=activities) as profiler:
                    self.works[kind]()
                rounds_found[kind].append(_self_times(profiler.key_averages(), self.device.type))
        found = {kind: _median_of(profiles) for kind, profiles in rounds_found.items()}
        everything = {name for values in found.values() for name in values}
        ranked = sorted(everything, key=lambda name: -max(values.get(name, (0.0, 0))[0] for values in found.values()))
        rows = [
            {"operator": name, **{kind: _timed_calls(found[kind].get(name)) for kind in kinds}}
            for name in ranked[:_SHOWN]
        ]
        rest = {kind: sum(found[kind].get(name, (0.0, 0))[0] for name in ranked[_SHOWN:]) for kind in kinds}
        # The median of the rounds' sums, which is not the sum of the medians.
        total = {
            kind: statistics.median(sum(value for value, _ in one.values()) for one in rounds_found[kind])
            for kind in kinds
        }
        return [
            *rows,
            {"operator": "all others", **{kind: f"{rest[kind]:.1f}" for kind in kinds}},
            {"operator": "all", **{kind: f"{total[kind]:.1f}" for kind in kinds}},
        ]


def _timed_calls(value: tuple[float, int] | None) -> str:
    return "" if value is None else f"{value[0]:.1f} ({value[1]})"


def _self_times(events: Any, device: str) -> dict[str, tuple[float, int]]:
    """Milliseconds and calls of each operator; on an accelerator of each kernel, as an operator's time is its kernels'."""
    if device == "cuda":
        kernels = [event for event in events if event.device_type.name == "CUDA"]
        return {event.key: (event.self_device_time_total / 1e3, event.count) for event in kernels}
    return {event.key: (event.self_cpu_time_total / 1e3, event.count) for event in events}


def _median_of(profiles: list[dict[str, tuple[float, int]]]) -> dict[str, tuple[float, int]]:
    """Of each operator the median time, and how often it was called."""
    names = {name for one in profiles for name in one}
    return {
        name: (
            statistics.median(one.get(name, (0.0, 0))[0] for one in profiles),
            max(one.get(name, (0.0, 0))[1] for one in profiles),
        )
        for name in names
    }
