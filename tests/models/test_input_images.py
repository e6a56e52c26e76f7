"""Images that are not as a model takes them are refused, or warned of, wherever somebody can give some."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import CLIPModel

from attndrift import AttentionPreservation, Budget, DriftMonitor, EntropyFloor, evaluate_zero_shot
from attndrift.drift import take_snapshot
from attndrift.losses import AttentionCache
from attndrift.models import load_model
from attndrift.retention.task import Labelled, RetentionTask

LABELS = np.arange(8) % 2
NORMALISED = torch.randn(8, 3, 28, 28, generator=torch.Generator().manual_seed(1))
PIXELS = (NORMALISED.clamp(-2, 2) + 2) / 4


class Stored:
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def fetch(self, positions: Sequence[int]) -> Tensor:
        return self.images[list(positions)]


def _evaluate(clip: CLIPModel, images: Any) -> Any:
    return evaluate_zero_shot(clip, images, LABELS, text_features=torch.eye(2, 32), batch_size=4)


def _budget(clip: CLIPModel, images: Any) -> Any:
    return Budget.retention(0.9, images, LABELS, text_features=torch.eye(2, 32), batch_size=4)


def _preserved(clip: CLIPModel, images: Tensor) -> Any:
    with AttentionPreservation(clip, 0.1) as preserve:
        clip.vision_model(pixel_values=images)
        return preserve(clip)


def _embedded(clip: CLIPModel, images: Tensor) -> Any:
    task = RetentionTask("mine", "test", Labelled(Stored(images), LABELS), ("a", "b"))
    return task.embed(clip, task.queries)


# Where images enter, and as what.
ENTRIES: dict[str, tuple[Callable[[CLIPModel, Tensor], Any], str]] = {
    "zero-shot, a tensor": (_evaluate, "images"),
    "zero-shot, batches": (lambda clip, images: _evaluate(clip, iter(images.split(4))), "images"),
    "zero-shot, a store": (lambda clip, images: _evaluate(clip, Stored(images)), "images"),
    "a budget, a tensor": (_budget, "images"),
    "a budget, a store": (lambda clip, images: _budget(clip, Stored(images)), "images"),
    "entropy floor, a tensor": (lambda clip, images: EntropyFloor(clip, 0.1, probe=images), "probe"),
    "entropy floor, batches": (lambda clip, images: EntropyFloor(clip, 0.1, probe=images.split(3)), "probe"),
    "attention cache": (AttentionCache, "images"),
    "attention cache, batches": (lambda clip, images: AttentionCache(clip, iter(images.split(5))), "images"),
    "a loss's first forward pass": (_preserved, "images of this forward pass"),
    "a snapshot": (lambda clip, images: take_snapshot(clip, images.split(4)), "images"),
    "a monitor's function": (lambda clip, images: DriftMonitor(clip, lambda: images.split(4)), "probe"),
    "a monitor's function beside a snapshot": (
        lambda clip, images: DriftMonitor(
            clip, lambda: images.split(4), reference=take_snapshot(clip, [NORMALISED])
        ),
        "probe",
    ),
    "k-NN": (_embedded, "images of mine"),
}  # fmt: skip
REFUSED: dict[str, Tensor] = {
    "0 to 255": (PIXELS * 255).round(),
    "whole numbers": (PIXELS * 255).round().to(torch.uint8),
    "0 to 255, double": (PIXELS * 255).double(),
    "mean taken off": PIXELS * 255 - 120,
    "not finite": NORMALISED.index_fill(0, torch.tensor([2]), torch.nan),
}


@pytest.fixture
def clip() -> CLIPModel:
    return load_model("config:tiny")


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("entry", ENTRIES)
def test_what_no_processor_gives_is_refused_with_a_remedy(clip: CLIPModel, entry: str, kind: str) -> None:
    give, what = ENTRIES[entry]
    said = {"whole numbers": "uint8 are not normalised", "not finite": "NaN or infinite"}.get(
        kind, "are not normalised"
    )
    with pytest.raises(TypeError, match=rf"^{what}: .*{said}.*processor\(images"):
        give(clip, REFUSED[kind])


@pytest.mark.parametrize("entry", [entry for entry in ENTRIES if entry not in ("zero-shot, a store", "k-NN")])
def test_pixels_of_0_to_1_are_warned_of_once(clip: CLIPModel, entry: str, caplog: pytest.LogCaptureFixture) -> None:
    give, what = ENTRIES[entry]
    give(clip, NORMALISED)
    assert caplog.records == []
    give(clip, PIXELS)
    said = [record.getMessage() for record in caplog.records]
    assert [one.startswith(f"{what}: all values lie between 0 and 1") for one in said] == [True]


def test_a_function_that_yields_pixels_later_is_refused_then(clip: CLIPModel) -> None:
    images = [NORMALISED]
    monitor = DriftMonitor(clip, lambda: images)
    images[0] = PIXELS * 255
    with pytest.raises(TypeError, match=r"^probe: .*are not normalised"):
        monitor.measure()


# -- another shape -------------------------------------------------------------------------------------

SHAPES: dict[str, tuple[tuple[int, ...], str]] = {
    "larger": ((8, 3, 35, 35), r"\(3, 35, 35\); the model takes \(3, 28, 28\)"),
    "not square": ((8, 3, 28, 21), r"\(3, 28, 21\); the model takes \(3, 28, 28\)"),
    "grey": ((8, 1, 28, 28), r"\(1, 28, 28\); the model takes \(3, 28, 28\)"),
    "with transparency": ((8, 4, 28, 28), r"\(4, 28, 28\); the model takes \(3, 28, 28\)"),
    "channels last": ((8, 28, 28, 3), r"\(28, 28, 3\); the model takes \(3, 28, 28\)"),
    "one image": ((3, 28, 28), r"the shape \(3, 28, 28\)|\(3, 28, 28\)"),
}
SIZED = ("zero-shot, a tensor", "entropy floor, a tensor", "attention cache", "a snapshot", "a monitor's function")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("entry", SIZED)
def test_images_of_another_shape_are_told_what_the_model_takes(clip: CLIPModel, entry: str, shape: str) -> None:
    given, said = SHAPES[shape]
    if entry.startswith("zero-shot") and shape == "one image":
        pytest.skip("its first axis is taken for images: there are as many labels as images, or an error of its own")
    with pytest.raises((TypeError, ValueError), match=rf"^(images|probe): .*{said}.*processor\(images"):
        ENTRIES[entry][0](clip, torch.randn(given, generator=torch.Generator().manual_seed(0)))
