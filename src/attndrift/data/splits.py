"""Which images train, validate, test and probe: fixed by the data seed, and recorded.

Images are ranked within their class by a hash of data seed, split and image id. No random generator is
involved, so the parts are the same with every version of every library, do not depend on the order of
the rows, and are nested: 40 training images a class are among the 160 of the same data seed. The probe
is taken from the front of each class's ranking, validation follows, training comes from the back, so
that probe and validation do not change with the number of training images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from attndrift.data.dataset import ImageDataset, ImageSplit
from attndrift.data.errors import DataError, some

PROBE_SIZE = 200
"""Images of a probe whose size is not given."""

PROBE_SHARE = 10
"""A probe whose size is not given takes at most one of so many images of a split that trains, and of each class."""

LEAST_PROBE = 4
"""Images that debiased CKA needs."""

Selection = Literal["test", "validation"]
Progress = Callable[[int, int], None]
Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class SplitPart:
    """Some images of a split, in ascending order of their index.

    Attributes:
        name: ``train``, ``validation``, ``test``, ``probe`` or the name given by the caller.
        split: name of the dataset's split that they are taken from.
        indices: (images,), int64, into that split.
        labels: (images,), int64.
        ids: one an image.
    """

    name: str
    split: str
    indices: Indices
    labels: Indices
    ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.indices)

    @cached_property
    def hash(self) -> str:
        """SHA-256 over the split's name and the ids with their labels."""
        lines = [
            self.split,
            *(f"{i}\t{label}" for i, label in zip(self.ids, self.labels.tolist(), strict=True)),
        ]
        # A file name may hold bytes that are no text.
        return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()

    def class_counts(self, classes: int) -> list[int]:
        """Images of each of ``classes`` classes."""
        return np.bincount(self.labels, minlength=classes).tolist()

    def to_json(self) -> dict[str, Any]:
        """Plain values: split, number, hash, indices and ids."""
        return {
            "split": self.split,
            "n": len(self),
            "hash": self.hash,
            "indices": self.indices.tolist(),
            "ids": list(self.ids),
        }


@dataclass(frozen=True, eq=False)
class Splits:
    """The four parts of one run's data. Under the selection ``test`` validation and test are one part.

    Attributes:
        source: the dataset that they are parts of.
        skipped: by split, the unreadable images that were left out: id and reason.
    """

    source: ImageDataset = field(repr=False)
    selection: Selection
    data_seed: int
    train: SplitPart
    validation: SplitPart
    test: SplitPart
    probe: SplitPart
    skipped: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def dataset(self) -> str:
        """The name of the dataset."""
        return self.source.name

    @property
    def fingerprint(self) -> str:
        """That of the dataset; the first time it reads images, which counting them does not need."""
        return self.source.fingerprint

    @property
    def parts(self) -> dict[str, SplitPart]:
        """The parts by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test, "probe": self.probe}

    @property
    def who_gets_what(self) -> str:
        """The numbers of images in words."""
        numbers = {name: len(part) for name, part in self.parts.items()}
        shared = self.selection == "test"
        return (
            f"{self.dataset}: {numbers['train']:,} images train, "
            + (f"{numbers['test']:,} validate and test" if shared else f"{numbers['validation']:,} validate")
            + f", {numbers['probe']:,} are the probe"
            + (" (shared with the test)" if shared else f", {numbers['test']:,} test")
        )

    @cached_property
    def hash(self) -> str:
        """SHA-256 over the dataset's fingerprint, the selection and all parts."""
        lines = [self.fingerprint, self.selection, *(f"{n}\t{p.hash}" for n, p in self.parts.items())]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Plain values for a run's record; equal data and settings give an equal value."""
        return {
            "dataset": self.dataset,
            "fingerprint": self.fingerprint,
            "selection": self.selection,
            "data_seed": self.data_seed,
            "hash": self.hash,
            "parts": {name: part.to_json() for name, part in self.parts.items()},
            "skipped": {split: dict(images) for split, images in self.skipped.items()},
        }


class _Ranked:
    """A split's usable images, ranked within each class."""

    def __init__(
        self, split: ImageSplit, data_seed: int, unreadable: Mapping[int, str], where: str, *, all_classes: bool = True
    ) -> None:
        self.split, self.where, self.data_seed = split, where, data_seed
        self.classes = len(split.class_names)
        self.kind = "readable " if unreadable else ""
        by_class: list[list[int]] = [[] for _ in range(self.classes)]
        for index, label in enumerate(split.labels.tolist()):
            if index not in unreadable:
                by_class[label].append(index)
        empty = [split.class_names[c] for c in range(self.classes) if not by_class[c]]
        if empty and all_classes:
            raise DataError(f"{where}: classes without {self.kind}images: {some(empty)}")
        self.ranked = [np.asarray(sorted(members, key=self._key), dtype=np.int64) for members in by_class]

    def _key(self, index: int) -> bytes:
        text = f"{self.data_seed}\0{self.split.name}\0{self.split.ids[index]}"
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()

    @property
    def counts(self) -> Indices:
        return np.asarray([len(members) for members in self.ranked], dtype=np.int64)

    def part(self, name: str, start: Indices, stop: Indices) -> SplitPart:
        """Ranks ``start[c]`` to ``stop[c]`` of every class c."""
        taken = [m[a:b] for m, a, b in zip(self.ranked, start, stop, strict=True)]
        indices = np.sort(np.concatenate(taken))
        ids = tuple(self.split.ids[i] for i in indices.tolist())
        return SplitPart(name, self.split.name, indices, self.split.labels[indices], ids)

    def need(self, asked: Indices, what: str) -> None:
        """Raise where a class has fewer images than ``asked``."""
        short = np.flatnonzero(asked > self.counts)
        if len(short):
            first = int(short[0])
            others = f" (and {len(short) - 1} more classes)" if len(short) > 1 else ""
            raise DataError(
                f"{self.where}: {what} needs {asked[first]} {self.kind}images of {self.split.class_names[first]!r}; "
                f"there are {self.counts[first]}{others}. Ask for fewer"
            )

    def _order(self, purpose: str) -> list[int]:
        """The classes in an order that decides which of them have one image more."""
        return sorted(
            range(self.classes),
            key=lambda c: hashlib.sha256(f"{self.data_seed}\0{purpose}\0{c}".encode()).digest(),
        )

    def even(self, total: int, purpose: str) -> Indices:
        """``total`` spread over the classes, counts differing by at most one."""
        base, rest = divmod(total, self.classes)
        spread = np.full(self.classes, base, dtype=np.int64)
        spread[self._order(purpose)[:rest]] += 1
        return spread

    def fill(self, total: int, purpose: str, most: Indices | None = None) -> Indices:
        """``total`` spread as evenly as ``most`` images a class allow (default: all); ``most`` if ``total`` is larger."""
        counts = self.counts if most is None else most
        if total >= counts.sum():
            return counts
        level, high = 0, int(counts.max())
        while level < high:  # the highest level at which all classes, cut off there, hold at most `total`
            middle = (level + high + 1) // 2
            if np.minimum(counts, middle).sum() <= total:
                level = middle
            else:
                high = middle - 1
        spread = np.minimum(counts, level)
        larger = [c for c in self._order(purpose) if counts[c] > level]
        spread[larger[: total - int(spread.sum())]] += 1
        return spread


def _positive(**given: int | None) -> None:
    for name, value in given.items():
        if value is not None and value < 1:
            raise DataError(f"`{name}` is {value}; it must be at least 1")


def _ranked(
    dataset: ImageDataset,
    split: ImageSplit,
    data_seed: int,
    unreadable: Literal["error", "skip"],
    progress: Progress | None,
) -> tuple[_Ranked, dict[str, str]]:
    left_out = split.unreadable(progress) if unreadable == "skip" else {}
    ranked = _Ranked(split, data_seed, left_out, f"{dataset.name}, split `{split.name}`")
    return ranked, {split.ids[index]: reason for index, reason in left_out.items()}


def _probe_counts(ranked: _Ranked, size: int | None, per_class: int | None, others: Indices | None) -> Indices:
    """Images of the probe, by class. ``others``: those that others need of a class; None where images are shared."""
    if per_class is not None:
        return np.full(ranked.classes, per_class, dtype=np.int64)
    if size is not None:
        return ranked.even(size, "probe")
    most, total = ranked.counts, PROBE_SIZE
    if others is not None:
        room = np.maximum(most - others, 0)
        total = min(PROBE_SIZE, max(LEAST_PROBE, int(most.sum()) // PROBE_SHARE))
        most = np.minimum(np.maximum(most // PROBE_SHARE, 1), room)
        most = room if most.sum() < LEAST_PROBE else most
    return ranked.fill(total, "probe", most) if most.sum() >= LEAST_PROBE else ranked.even(LEAST_PROBE, "probe")


def _check_settings(
    selection: str, unreadable: str, validation_fraction: float, validation_per_class: int | None
) -> None:
    if selection not in ("test", "validation"):
        raise DataError(f"`selection` is {selection!r}; it must be 'test' or 'validation'")
    if unreadable not in ("error", "skip"):
        raise DataError(f"`unreadable` is {unreadable!r}; it must be 'error' or 'skip'")
    if not 0 < validation_fraction < 1:
        raise DataError(f"`validation_fraction` is {validation_fraction}; it must lie between 0 and 1")
    if selection == "test" and validation_per_class is not None:
        raise DataError(
            "`validation_per_class` has no meaning under the selection `test`, which validates on the whole "
            "held-out split; use `test_limit` to shorten that, or the selection `validation`"
        )


def make_splits(
    dataset: ImageDataset,
    *,
    selection: Selection,
    data_seed: int,
    train_per_class: int | None = None,
    validation_per_class: int | None = None,
    validation_fraction: float = 0.1,
    probe_size: int | None = None,
    probe_per_class: int | None = None,
    test_limit: int | None = None,
    unreadable: Literal["error", "skip"] = "error",
    progress: Progress | None = None,
) -> Splits:
    """The parts of one run's data, a function of the data and these settings alone.

    ``test``: the training split trains; the held-out split is validation and test at once and gives the
    probe. ``validation``: training, validation and probe are disjoint parts of the training split; the
    held-out split is the test.

    Args:
        train_per_class: training images of every class; None takes all that are left.
        validation_per_class: validation images of every class (``validation`` only); None takes
            ``validation_fraction`` of each class, at least one.
        probe_size: images of the probe, class counts differing by at most one. None takes 200; where it is a part of
            the split that trains, at most a tenth of that split and of each class. ``probe_per_class`` replaces it by a
            number a class.
        test_limit: at most as many test images, spread evenly over the classes; None takes all.
        unreadable: ``skip`` decodes every image of the splits that are used and leaves out those that
            cannot be decoded; ``error`` leaves finding them to :class:`~attndrift.data.PixelStore`.
        progress: told how many images of how many are decoded, under ``skip``.

    Raises :class:`DataError` for a class without images, fewer images than asked for, a missing held-out
    split, one that trains too, and settings that are impossible.
    """
    _check_settings(selection, unreadable, validation_fraction, validation_per_class)
    _positive(
        train_per_class=train_per_class,
        validation_per_class=validation_per_class,
        probe_size=probe_size,
        probe_per_class=probe_per_class,
        test_limit=test_limit,
    )
    _refuse_one_split(dataset)
    train, train_skipped = _ranked(dataset, dataset.train, data_seed, unreadable, progress)
    test, test_skipped = _ranked(dataset, dataset.test, data_seed, unreadable, progress)
    zero = np.zeros(train.classes, dtype=np.int64)
    test_counts = test.counts if test_limit is None else test.fill(test_limit, "test")
    test_part = test.part("test", zero, test_counts)
    train_counts = np.full(train.classes, train_per_class or 1, dtype=np.int64)
    if selection == "test":
        probe_counts = _probe_counts(test, probe_size, probe_per_class, None)
        test.need(probe_counts, "the probe")
        probe = test.part("probe", zero, probe_counts)
        validation, held_out = test_part, zero
    else:
        if validation_per_class is None:
            wanted = np.floor(train.counts * validation_fraction + 0.5).astype(np.int64)
            validation_counts = np.maximum(1, wanted)
        else:
            validation_counts = np.full(train.classes, validation_per_class, dtype=np.int64)
        probe_counts = _probe_counts(train, probe_size, probe_per_class, validation_counts + 1)
        train.need(probe_counts, "the probe")
        probe = train.part("probe", zero, probe_counts)
        held_out = probe_counts + validation_counts
        train.need(held_out, "the probe and validation")
        validation = train.part("validation", probe_counts, held_out)
    train.need(held_out + train_counts, "training" if selection == "test" else "probe, validation and training")
    start = held_out if train_per_class is None else train.counts - train_counts
    return Splits(
        source=dataset,
        selection=selection,
        data_seed=data_seed,
        train=train.part("train", start, train.counts),
        validation=validation,
        test=test_part,
        probe=probe,
        skipped={dataset.train.name: train_skipped, dataset.test.name: test_skipped},
    )


def _refuse_one_split(dataset: ImageDataset) -> None:
    if dataset.train_split == dataset.test_split:
        raise DataError(
            f"{dataset.name}: the split `{dataset.train_split}` is both `train_split` and `test_split`: images of the test "
            "would train"
        )


def evaluation_part(
    dataset: ImageDataset,
    *,
    limit: int | None = None,
    data_seed: int = 0,
    unreadable: Literal["error", "skip"] = "error",
    name: str = "transfer",
    split: Literal["train", "test"] = "test",
    progress: Progress | None = None,
) -> tuple[SplitPart, dict[str, str]]:
    """Images of a transfer set's ``split``, at most ``limit``, spread evenly over its classes.

    Returns the part and the unreadable images that were left out (id and reason). A smaller limit takes
    a part of a larger one's images. Raises :class:`DataError` as :func:`make_splits` does.
    """
    _positive(limit=limit)
    ranked, skipped = _ranked(dataset, getattr(dataset, split), data_seed, unreadable, progress)
    counts = ranked.counts if limit is None else ranked.fill(limit, "test")
    return ranked.part(name, np.zeros_like(counts), counts), skipped


def monitor_part(
    dataset: ImageDataset,
    count: int,
    *,
    data_seed: int = 0,
    unreadable: Literal["error", "skip"] = "error",
    taken: Sequence[SplitPart],
    name: str = "monitor",
) -> tuple[SplitPart | None, dict[str, str]]:
    """Images of a transfer set that a run may watch while it trains, at most ``count``, spread evenly over the classes.

    They are of the set's own training split, which no run trains on, and none of them is in a part of ``taken``. Returns the part,
    None where nothing is left for it, and the unreadable images that were left out (id and reason).
    """
    _positive(count=count)
    split = dataset.train
    where = f"{dataset.name}, split `{split.name}`"
    left_out = {index: "taken" for part in taken if part.split == split.name for index in part.indices.tolist()}
    skipped: dict[str, str] = {}
    while True:
        ranked = _Ranked(split, data_seed, left_out, where, all_classes=False)
        counts = ranked.fill(count, name)
        if not counts.any():
            return None, skipped
        part = ranked.part(name, np.zeros_like(counts), counts)
        # Only these are decoded: the split may be large.
        bad = split.unreadable_among(part.indices.tolist()) if unreadable == "skip" else {}
        if not bad:
            return part, skipped
        left_out |= bad
        skipped |= {split.ids[index]: reason for index, reason in bad.items()}


def refuse_overlap(parts: Sequence[SplitPart]) -> None:
    """Raise ``ValueError`` where two parts of a dataset share an image."""
    seen: dict[tuple[str, int], str] = {}
    for part in parts:
        for index, image in zip(part.indices.tolist(), part.ids, strict=True):
            other = seen.setdefault((part.split, index), part.name)
            if other != part.name:
                raise ValueError(f"image {image!r} of split `{part.split}` is in the parts `{other}` and `{part.name}`")
