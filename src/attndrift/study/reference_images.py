"""The reference images of a run: images of another dataset, which no step trains on, and on which losses hold the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from attndrift.data.dataset import ImageDataset
from attndrift.data.errors import DataError
from attndrift.data.pixels import PixelStore
from attndrift.data.splits import SplitPart, monitor_part
from attndrift.retention.zero_shot import TextFeatures
from attndrift.study.pretrained import Pretrained
from attndrift.study.run_images import pixels_of
from attndrift.study.settings import RunSettings


@dataclass
class ReferenceSet:
    """Images of the training split of a dataset, with what losses need of them.

    Attributes:
        text: makes the text features of its class names.
    """

    dataset: ImageDataset
    part: SplitPart
    store: PixelStore
    text: Callable[[], TextFeatures]

    @classmethod
    def open(
        cls,
        dataset: ImageDataset,
        count: int,
        settings: RunSettings,
        pretrained: Pretrained,
        text: Callable[[], TextFeatures],
        cache: Path,
        *,
        taken: Sequence[SplitPart],
    ) -> ReferenceSet:
        """``count`` images, spread evenly over the classes, none of them in ``taken``.

        Raises :class:`DataError` where none is left.
        """
        part, _ = monitor_part(
            dataset, count, data_seed=settings.data_seed, unreadable=settings.unreadable, taken=taken, name="reference"
        )
        if part is None:
            raise DataError(f"`reference`: {dataset.name} has no training image left that the run is not measured on")
        return cls(dataset, part, pixels_of(dataset, part, pretrained, cache), text)

    @property
    def name(self) -> str:
        """Of the dataset."""
        return self.dataset.name

    @property
    def key(self) -> tuple[str, str]:
        """Equal for two runs exactly where the images are equal."""
        return self.dataset.fingerprint, self.part.hash

    @cached_property
    def pixels(self) -> Tensor:
        """Normalised, (images, 3, height, width), on the model's device."""
        return self.store.fetch(range(len(self.part)))

    @cached_property
    def text_features(self) -> Tensor:
        """Of the class names, (classes, dimensions), normalised."""
        return self.text().features
