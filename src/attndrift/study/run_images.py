"""The images of a run: those of its target, and those of its transfer sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from attndrift.data.dataset import ImageDataset
from attndrift.data.device_pixels import pixels_on
from attndrift.data.pixels import PixelStore
from attndrift.data.splits import SplitPart, Splits, refuse_overlap
from attndrift.process_group import Processes
from attndrift.retention.retained import retention
from attndrift.retention.shared_embeddings import SharedEmbeddings
from attndrift.retention.zero_shot import (
    TextFeatures,
    ZeroShotResult,
    embed_together,
    evaluate_zero_shot,
    zero_shot_of_embeddings,
)
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
    """A part of a dataset with its pixels; position i of one is position i of the other.

    ``shared_hash``: of all images that are embedded with them, of which other sets may have a part.
    """

    part: SplitPart
    store: PixelStore
    shared_hash: str = ""


@dataclass(frozen=True)
class TransferSet:
    """A zero-shot set: images that no run trains on, and the features of its class names.

    Attributes:
        evaluation: the images of the final retention, from the held-out split.
        monitor: those that a run watches while it trains, from the set's own training split.
        guard: those that guards measure on, from the held-out split.
        skipped: unreadable images that were left out: id and reason.
        dropped: near-duplicates that were left out: the id of the target's image, and its own.
        compared: where not all images were compared to find them, how many of how many, by whose they are.
        bank: gives images of the set's own training split, which measures such as k-NN learn from.
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
    dropped: tuple[tuple[str, str], ...] = ()
    compared: dict[str, tuple[int, int]] = field(default_factory=dict)
    bank: Callable[[], PartImages] = field(kw_only=True)
    anchors: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        refuse_overlap([one.part for one in self.parts])

    @property
    def parts(self) -> list[PartImages]:
        """All images of the set that the run uses."""
        return [one for one in (self.evaluation, self.monitor, self.guard) if one is not None]

    def retention(self, accuracy: float, pretrained: float, n: int) -> float | None:
        """Percent of the pretrained accuracy on ``n`` images; None where that is at chance."""
        return retention(accuracy, pretrained, len(self.dataset.class_names), n)

    def text_of(self, shared: SharedEmbeddings, pretrained: Pretrained, settings: RunSettings) -> TextFeatures | None:
        """The features of the class names, by the text tower of the model as it is now where the run trains that."""
        if self.text is None or not settings.trains_text or shared.model is pretrained.model:
            return self.text
        return shared.text(pretrained.tokenizer, self.dataset.class_names, self.text.templates)

    def evaluate(
        self,
        shared: SharedEmbeddings,
        pretrained: Pretrained,
        settings: RunSettings,
        *,
        weight_drift: float | None = None,
    ) -> ZeroShotResult:
        """Zero-shot accuracy of the model of ``shared`` on the images of the retention.

        Raises ``ValueError`` without a text tower.
        """
        text = self.text_of(shared, pretrained, settings)
        if text is None:
            raise ValueError("`measures`: zero_shot needs class names as text, and the model has no text tower")
        part, store, size = self.evaluation.part, self.evaluation.store, settings.evaluation_batch_size
        key = (f"{part.hash} {self.evaluation.shared_hash}", size)
        embeddings, count = shared.of(store), min(size, len(part))
        if key not in self.anchors and shared.model is pretrained.model:
            self.anchors[key] = embeddings[:count].clone()
        elif key not in self.anchors:
            before = SharedEmbeddings(pretrained.model, batch_size=size, processes=shared.processes)
            self.anchors[key] = before.first_of(store, count)
        return zero_shot_of_embeddings(
            embeddings,
            part.labels,
            text,
            batch_size=size,
            pretrained_embeddings=self.anchors[key],
            weight_drift=weight_drift,
            preprocessing=pretrained.preprocessing,
            dataset=self.dataset.name,
            split=part.split,
        )

    def watch(
        self, model: torch.nn.Module, pretrained: Pretrained, settings: RunSettings, images: PartImages
    ) -> ZeroShotResult:
        """Zero-shot accuracy of ``model`` on another one of the set's parts, such as those that a run monitors."""
        part, store = images.part, images.store
        processes = Processes.current()
        # The first batch, of the size that this evaluation makes it: another size may round differently.
        size = min(settings.evaluation_batch_size, len(part))
        if (part.hash, size) not in self.anchors:
            self.anchors[part.hash, size] = embed_together(pretrained.model, store.fetch(range(size)), processes)
        shared = SharedEmbeddings(model, batch_size=settings.evaluation_batch_size, processes=processes)
        return evaluate_zero_shot(
            model,
            store,
            part.labels,
            text_features=self.text_of(shared, pretrained, settings),
            batch_size=settings.evaluation_batch_size,
            pretrained_embeddings=self.anchors[part.hash, size],
            preprocessing=pretrained.preprocessing,
            dataset=self.dataset.name,
            split=part.split,
            processes=processes,
        )
