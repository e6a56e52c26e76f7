"""What a training step costs with each method and each loss, against full fine-tuning without one: CPU time and memory.

The dry run of a study reads these ratios from ``src/attndrift/study/step_costs.json``, which ``--table`` writes. CPU time of
this process, not the time of day: other programs on the machine change it little.
"""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import torch
import typer
from torch import nn

from attndrift.files import write_json
from attndrift.losses import LOSSES, StudyContext, TeacherCache, fisher_information
from attndrift.methods import METHODS, AdaptationSettings, adapt
from attndrift.models import load_model
from attndrift.study.allocator import keep_freed_memory
from benchmarks.memory import HOW, KEPT, peak_bytes
from benchmarks.ratios import Ratio, Work, ratio_of, rounds
from benchmarks.result import OtherPrograms, Output, Pairs, Result, commit, say

CLASSES, REFERENCES = 10, 16
FULL = "full"
AT_MOST = {"cached": 1.10, "live": 1.45}
"""Targets of a loss with cached pretrained values, and with a live teacher."""
L2_SP_AT_MOST = 1.05
MEMORY = "memory of a training from nothing: weights, gradients, moments, activations, pretrained values"


class Trainings:
    """Makes trainings of ``model`` on one batch of random images: each a function that makes one step."""

    def __init__(self, model: str, batch: int) -> None:
        self.clip = load_model(model)
        vision = self.clip.config.vision_config
        self.case = f"{model.removeprefix('config:')}, batch {batch}, float32, CPU, {torch.get_num_threads()} threads"
        generator = torch.Generator().manual_seed(0)
        self.pixels = torch.randn(batch, 3, vision.image_size, vision.image_size, generator=generator)
        self.references = torch.randn(REFERENCES, 3, vision.image_size, vision.image_size, generator=generator)
        self.labels = torch.randint(CLASSES, (batch,), generator=generator)
        self.texts = torch.randn(CLASSES, self.clip.config.projection_dim, generator=generator)
        self.layers = vision.num_hidden_layers

    def method(self, name: str, preserve: Callable[[nn.Module], Any] | None = None, *, cached: bool = True) -> Work:
        """A step by a method, with a loss that ``preserve`` makes of the model, which has cached values or not."""
        own: dict[str, Any] = {"reference": "none"} if METHODS[name].needs_reference else {}
        model = adapt(
            copy.deepcopy(self.clip), AdaptationSettings(name, **own), CLASSES, seed=0, reference_images=self.references
        ).train()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, 1e-5, weight_decay=0.01, fused=True)
        loss = None if preserve is None else preserve(model)
        return partial(self._step, model, trained, optimizer, loss, cached)

    def _step(self, model: Any, trained: Any, optimizer: torch.optim.Optimizer, preserve: Any, cached: bool) -> None:
        """Forward, backward, clipping to a norm of 1, optimiser."""
        numbers = list(range(len(self.pixels)))
        optimizer.zero_grad()
        by_number = preserve is not None and cached
        reference = preserve.reference(numbers, [False] * len(numbers)) if by_number else None
        with preserve.watching() if by_number else nullcontext():
            loss = model(pixel_values=self.pixels, labels=self.labels).loss
        if preserve is not None:
            loss = loss + (preserve(reference=reference, images=len(numbers)) if cached else preserve())
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()

    def cached(self, name: str) -> Work:
        """A step of full fine-tuning with a loss as a study makes it."""

        def make(model: nn.Module) -> Any:
            settings = LOSSES[name].Settings.model_construct()
            teachers: dict[str, Callable[..., Any]] = {}
            view_of = getattr(LOSSES[name].cls, "cached_view", None)
            if view_of is not None:
                view = view_of(**dict(settings))
                teachers[view.name] = TeacherCache(self.clip, self.pixels, view=view, flips=False)
            reference = SimpleNamespace(
                pixels=self.references, text_features=self.texts,
                fisher=lambda: fisher_information(self.clip, self.references, self.texts),
            )  # fmt: skip
            context = StudyContext(torch.full((self.layers,), 3.0), teachers, lambda: self.texts, reference)
            return LOSSES[name].cls.in_study(model, 0.1, context, **dict(settings))

        return self.method(FULL, make)

    def live(self, name: str) -> Work:
        """A step of full fine-tuning with a loss that asks a copy of the pretrained model in every step."""
        own = {"text_features": self.texts} if name == "logit_distillation" else {}
        return self.method(FULL, lambda model: LOSSES[name].cls(model, 0.1, **own), cached=False)


def kinds() -> dict[str, tuple[str, str, str]]:
    """Everything that is measured, by its name: ``method`` or ``loss``, the name of the member, and how it is asked."""
    alone = [one.name for one in METHODS if one.moves_encoder or one.name == "linear_probe"]
    found = {f"method {name}": ("method", name, "") for name in alone}
    for loss in LOSSES:
        taught = getattr(loss.cls, "cached_view", None) is not None
        found[f"loss {loss.name}"] = ("loss", loss.name, "cached" if taught else "none")
        if taught and loss.name != "entropy_floor":
            found[f"loss {loss.name}, live teacher"] = ("loss", loss.name, "live")
    return found


def measure(
    model: str, batch: int, names: Sequence[str], pairs: int, *, memory: bool, progress: Callable[[str], object] = say
) -> Result:
    """Time a step of each of ``names``, keys of :func:`kinds`, every one in every round."""
    others, trainings, known = OtherPrograms(), Trainings(model, batch), kinds()
    keep_freed_memory()

    def made(name: str) -> Work:
        kind, member, how = known[name]
        if kind == "method":
            return trainings.method(member)
        return trainings.live(member) if how == "live" else trainings.cached(member)

    plain = f"method {FULL}"
    asked = list(dict.fromkeys([plain, *names]))
    works = {name: made(name) for name in asked}
    found = rounds(works, pairs, progress, clock=time.process_time)
    ratios: list[Ratio] = [
        ratio_of(
            name, plain, found[name], found[plain], case=trainings.case,
            at_most=L2_SP_AT_MOST if name == "loss l2_sp" else AT_MOST.get(known[name][2]),
        )
        for name in asked if name != plain
    ]  # fmt: skip
    tables: dict[str, list[dict[str, Any]]] = {}
    if memory:

        def training(name: str) -> None:
            step = made(name)
            step()
            step()

        works.clear()
        peaks = {}
        for name in asked:
            # What another left in circles must not be released within this one's trace.
            gc.collect()
            peaks[name] = peak_bytes(partial(training, name))
        tables[MEMORY] = [
            {"what": name, "MB": peak / 1e6, "of full": peak / peaks[plain]} for name, peak in peaks.items()
        ]
    notes = ["CPU time of the process (time.process_time), not the time of day.", KEPT, *([HOW] if memory else [])]
    return Result("step_costs", ratios, tables, notes, others.percent())


def table_of(result: Result) -> dict[str, Any]:
    """What the dry run reads: ratios by method and by loss, the latter with cached values."""
    found: dict[str, Any] = {"case": result.ratios[0].case, "commit": commit(), "method": {FULL: 1.0}, "loss": {}}
    for ratio in result.ratios:
        kind, name, how = kinds()[ratio.what]
        if how != "live":
            found[kind][name] = round(ratio.ratio, 3)
    return found


def main(
    model: Annotated[str, typer.Option(help="As attndrift.models.load_model takes it.")] = "embedded",
    batch: Annotated[int, typer.Option(min=2, help="Images a step.")] = 16,
    only: Annotated[
        list[str] | None, typer.Option(help="`method NAME` or `loss NAME`; default all. Repeatable.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    memory: Annotated[bool, typer.Option(help="Also trace the memory of each.")] = True,
    table: Annotated[Path | None, typer.Option(help="Write the table of the dry run here.")] = None,
    pairs: Pairs = 5,
    output: Output = None,
) -> None:
    """CPU time and memory of a training step with each method and each loss, against full fine-tuning without one."""
    torch.set_num_threads(threads)
    known = kinds()
    for name in only or ():
        if name not in known:
            raise typer.BadParameter(f"{name}: choose from {', '.join(known)}")
    result = measure(model, batch, only or list(known), pairs, memory=memory)
    if table is not None:
        write_json(table, table_of(result))
    result.deliver(output)


if __name__ == "__main__":
    typer.run(main)
