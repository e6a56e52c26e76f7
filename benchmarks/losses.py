"""What one training step costs with each preservation loss, against the same step of full fine-tuning without one.

As in a study: pretrained values are cached before the first step, and the loss watches the step's own forward pass alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from attndrift.losses import LOSSES, PreservationLoss, StudyContext, TeacherCache, fisher_information
from attndrift.methods import AdaptationSettings, adapt
from attndrift.models import load_clip
from attndrift.study.allocator import keep_freed_memory
from benchmarks.memory import KEPT
from benchmarks.ratios import Ratio, Work, ratio_of, rounds
from benchmarks.result import OtherPrograms, Output, Pairs, Result, say

CLASSES, REFERENCES = 10, 16
AT_MOST = {
    "l2_sp": 1.05, "ldifs": 1.10, "embedding_mse": 1.10, "embedding_cosine": 1.10, "embedding_similarity": 1.10,
}  # fmt: skip
"""Targets; the others have none."""
PLAIN = "plain"


class LossSteps:
    """Steps of full fine-tuning of ``model`` on ``batch`` random images, one for each of ``losses`` and one without."""

    def __init__(self, model: str, batch: int, losses: Sequence[str], device: str) -> None:
        clip = load_clip(model).to(device)
        vision = clip.config.vision_config
        self.case = f"{model.removeprefix('config:')}, batch {batch}, float32, {device}"
        generator = torch.Generator().manual_seed(0)

        def images(count: int) -> Tensor:
            shape = (count, 3, vision.image_size, vision.image_size)
            return torch.randn(shape, generator=generator).to(device)

        self.device, self.pixels, self.numbers = device, images(batch), list(range(batch))
        self.labels = torch.randint(CLASSES, (batch,), generator=generator).to(device)
        self.model = adapt(copy.deepcopy(clip).cpu(), AdaptationSettings(), CLASSES, seed=0).to(device).train()
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, 1e-5, weight_decay=0.01, fused=device in ("cpu", "cuda"))
        texts = torch.randn(CLASSES, clip.config.projection_dim, generator=generator).to(device)
        references = images(REFERENCES)
        reference = SimpleNamespace(
            pixels=references, text_features=texts, fisher=lambda: fisher_information(clip, references, texts)
        )
        entropy = torch.full((vision.num_hidden_layers,), 3.0)
        self.works: dict[str, Work] = {PLAIN: partial(self.step, None)}
        for name in losses:
            settings = LOSSES[name].Settings.model_construct()
            teachers: dict[str, Callable[..., Any]] = {}
            view_of = getattr(LOSSES[name].cls, "cached_view", None)
            if view_of is not None:
                view = view_of(**dict(settings))
                teachers[view.name] = TeacherCache(clip, self.pixels, view=view, flips=False)
            context = StudyContext(entropy, teachers, lambda: texts, reference)
            preserve = LOSSES[name].cls.in_study(self.model, 0.1, context, **dict(settings))
            self.works[name] = partial(self.step, preserve)

    def step(self, preserve: PreservationLoss | None) -> None:
        """Forward, backward, clipping to a norm of 1, optimiser."""
        self.optimizer.zero_grad()
        reference = None if preserve is None else preserve.reference(self.numbers, [False] * len(self.numbers))
        with nullcontext() if preserve is None else preserve.watching():
            loss = self.model(pixel_values=self.pixels, labels=self.labels).loss
        if preserve is not None:
            loss = loss + preserve(reference=reference, images=len(self.numbers))
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        if self.device == "cuda":
            torch.cuda.synchronize()


def time_losses(
    model: str, batch: int, losses: Sequence[str], pairs: int, device: str, progress: Callable[[str], object] = say
) -> Result:
    """Time a step with each of ``losses``, every one in every round."""
    others = OtherPrograms()
    keep_freed_memory()
    steps = LossSteps(model, batch, losses, device)
    found = rounds(steps.works, pairs, progress)
    ratios: list[Ratio] = [
        ratio_of(
            f"step with {LOSSES[name].label}", "step of full fine-tuning", found[name], found[PLAIN],
            case=steps.case, at_most=AT_MOST.get(name),
        )
        for name in losses
    ]  # fmt: skip
    notes = ["Weights and images are random: no time here depends on their values.", KEPT]
    return Result("losses", ratios, {}, notes, others.percent())


def main(
    model: Annotated[str, typer.Option(help="As attndrift.models.load_clip takes it.")] = "config:vit-base-patch32",
    batch: Annotated[int, typer.Option(min=2, help="Images a step.")] = 64,
    loss: Annotated[
        list[str] | None, typer.Option(help="A name of attndrift list losses; default all. Repeatable.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    pairs: Pairs = 5,
    output: Output = None,
) -> None:
    """What a training step costs with each preservation loss, against the step without one."""
    for name in loss or ():
        LOSSES[name]  # raises for a name that no loss has
    time_losses(model, batch, loss or LOSSES.names(), pairs, device).deliver(output)


if __name__ == "__main__":
    typer.run(main)
