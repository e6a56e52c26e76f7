"""The images of all transfer sets of a run: which each set has, and the pixels, of which sets may have a share in common."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from attndrift.data.dataset import ImageDataset, ImageSplit
from attndrift.data.derived import originals, shared_pixels
from attndrift.data.device_pixels import pixels_on
from attndrift.data.errors import DataError, some
from attndrift.data.near_duplicates import CORRELATION, DISTANCE, comparable, compared_of, near_duplicates
from attndrift.data.pixels import PixelStore
from attndrift.data.splits import SplitPart, evaluation_part, monitor_part
from attndrift.study.pretrained import Pretrained
from attndrift.study.run_images import PartImages, Target, TransferSet, pixels_of
from attndrift.study.settings import RunSettings

_Chosen = NDArray[np.bool_]


@dataclass(frozen=True)
class Divided:
    """A transfer set whose images are told apart and not decoded yet; the fields as of :class:`TransferSet`."""

    dataset: ImageDataset
    evaluation: SplitPart
    guard: SplitPart | None
    monitor: SplitPart | None
    skipped: dict[str, str]
    dropped: tuple[tuple[str, str], ...] = ()
    compared: dict[str, tuple[int, int]] = field(default_factory=dict)


def divide(dataset: ImageDataset, settings: RunSettings, *, first: bool, text: bool = True) -> Divided:
    """The parts of a set as the settings choose them; only the ``first`` one of a run has images for monitor and guards.

    ``text``: whether the model has a text tower, without which there is nothing to monitor.
    """
    held_out, skipped = evaluation_part(
        dataset, limit=settings.transfer_limit, data_seed=settings.data_seed, unreadable=settings.unreadable
    )
    guarded = settings.guard_probe_per_class if first else None
    guard, evaluation = _kept_apart(_classes_mixed(held_out), guarded, len(dataset.class_names))
    monitor = None
    if first and text and settings.monitor_zero_shot_images:
        monitor, more = monitor_part(
            dataset, settings.monitor_zero_shot_images, data_seed=settings.data_seed,
            unreadable=settings.unreadable, taken=[held_out],
        )  # fmt: skip
        skipped |= more
    return Divided(dataset, evaluation, guard, monitor, skipped)


def without_guarded(sets: Sequence[Divided]) -> list[Divided]:
    """The sets without the images that a guard sees in another one of them, such as the whole set of a class half."""
    guarded = [_places(one.dataset, one.guard) for one in sets if one.guard is not None]
    found = []
    for one in sets:
        split, rows = _places(one.dataset, one.evaluation)
        kept = np.ones(len(rows), dtype=bool)
        for other, taken in guarded:
            if (split.dataset, split.name, split.fingerprint) == (other.dataset, other.name, other.fingerprint):
                kept &= ~np.isin(rows, taken)
        found.append(one if kept.all() else replace(one, evaluation=_chosen(one.evaluation, kept)))
    return found


def _places(dataset: ImageDataset, part: SplitPart) -> tuple[ImageSplit, NDArray[np.int64]]:
    """The images of a part in the split that they were made of, before all corruption."""
    split, rows = originals(dataset.split(part.split))
    return split, rows[part.indices]


def without_copies(one: Divided, target: Target, settings: RunSettings, cache_dir: Path) -> Divided:
    """The set without near-duplicates of images that the target trains on, under ``duplicates: drop``.

    Otherwise raises :class:`DataError` where there is one, with their number and examples.
    """
    train, other = _places(target.dataset, target.splits.train), _places(one.dataset, one.evaluation)
    if not (comparable(train[0]) and comparable(other[0])):
        return one
    sizes = {
        f"training images of {target.dataset.name}": len(train[1]),
        f"images of {one.dataset.name}": len(other[1]),
    }
    some_of = {whose: (compared_of(count), count) for whose, count in sizes.items()}
    one = replace(one, compared={whose: pair for whose, pair in some_of.items() if pair[0] < pair[1]})
    pairs = near_duplicates(train, other, cache_dir)
    if not pairs:
        return one
    named = tuple((train[0].ids[copy], other[0].ids[index]) for copy, index in pairs)
    if settings.duplicates == "error":
        examples = some((f"{own} is {copy} of the target" for copy, own in named), 3)
        raise DataError(
            f"the transfer set {one.dataset.name!r} has {len(named)} of {len(one.evaluation)} images that are near-duplicates "
            f"of images that the target {target.dataset.name!r} trains on ({DISTANCE} of 64 bits of a perceptual hash apart at "
            f"most, correlation {CORRELATION} at least): {examples}. Their accuracy would not be zero-shot. Leave them out with "
            "`duplicates: drop`, or choose another set"
        )
    kept = ~np.isin(other[1], [index for _, index in pairs])
    return replace(one, evaluation=_chosen(one.evaluation, kept), dropped=named)


def used_of(dataset: ImageDataset, sets: Sequence[TransferSet]) -> list[SplitPart]:
    """The training images of ``dataset`` that a run is measured on in ``sets``, also where those are made of it or it of them."""
    split = dataset.train
    whole, rows = originals(split)
    found = []
    for item in sets:
        for images in item.parts:
            other, taken = _places(item.dataset, images.part)
            if (other.dataset, other.name, other.fingerprint) == (whole.dataset, whole.name, whole.fingerprint):
                where = np.flatnonzero(np.isin(rows, taken))
                ids = tuple(split.ids[index] for index in where.tolist())
                found.append(SplitPart(images.part.name, split.name, where, split.labels[where], ids))
    return found


def open_sets(
    divided: Sequence[Divided], settings: RunSettings, pretrained: Pretrained, cache_dir: Path
) -> list[TransferSet]:
    """The sets with their pixels; those of the evaluation and of the bank are decoded once for all sets."""
    evaluations = open_together([(one.dataset, one.evaluation) for one in divided], pretrained, cache_dir)

    @cache
    def banks() -> list[PartImages]:
        parts = [_bank(one.dataset, settings) for one in divided]
        return open_together(parts, pretrained, cache_dir)

    def bank(number: int) -> PartImages:
        return banks()[number]

    def images(dataset: ImageDataset, part: SplitPart | None) -> PartImages | None:
        return None if part is None else PartImages(part, pixels_of(dataset, part, pretrained, cache_dir))

    return [
        TransferSet(
            one.dataset.name, one.dataset, None, evaluation,
            monitor=images(one.dataset, one.monitor), guard=images(one.dataset, one.guard), skipped=one.skipped,
            bank=partial(bank, number),
        )
        for number, (one, evaluation) in enumerate(zip(divided, evaluations, strict=True))
    ]  # fmt: skip


def _bank(dataset: ImageDataset, settings: RunSettings) -> tuple[ImageDataset, SplitPart]:
    part, _ = evaluation_part(
        dataset, limit=settings.bank_limit, data_seed=settings.data_seed, unreadable=settings.unreadable,
        name="bank", split="train",
    )  # fmt: skip
    return dataset, part


def open_together(
    parts: Sequence[tuple[ImageDataset, SplitPart]], pretrained: Pretrained, cache_dir: Path
) -> list[PartImages]:
    """The pixels of parts of several sets; an image that several of them have is decoded and kept once."""
    groups: dict[tuple[str, ...], list[int]] = {}
    splits: list[tuple[ImageSplit, NDArray[np.int64]]] = []
    for number, (dataset, part) in enumerate(parts):
        split, rows = shared_pixels(dataset.split(part.split))
        splits.append((split, rows[part.indices]))
        groups.setdefault((split.dataset, split.name, split.fingerprint), []).append(number)
    found: dict[int, PartImages] = {}
    for members in groups.values():
        split = splits[members[0]][0]
        if len(members) == 1 and split is parts[members[0]][0].split(split.name):
            part = parts[members[0]][1]
        else:
            part = _union(split, [splits[number][1] for number in members])
        store = pixels_on(
            PixelStore.open(split, pretrained.image_processor, indices=part.indices, cache_dir=cache_dir),
            pretrained.device,
        )
        for number in members:
            own = parts[number][1]
            whole = np.array_equal(splits[number][1], part.indices)
            found[number] = PartImages(own, store if whole else store.subset(splits[number][1]), part.hash)
    return [found[number] for number in range(len(parts))]


def _union(split: ImageSplit, rows: Sequence[NDArray[np.int64]]) -> SplitPart:
    indices = np.unique(np.concatenate(rows))
    ids = tuple(split.ids[index] for index in indices.tolist())
    return _classes_mixed(SplitPart("transfer", split.name, indices, split.labels[indices], ids))


def sharing_images(sets: Sequence[TransferSet]) -> list[list[TransferSet]]:
    """The sets in groups that share their images, in the order of the first of each."""
    groups: dict[int, list[TransferSet]] = {}
    for one in sets:
        groups.setdefault(id(one.evaluation.store.part_of()[0]), []).append(one)
    return list(groups.values())


def _classes_mixed(part: SplitPart) -> SplitPart:
    """The images in an order that mixes the classes, so that the first thousand are a fair sample of the set."""
    ids = [i.encode("utf-8", "surrogatepass") for i in part.ids]
    order = np.argsort([hashlib.sha256(i).digest() for i in ids], kind="stable")
    return SplitPart(part.name, part.split, part.indices[order], part.labels[order], tuple(part.ids[i] for i in order))


def _chosen(part: SplitPart, chosen: _Chosen, name: str | None = None) -> SplitPart:
    where = np.flatnonzero(chosen)
    ids = tuple(part.ids[i] for i in where)
    return SplitPart(name or part.name, part.split, part.indices[where], part.labels[where], ids)


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
    return _chosen(part, rank < per_class, "guard"), _chosen(part, rank >= per_class)
