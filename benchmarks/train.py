"""What a training step costs that is observed, that preserves attention, or that adapts by another method than full fine-tuning."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Collection
from functools import partial
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from attndrift import AttentionPreservation, DriftMonitor, EntropyFloor
from attndrift.losses import AttentionCache
from attndrift.methods import METHODS, AdaptationSettings, adapt
from attndrift.models import load_model
from attndrift.study.allocator import keep_freed_memory
from benchmarks import hook_overhead, reference_capture, roofline
from benchmarks.memory import KEPT
from benchmarks.ratios import Ratio, Work, ratio_of, rounds
from benchmarks.result import OtherPrograms, Output, Pairs, Result, say

CLASSES = 10
WEIGHT = 0.1
ADAPTED = tuple(name for name in METHODS.names() if METHODS[name].adapts and name not in ("full", "frozen"))
"""Methods whose step is compared with that of full fine-tuning."""

WORDS = {
    "plain": "step of full fine-tuning, fused attention (sdpa)",
    "observed": "step observed, all four metrics of every step",
    "cached": "step with attention preservation, pretrained attention cached",
    "live": "step with attention preservation, live teacher",
    "entropy_floor": "step with the entropy floor",
    "teacher": "forward pass of the vision tower without gradients",
    "reference": "reference: eager step, full maps, metrics a batch",
    "reference_live": "reference: eager step, full maps, metrics a batch, second live model for preservation",
    **{name: f"step of method {name}" for name in ADAPTED},
}
COMPARED: tuple[tuple[str, str, float | None], ...] = (
    ("observed", "plain", 1.05),
    ("cached", "plain", 1.10),
    ("live", "plain", 1.45),
    ("entropy_floor", "plain", None),
    ("teacher", "plain", None),
    ("observed", "reference", None),
    ("live", "reference_live", None),
    ("cached", "reference_live", None),
    ("reference", "plain", None),
    ("reference_live", "plain", None),
    *((name, "plain", None) for name in ADAPTED),
)
PLAIN_AND_OBSERVED = ("plain", "observed")


def bare_step(
    model: Callable[..., Any],
    trained: Collection[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    preserve: Callable[[], Tensor] | None = None,
    **batch: Tensor,
) -> None:
    """One training step and nothing else: forward, backward, clipping to a norm of 1, optimiser.

    ``trained``: the parameters of ``optimizer``. ``preserve``: a loss that is added, called after the forward pass.
    ``batch``: what ``model`` takes, and returns a ``loss`` for.
    """
    optimizer.zero_grad()
    loss = model(**batch).loss
    if preserve is not None:
        loss = loss + preserve()
    loss.backward()
    nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()


class Steps:
    """The ways to make one training step of ``model`` on ``batch`` random images, in float32; only ``kinds`` are prepared."""

    def __init__(self, model: str, batch: int, kinds: Collection[str] = tuple(WORDS)) -> None:
        self.clip = load_model(model)
        vision = self.clip.config.vision_config
        self.tokens, self.width = (vision.image_size // vision.patch_size) ** 2 + 1, vision.hidden_size
        self.case = f"{model.removeprefix('config:')}, {self.tokens} tokens, batch {batch}, float32"
        generator = torch.Generator().manual_seed(0)
        self.pixels = torch.randn(batch, 3, vision.image_size, vision.image_size, generator=generator)
        self.labels = torch.randint(CLASSES, (batch,), generator=generator)
        self.teacher = copy.deepcopy(self.clip.vision_model).requires_grad_(False)
        self.model, plain = self._adapted("full")
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.overhead: list[float] = []
        known: dict[str, Callable[[], Work]] = {
            "plain": lambda: plain,
            "observed": lambda: partial(self._observed, plain),
            "cached": lambda: self._cached(plain),
            "live": lambda: partial(
                self._preserved, plain, lambda: AttentionPreservation(self.model, WEIGHT, teacher=self.teacher)
            ),
            "entropy_floor": lambda: self._entropy_floor(plain),
            "teacher": lambda: self._teach,
            "reference": self._reference,
            "reference_live": lambda: self._reference(live=True),
            **{name: partial(self._of_method, name) for name in ADAPTED},
        }
        self.works = {kind: known[kind]() for kind in kinds}

    def _adapted(self, method: str) -> tuple[nn.Module, Callable[..., None]]:
        own: dict[str, Any] = {"reference": "none"} if METHODS[method].needs_reference else {}
        settings = AdaptationSettings(method=method, **own)
        model = adapt(copy.deepcopy(self.clip), settings, CLASSES, seed=0, reference_images=self.pixels).train()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, 1e-5, weight_decay=0.01, fused=True)
        return model, partial(bare_step, model, trained, optimizer, pixel_values=self.pixels, labels=self.labels)

    def _of_method(self, method: str) -> Work:
        return self._adapted(method)[1]

    def _observed(self, step: Work) -> None:
        self.overhead.append(hook_overhead.observed_pass(self.model, step))

    def _preserved(self, step: Callable[..., None], loss: Callable[[], Any], **asked: Any) -> None:
        with loss() as preserve:
            step(preserve=partial(preserve, **asked))

    def _cached(self, step: Callable[..., None]) -> Work:
        cache = AttentionCache(self.model, self.pixels, flips=False)
        index = list(range(len(self.pixels)))
        return partial(
            self._preserved, step, lambda: AttentionPreservation(self.model, WEIGHT, teacher=cache), index=index
        )

    def _entropy_floor(self, step: Callable[..., None]) -> Work:
        monitor = DriftMonitor(self.model, self.pixels)
        return partial(self._preserved, step, lambda: EntropyFloor(self.model, WEIGHT, monitor=monitor))

    @torch.no_grad()
    def _teach(self) -> None:
        self.teacher(pixel_values=self.pixels)

    def _eager(self) -> reference_capture.ImageClassifier:
        eager = reference_capture.ImageClassifier(
            reference_capture.eager_clip(self.clip.config, self.clip.state_dict()), CLASSES
        )
        eager.clip.requires_grad_(False)
        for part in (eager.clip.vision_model, eager.clip.visual_projection):
            part.requires_grad_(True)
        return eager

    def _reference(self, live: bool = False) -> Work:
        eager = self._eager()
        teacher = reference_capture.eager_clip(self.clip.config, self.clip.state_dict()) if live else None
        return partial(
            reference_capture.training_step, eager, reference_capture.make_optimizer(eager), self.pixels, self.labels,
            teacher, WEIGHT,
        )  # fmt: skip

    def rates(self) -> tuple[float, float]:
        """Of products as large as this model's: see :func:`benchmarks.roofline.rates`."""
        return roofline.rates(len(self.pixels) * self.tokens, self.width)

    def least(self) -> tuple[float, float]:
        """Operations of a step, and bytes that clipping and the optimiser send through memory."""
        eager = self._eager().train()
        pixels, labels = self.pixels[:1], self.labels[:1]
        one = roofline.operations(lambda: nn.functional.cross_entropy(eager(pixels)[0], labels).backward())
        numbers = sum(parameter.numel() for parameter in self.trained)
        return len(self.pixels) * one, 4.0 * roofline.OPTIMIZER_PASSES * numbers


def train(
    model: str, batch: int, kinds: Collection[str], pairs: int, progress: Callable[[str], object] = say
) -> Result:
    """Time steps of ``kinds``, keys of WORDS, every kind in every round."""
    for kind in kinds:
        if kind not in WORDS:
            raise ValueError(f"--kind {kind}: choose from {', '.join(WORDS)}")
    compared = [one for one in COMPARED if {one[0], one[1]} <= set(kinds)]
    if not compared:
        raise ValueError(f"--kind {', '.join(kinds)}: there is nothing to compare with; add plain")
    others = OtherPrograms()
    keep_freed_memory()
    steps = Steps(model, batch, kinds)
    before = steps.rates()
    found = rounds(steps.works, pairs, progress)
    after = steps.rates()
    ratios: list[Ratio] = [
        ratio_of(WORDS[what], WORDS[other], found[what], found[other], case=steps.case, at_most=at_most)
        for what, other, at_most in compared
    ]
    tables: dict[str, list[dict[str, Any]]] = {}
    if "observed" in kinds:
        tables[hook_overhead.TITLE] = [
            hook_overhead.overhead_row(WORDS["observed"], steps.case, steps.overhead[-pairs:], found["observed"])
        ]
    tables[roofline.TITLE] = [
        roofline.roofline_row(steps.case, WORDS[kind], statistics.median(found[kind]), *steps.least(), before, after)
        for kind in PLAIN_AND_OBSERVED
        if kind in kinds
    ]
    notes = ["Weights and images are random: no time here depends on their values.", KEPT]
    return Result("train", ratios, tables, notes, others.percent())


def main(
    model: Annotated[str, typer.Option(help="As attndrift.models.load_model takes it.")] = "config:vit-base-patch32",
    batch: Annotated[int, typer.Option(min=2, help="Images a step.")] = 64,
    kind: Annotated[list[str] | None, typer.Option(help=f"{', '.join(WORDS)}; default all. Repeatable.")] = None,
    pairs: Pairs = 5,
    output: Output = None,
) -> None:
    """What a training step costs, against that of full fine-tuning and against the reference's."""
    train(model, batch, kind or tuple(WORDS), pairs).deliver(output)


if __name__ == "__main__":
    typer.run(main)
