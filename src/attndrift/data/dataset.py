"""Images of a dataset by index, with labels, ids and where they came from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from attndrift.data.columns import spoken_names, unique_ids
from attndrift.data.decoding import decode_image, quiet_decoding
from attndrift.data.derived_names import share_classes
from attndrift.data.errors import DataError, UnreadableImageError
from attndrift.data.prompts import clean_class_name
from attndrift.data.readers import Reader
from attndrift.data.registry import DatasetSpec
from attndrift.data.split_names import chosen_splits

Content = tuple[Reader, NDArray[np.int64], list[str]]
"""Images, labels (images,) and ids of one split."""


class ImageSplit:
    """Images of one split by index, decoded when asked for.

    Attributes:
        name: of the split.
        labels: (images,), int64, indices into ``class_names``.
        ids: one unique id an image.
        class_names: as in the dataset.
        reader: the raw images.
    """

    def __init__(
        self,
        dataset: str,
        name: str,
        reader: Reader,
        labels: NDArray[np.int64],
        ids: Sequence[str],
        class_names: tuple[str, ...],
    ) -> None:
        if not len(reader) == len(labels) == len(ids):
            raise DataError(f"{dataset}: split `{name}` has {len(reader)} images, {len(labels)} labels, {len(ids)} ids")
        self.dataset, self.name, self.class_names = dataset, name, class_names
        self.labels, self.ids = labels, list(ids)
        self.reader = reader
        self._unreadable: dict[int, str] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def decode(self, index: int) -> Image.Image:
        """As ``split[index]``, for callers that decode many images inside ``quiet_decoding()``."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.dataset}: split `{self.name}` has images 0 to {len(self) - 1}, not {index}")
        where = f"{self.dataset}/{self.ids[index]}"
        return decode_image(self.reader.raw(int(index), where), where)

    def __getitem__(self, index: int) -> Image.Image:
        """The image at ``index``, RGB. Raises :class:`UnreadableImageError` where it cannot be decoded."""
        with quiet_decoding():
            return self.decode(index)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the images alone (see :meth:`attndrift.data.readers.Reader.digest`)."""
        return self.reader.digest()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over images, labels, ids and class names."""
        total = hashlib.sha256(self.digest.encode())
        total.update(np.ascontiguousarray(self.labels, dtype="<i8").tobytes())
        total.update(json.dumps([self.ids, self.class_names]).encode())
        return total.hexdigest()

    def unreadable(self, progress: Callable[[int, int], None] | None = None) -> dict[int, str]:
        """Index and reason of every image that cannot be decoded; decodes all images once.

        ``progress`` is told how many images of how many are done.
        """
        if self._unreadable is None:
            self._unreadable = self.unreadable_among(range(len(self)), progress)
        return dict(self._unreadable)

    def unreadable_among(
        self, indices: Sequence[int], progress: Callable[[int, int], None] | None = None
    ) -> dict[int, str]:
        """As :meth:`unreadable`, of some images."""
        found: dict[int, str] = {}
        with quiet_decoding():
            for done, index in enumerate(indices, 1):
                try:
                    self.decode(index)
                except UnreadableImageError as error:
                    found[index] = error.reason
                if progress is not None:
                    progress(done, len(indices))
        return found


class ImageDataset:
    """A dataset with its splits, class names and where it came from.

    Attributes:
        name: short name.
        class_names: in label order, as they are spoken (underscores are spaces).
        splits: names of all splits.
        train_split, test_split: names of the splits that train and test; ``test_split`` is None where
            there is no held-out split, and asking for it is an error that says so.
        origin: source of the images, see :func:`refuse_same_origin`.
        derive: how it was made of ``base``, step by step; empty, and None, for a set of its own.
        evaluation_only: whether no run may train on it.
        prompts: named prompt ensemble made for it.
        templates: prompt templates that came with the images; None where there are none.
        source: provenance, plain values for a record.
    """

    def __init__(
        self,
        spec: DatasetSpec,
        classes: Sequence[str],
        splits: Mapping[str, Callable[[], Content]],
        source: Mapping[str, Any],
        *,
        templates: tuple[str, ...] | None = None,
        base: ImageDataset | None = None,
    ) -> None:
        self.name, self.origin, self.prompts = spec.name, spec.origin, spec.prompts
        self.derive, self.evaluation_only = spec.derive, spec.evaluation_only
        self.templates, self.base = templates, base
        spoken = spoken_names(spec, classes, spec.name)
        self.class_names = tuple(clean_class_name(name) for name in spoken)
        self._openers = dict(splits)
        self._opened: dict[str, ImageSplit] = {}
        self.splits = tuple(self._openers)
        self.train_split, self.test_split = chosen_splits(spec, self.splits)
        self.source: dict[str, Any] = {
            "name": self.name,
            "origin": self.origin,
            "licence": spec.licence,
            "splits": list(self.splits),
            "train_split": self.train_split,
            "test_split": self.test_split,
            "class_names": list(self.class_names),
            "class_names_in_data": list(classes),
            **source,
        }

    def split(self, name: str) -> ImageSplit:
        """The split called ``name``; :class:`DataError`, with the names there are, for an unknown one."""
        if name not in self._openers:
            raise DataError(f"{self.name}: no split `{name}`. The splits are {', '.join(self.splits)}")
        if name not in self._opened:
            reader, labels, ids = self._openers[name]()
            if len(labels) == 0:
                raise DataError(f"{self.name}: the split `{name}` holds no images")
            self._opened[name] = ImageSplit(self.name, name, reader, labels, unique_ids(ids), self.class_names)
        return self._opened[name]

    @property
    def train(self) -> ImageSplit:
        """The split that trains."""
        return self.split(self.train_split)

    @property
    def test(self) -> ImageSplit:
        """The held-out split; :class:`DataError` where there is none."""
        if self.test_split is None:
            raise DataError(
                f"{self.name}: no held-out split. The splits are {', '.join(self.splits)}; name one as "
                f"`test_split`, or put held-out images into a split called `test`"
            )
        return self.split(self.test_split)

    def digests(self) -> set[str]:
        """SHA-256 over the images alone, of the training and of the held-out split."""
        used = [self.train, self.test] if self.test_split else [self.train]
        return {split.digest for split in used}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the training and the held-out split."""
        parts = [self.train.fingerprint, self.test.fingerprint if self.test_split else ""]
        return hashlib.sha256("".join(parts).encode()).hexdigest()


def refuse_same_origin(target: ImageDataset, transfer: Sequence[ImageDataset]) -> None:
    """Raise :class:`DataError` where a transfer set shares the target's origin or its very images.

    Accuracy on classes that were trained, or on their photographs, is not zero-shot. Base and new classes of one set
    have neither in common.
    """
    for other in transfer:
        disjoint = not share_classes(target.derive, other.derive)
        if other.origin == target.origin and not (disjoint and set(target.class_names).isdisjoint(other.class_names)):
            raise DataError(
                f"the transfer set {other.name!r} and the target {target.name!r} are drawn from one source "
                f"({target.origin}); its accuracy would not be zero-shot. Choose another transfer set"
            )
        if target.digests() & other.digests():
            raise DataError(
                f"the transfer set {other.name!r} holds the same images as the target {target.name!r}; "
                "its accuracy would not be zero-shot. Choose another transfer set"
            )
