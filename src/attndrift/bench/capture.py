"""What observing attention costs: against the bare forward pass, and against eager maps. Time and memory."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPModel

from attndrift.allocator import keep_freed_memory
from attndrift.bench.devices import device_named, precision_named, wait_for
from attndrift.bench.graphs import captured, observed_once, observed_throughout
from attndrift.bench.memory import HOW, KEPT, RETURNED, peak_bytes, peak_resident_bytes
from attndrift.bench.physical import MAP_PASSES, TITLE, floor_row, operations, rates
from attndrift.bench.ratios import Ratio, Work, ratio_of, rounds
from attndrift.bench.reference import reference
from attndrift.bench.result import Machine, Result, check_parts
from attndrift.bench.spent import SPENT, Stopwatch, observed_pass, spent_row
from attndrift.models import load_clip
from attndrift.monitor import DriftMonitor

OBSERVED = "forward with all four metrics"
BARE = "bare forward, fused attention (sdpa)"
REFERENCE = "reference: eager forward, full maps, metrics a batch"
OBSERVED_GRAPH = f"{OBSERVED}, as a CUDA graph"
BARE_GRAPH = f"{BARE}, as a CUDA graph"
FAULTS = "pages that a forward pass takes from the system"
_MEGA = 1e6


@dataclass(frozen=True)
class Case:
    """A model and a batch, with what was promised for it.

    Attributes:
        model: as :func:`attndrift.models.load_clip` takes it.
        batch, gpu_batch: images a forward pass on a CPU, and on an accelerator.
        at_most: ratio against the bare forward.
        reference_at_most, gpu_reference_at_most: ratio against the reference.
        rounds: timed rounds of all alternatives, by default.
    """

    model: str
    batch: int
    gpu_batch: int
    at_most: float | None = None
    reference_at_most: float | None = None
    gpu_reference_at_most: float | None = None
    rounds: int = 7


CASES = (
    Case("config:vit-base-patch32", 32, 256, 1.05, 1.0, 1 / 1.2, 15),
    Case("config:vit-large-patch14-336", 8, 8, 1.05, 1 / 1.3, 0.5, 3),
)
PROBE = "config:vit-base-patch32"
PROBE_AT_MOST = 1.15
PROBE_ROUNDS = 3
PARTS = ("time", "memory", "probe")
GPU_PASSES = 10
"""Forward passes that are timed together on an accelerator, where nothing inside one waits for it."""


def case_of(model: str, batch: int | None) -> Case:
    """The case of a model: the known one where it is one, whose targets hold for its own batch alone."""
    known = next((case for case in CASES if case.model == model), Case(model, 32, 256))
    if batch is None:
        return known
    return replace(
        known,
        batch=batch,
        gpu_batch=batch,
        at_most=known.at_most if batch in (known.batch, known.gpu_batch) else None,
        reference_at_most=known.reference_at_most if batch == known.batch else None,
        gpu_reference_at_most=known.gpu_reference_at_most if batch == known.gpu_batch else None,
    )


def capture(
    *,
    cases: tuple[Case, ...] = CASES,
    only: Collection[str] = PARTS,
    pairs: int | None = None,
    probe: str = PROBE,
    probe_images: int = 200,
    device: str = "auto",
    precision: str = "auto",
    keep_freed: bool = True,
    progress: Callable[[str], None] = lambda line: None,
) -> Result:
    """The forward pass observed, all four metrics computed, against the bare one and against eager maps.

    Args:
        cases: models and batches.
        only: which of PARTS: the time of forward passes, their memory, drift measured on probe images.
        pairs: rounds of each case; by default its own number.
        probe: the model whose drift is measured, on ``probe_images``.
        device, precision: see :mod:`attndrift.bench.devices`.
        keep_freed: time with :func:`attndrift.allocator.keep_freed_memory`, on a CPU.
    """
    check_parts(only, PARTS)
    machine = Machine()
    where = device_named(device)
    dtype = precision_named(precision, where)
    ratios: list[Ratio] = []
    memory: list[dict[str, Any]] = []
    spent: list[dict[str, Any]] = []
    floors: list[dict[str, Any]] = []
    faults: list[dict[str, Any]] = []
    notes = ["Weights are random, made from the model's configuration: no time here depends on their values."]
    forwards = [_Forwards(case, where, dtype) for case in cases] if {"time", "memory"} & set(only) else []
    if "memory" in only:
        for work in forwards:
            memory += work.memory()
            progress(f"{work.title}: memory traced")
        notes.append(
            f"Memory: {HOW}. `resident` is the growth of the whole process as the system counts it, pages instead of "
            "allocations, as a check from outside."
        )
    if {"time", "probe"} & set(only) and where.type == "cpu":
        notes.append(KEPT if keep_freed and keep_freed_memory() else RETURNED)
    if "time" in only and where.type == "cuda":
        notes.append(
            f"{GPU_PASSES} passes are timed together, and the metrics of all are read after the last. As a CUDA graph a pass is "
            "recorded once and replayed, on both sides: the functions that launch it do not run again."
        )
    if "time" in only:
        for work in forwards:
            work.record()
            before = work.rates(wait_for(where))
            found = rounds(work.works, pairs or work.case.rounds, wait=wait_for(where), say=progress)
            if where.type == "cpu":
                # On an accelerator, a clock in a hook says when something was asked, not what it took.
                own = work.spent[-len(found["observed"]) :]
                spent.append(spent_row(OBSERVED, work.title, own, found["observed"]))
            observed, bare, plain = (found[name] for name in ("observed", "bare", "reference"))
            floors += work.floors(found, before, work.rates(wait_for(where)))
            faults += work.page_faults(len(found["bare"]))
            target = work.case.gpu_reference_at_most if where.type == "cuda" else work.case.reference_at_most
            if "observed graph" in found:
                graphs = found["observed graph"], found["bare graph"]
                ratios += [
                    ratio_of(OBSERVED_GRAPH, BARE_GRAPH, *graphs, case=work.title).aiming_at(work.case.at_most),
                    ratio_of(BARE_GRAPH, BARE, found["bare graph"], bare, case=work.title),
                ]
            ratios += [
                ratio_of(OBSERVED, BARE, observed, bare, case=work.title).aiming_at(work.case.at_most),
                ratio_of(OBSERVED, REFERENCE, observed, plain, case=work.title).aiming_at(target),
                ratio_of(REFERENCE, BARE, plain, bare, case=work.title),
            ]
    forwards.clear()
    if "probe" in only:
        ratios += _probe(probe, probe_images, pairs or PROBE_ROUNDS, where, dtype, progress)
    return Result(
        "capture",
        ratios,
        tables={
            title: rows
            for title, rows in (
                (SPENT, spent),
                (TITLE, floors),
                (FAULTS, faults),
                ("extra peak memory of a forward pass", memory),
            )
            if rows
        },
        notes=notes,
        device=str(where),
        threads=torch.get_num_threads(),
        others_pct=machine.others_pct(),
    )


class _Forwards:
    """The three ways to run one forward pass: bare, observed, and as the reference does."""

    def __init__(self, case: Case, device: torch.device, dtype: torch.dtype) -> None:
        self.case, self.device = case, device
        plain = reference("reference_capture")
        clip = load_clip(case.model)
        self.clip: CLIPModel = clip.to(device, dtype)
        self.eager = plain.eager_clip(clip.config, clip.state_dict()).to(device, dtype)
        vision = clip.config.vision_config
        batch = case.gpu_batch if device.type == "cuda" else case.batch
        generator = torch.Generator().manual_seed(0)
        self.pixels = torch.randn(batch, 3, vision.image_size, vision.image_size, generator=generator).to(device, dtype)
        tokens = self.tokens = (vision.image_size // vision.patch_size) ** 2 + 1
        self.maps_bytes = (
            vision.num_hidden_layers * batch * vision.num_attention_heads * tokens**2 * self.pixels.element_size()
        )
        self.title = (
            f"{case.model.removeprefix('config:')}, {tokens} tokens, batch {batch}, {str(dtype).removeprefix('torch.')}"
        )
        self.passes = GPU_PASSES if device.type == "cuda" else 1
        self.spent: list[float] = []
        self._faults: dict[str, list[int]] = {}
        self.works: dict[str, Work] = {
            "bare": partial(self._counted, "bare", self._bare),
            "observed": partial(self._counted, "observed", self._observed),
            "reference": partial(
                self._counted, "reference", lambda: plain.measure_attention(self.eager, [self.pixels])
            ),
        }
        if device.type == "cuda":
            self.works = {
                "bare": self._repeated(self._bare),
                "observed": lambda: observed_throughout(self.clip, self._bare, self.passes),
                "reference": self._repeated(lambda: plain.measure_attention(self.eager, [self.pixels])),
            }

    def record(self) -> None:
        """On an accelerator, the same two passes as CUDA graphs, too."""
        if self.device.type != "cuda":
            return
        self.works["bare graph"] = self._repeated(captured(self._bare))
        self.works["observed graph"] = self._repeated(captured(partial(observed_once, self.clip, self._bare)))

    def _repeated(self, work: Work) -> Work:
        def several() -> None:
            for _ in range(self.passes):
                work()

        return several

    def _counted(self, name: str, work: Work) -> None:
        before = _faults()
        work()
        after = _faults()
        if before is not None and after is not None:
            self._faults.setdefault(name, []).append(after - before)

    def page_faults(self, passes: int) -> list[dict[str, Any]]:
        """How many pages each of the last ``passes`` took from the system; none where it does not say."""
        if not self._faults:
            return []
        return [
            {
                "case": self.title,
                "what": words,
                "pages": statistics.median(self._faults[name][-passes:]),
                "fewest": min(self._faults[name][-passes:]),
                "most": max(self._faults[name][-passes:]),
                "n": passes,
            }
            for name, words in (("bare", BARE), ("observed", OBSERVED), ("reference", REFERENCE))
        ]

    @torch.no_grad()
    def _bare(self) -> Tensor:
        return self.clip.vision_model(pixel_values=self.pixels).pooler_output

    @torch.no_grad()
    def _observed(self) -> Tensor:
        watch = Stopwatch()
        output: Tensor = observed_pass(self.clip, self._bare, watch)
        self.spent.append(watch.seconds)
        return output

    def rates(self, wait: Work) -> tuple[float, float]:
        """What the machine does now, at products of this model's size: see :func:`attndrift.bench.physical.rates`."""
        vision = self.clip.config.vision_config
        return rates(len(self.pixels) * self.tokens, vision.hidden_size, self.pixels, wait)

    def floors(
        self, seconds: Mapping[str, Sequence[float]], before: tuple[float, float], after: tuple[float, float]
    ) -> list[dict[str, Any]]:
        """What each must take at least: its operations, and for the reference the maps that go through memory.

        What observing adds, one row of scores a layer and head, is a thousandth of the operations, and left out.
        """
        count = len(self.pixels) * operations(self.eager.vision_model, self.pixels[:1])
        return [
            floor_row(self.title, words, statistics.median(seconds[name]) / self.passes, count, moved, before, after)
            for name, words, moved in (
                ("bare", BARE, 0.0), ("observed", OBSERVED, 0.0),
                ("bare graph", BARE_GRAPH, 0.0), ("observed graph", OBSERVED_GRAPH, 0.0),
                ("reference", REFERENCE, float(MAP_PASSES * self.maps_bytes)),
            )
            if name in seconds
        ]  # fmt: skip

    def memory(self) -> list[dict[str, Any]]:
        """Peak memory of each, and what it is beyond the bare forward's."""
        peaks: dict[str, int] = {}
        resident: dict[str, int | None] = {}
        passes, self.passes = self.passes, 1

        if self.device.type == "cuda":
            # What libraries take for themselves with their first call belongs to none of them.
            for work in self.works.values():
                work()

        def trace(name: str) -> None:
            peaks[name] = peak_bytes(self.works[name], self.device)

        for name in self.works:
            resident[name] = peak_resident_bytes(partial(trace, name)) if self.device.type == "cpu" else None
            if name not in peaks:
                trace(name)
        self.passes = passes
        rows: list[dict[str, Any]] = []
        for name, words in (("bare", BARE), ("observed", OBSERVED), ("reference", REFERENCE)):
            extra = peaks[name] - peaks["bare"]
            grown, bare = resident[name], resident["bare"]
            rows.append({
                "case": self.title,
                "what": words,
                "peak MB": peaks[name] / _MEGA,
                "extra MB": extra / _MEGA,
                "all maps MB": self.maps_bytes / _MEGA,
                "extra, % of all maps": 100 * extra / self.maps_bytes,
                "extra resident MB": None if grown is None or bare is None else (grown - bare) / _MEGA,
            })  # fmt: skip
        return rows


def _faults() -> int | None:
    """Pages that this process has taken from the system so far; None where it does not say."""
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def _probe(
    model: str, images: int, pairs: int, device: torch.device, dtype: torch.dtype, progress: Callable[[str], None]
) -> list[Ratio]:
    """Measuring drift on the probe images, against forward passes of the same images."""
    clip = load_clip(model).to(device, dtype)
    size = clip.config.vision_config.image_size
    pixels = torch.randn(images, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    monitor = DriftMonitor(clip, pixels)

    @torch.no_grad()
    def forward() -> Tensor:
        return clip.get_image_features(pixel_values=pixels).pooler_output

    works: dict[str, Callable[[], object]] = {
        "two": lambda: (forward(), forward()),
        "both": lambda: DriftMonitor(clip, pixels).measure(),
        "one": monitor.measure,
    }
    found = rounds(works, pairs, wait=wait_for(device), say=progress)
    title = f"{model.removeprefix('config:')}, {images} probe images, {str(dtype).removeprefix('torch.')}"
    what = "all metrics, CKA, embedding and weight drift"
    two = "two bare forward passes of the same images"
    return [
        ratio_of(
            f"reference taken, then drift measured: {what}", two, found["both"], found["two"], case=title
        ).aiming_at(PROBE_AT_MOST),
        ratio_of(f"each further measurement of drift: {what}", two, found["one"], found["two"], case=title),
    ]
