"""The images of a run: those of its target, and those of its transfer sets."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attndrift.data.dataset import ImageDataset
from attndrift.data.device_pixels import pixels_on
from attndrift.data.pixels import PixelStore
from attndrift.data.splits import SplitPart, Splits, evaluation_part, monitor_part, refuse_overlap
from attndrift.process_group import Processes
from attndrift.retention.zero_shot import TextFeatures, ZeroShotResult, embed_together, evaluate_zero_shot, retention
from attndrift.study.dataset_splits import splits_of
from attndrift.study.pretrained import Pretrained
from attndrift.study.settings import RunSettings


def pixels_of(dataset: ImageDataset, part: SplitPart, pretrained: Pretrained, cache: Path) -> PixelStore:
    """The pixels of a part, as the model's own processor makes them, on the model's device."""
    split = dataset.split(part.split)
    store = PixelStore.open(split, pretrained.image_processor, indices=part.indices, cache_dir=cache)
    return pixels_on(store, pretrained.device)


@dataclass
class Target:
    """The fine-tuning target of a run: its splits, and their pixels on the device of the model."""

    dataset: ImageDataset
    splits: Splits
    train: PixelStore
    validation: PixelStore
    test: PixelStore
    probe: PixelStore

    @classmethod
    def open(cls, dataset: ImageDataset, settings: RunSettings, pretrained: Pretrained, cache: Path) -> Target:
        """The target as the settings split it; ``cache`` keeps its decoded pixels."""
        splits = splits_of(dataset, settings)
        stores = {name: pixels_of(dataset, part, pretrained, cache) for name, part in splits.parts.items()}
        return cls(dataset, splits, **stores)

    @property
    def class_names(self) -> tuple[str, ...]:
        """As spoken, in label order."""
        return self.dataset.class_names

    def probe_batches(self, batch_size: int) -> Iterator[Tensor]:
        """The probe images, normalised, in batches."""
        for start in range(0, len(self.splits.probe), batch_size):
            yield self.probe.fetch(range(start, min(start + batch_size, len(self.splits.probe))))


@dataclass(frozen=True)
class PartImages:
    """A part of a dataset with its pixels; position i of one is position i of the other."""

    part: SplitPart
    store: PixelStore


@dataclass(frozen=True)
class TransferSet:
    """A zero-shot set: images that no run trains on, and the features of its class names.

    Attributes:
        evaluation: the images of the final retention, from the held-out split.
        monitor: those that a run watches while it trains, from the set's own training split.
        guard: those that guards measure on, from the held-out split.
        skipped: unreadable images that were left out: id and reason.
        anchors: the pretrained model's embeddings of the first images of a part, by part and number.

    Raises ``ValueError`` where two of the parts share an image.
    """

    name: str
    dataset: ImageDataset
    text: TextFeatures | None
    evaluation: PartImages
    monitor: PartImages | None = None
    guard: PartImages | None = None
    skipped: dict[str, str] = field(default_factory=dict)
    anchors: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        refuse_overlap([one.part for one in self.parts])

    @property
    def parts(self) -> list[PartImages]:
        """All images of the set that the run uses."""
        return [one for one in (self.evaluation, self.monitor, self.guard) if one is not None]

    @classmethod
    def open(
        cls,
        dataset: ImageDataset,
        settings: RunSettings,
        pretrained: Pretrained,
        text: TextFeatures | None,
        cache: Path,
        *,
        first: bool,
    ) -> TransferSet:
        """A set as the settings divide it; only the ``first`` one of a run has images for monitor and guards.

        ``text``: features of its class names, None without a text tower; ``cache`` keeps its decoded pixels.
        """
        held_out, skipped = evaluation_part(
            dataset, limit=settings.transfer_limit, data_seed=settings.data_seed, unreadable=settings.unreadable
        )
        guarded = settings.guard_probe_per_class if first else None
        guard, evaluation = _kept_apart(_classes_mixed(held_out), guarded, len(dataset.class_names))
        monitor = None
        if first and settings.monitor_zero_shot_images:
            monitor, more = monitor_part(
                dataset, settings.monitor_zero_shot_images, data_seed=settings.data_seed,
                unreadable=settings.unreadable, taken=[held_out],
            )  # fmt: skip
            skipped |= more

        def images(part: SplitPart) -> PartImages:
            return PartImages(part, pixels_of(dataset, part, pretrained, cache))

        return cls(
            dataset.name,
            dataset,
            text,
            images(evaluation),
            monitor=None if monitor is None else images(monitor),
            guard=None if guard is None else images(guard),
            skipped=skipped,
        )

    def retention(self, accuracy: float, pretrained: float) -> float | None:
        """Percent of the pretrained accuracy; None where that is below twice chance."""
        return retention(accuracy, pretrained, len(self.dataset.class_names))

    def text_of(self, model: torch.nn.Module, pretrained: Pretrained, settings: RunSettings) -> TextFeatures | None:
        """The features of the class names, by the text tower of ``model`` as it is now where the run trains that."""
        if self.text is None or not settings.trains_text or model is pretrained.clip:
            return self.text
        return TextFeatures.of(model, pretrained.tokenizer, self.dataset.class_names, settings.prompts)

    def evaluate(
        self,
        model: torch.nn.Module,
        pretrained: Pretrained,
        settings: RunSettings,
        *,
        images: PartImages | None = None,
        weight_drift: float | None = None,
    ) -> ZeroShotResult:
        """Zero-shot accuracy of ``model`` on ``images``, one of the set's parts; by default on those of the retention."""
        chosen = images or self.evaluation
        text = self.text_of(model, pretrained, settings)
        part, store = chosen.part, chosen.store
        # The first batch, of the size that this evaluation makes it: another size may round differently.
        size = min(settings.evaluation_batch_size, len(part))
        processes = Processes.current()
        if (part.hash, size) not in self.anchors:
            self.anchors[part.hash, size] = embed_together(pretrained.clip, store.fetch(range(size)), processes)
        return evaluate_zero_shot(
            model,
            store,
            part.labels,
            text_features=text,
            batch_size=settings.evaluation_batch_size,
            pretrained_embeddings=self.anchors[part.hash, size],
            weight_drift=weight_drift,
            preprocessing=pretrained.preprocessing,
            dataset=self.dataset.name,
            split=part.split,
            processes=processes,
        )


def _classes_mixed(part: SplitPart) -> SplitPart:
    """The images in an order that mixes the classes, so that the first thousand are a fair sample of the set."""
    ids = [i.encode("utf-8", "surrogatepass") for i in part.ids]
    order = np.argsort([hashlib.sha256(i).digest() for i in ids], kind="stable")
    return SplitPart(part.name, part.split, part.indices[order], part.labels[order], tuple(part.ids[i] for i in order))


def _kept_apart(part: SplitPart, per_class: int | None, classes: int) -> tuple[SplitPart | None, SplitPart]:
    """The first ``per_class`` images of each class, for guards, and the rest, which they never see.

    Raises ``ValueError`` where a class would have nothing left to be evaluated on.
    """
    if per_class is None:
        return None, part
    # How many images of the same class come before each one.
    rank = np.zeros(len(part), dtype=np.int64)
    for label in range(classes):
        own = part.labels == label
        rank[own] = np.arange(int(own.sum()))
        if own.any() and own.sum() <= per_class:
            raise ValueError(
                f"`guard_probe_per_class` is {per_class}, and class {label} of the transfer set has {int(own.sum())} images: "
                "some must be left that the guard does not see"
            )

    def those(chosen: NDArray[np.bool_], name: str) -> SplitPart:
        where = np.flatnonzero(chosen)
        return SplitPart(name, part.split, part.indices[where], part.labels[where], tuple(part.ids[i] for i in where))

    return those(rank < per_class, "guard"), those(rank >= per_class, part.name)
