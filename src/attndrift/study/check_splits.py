"""The part of a study's check that concerns splits: whether the sets have the images that the settings ask for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from attndrift.data.dataset import Content, ImageDataset
from attndrift.data.derived import half_of
from attndrift.data.derived_names import corruption_of
from attndrift.data.errors import DataError, some
from attndrift.data.readers import GeneratedReader
from attndrift.data.registry import DatasetSpec
from attndrift.data.splits import PROBE_SIZE, evaluation_part
from attndrift.study.check_findings import Check
from attndrift.study.dataset_splits import splits_key, splits_of
from attndrift.study.settings import RunSettings, Study


@dataclass(frozen=True)
class SetContents:
    """What is known of a set before a run.

    Attributes:
        counts: images a class (classes,), int64, by split; a split that could not be counted is not there.
        templates: prompt templates that came with the images; None where there are none, or where they are not read yet.
        prompts: the named ensemble made for it.
    """

    name: str
    class_names: tuple[str, ...]
    train_split: str
    test_split: str | None
    counts: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    templates: tuple[str, ...] | None = None
    prompts: str = "default"

    @property
    def counted(self) -> bool:
        """Whether all its splits are counted."""
        return {self.train_split, *([self.test_split] if self.test_split else [])} <= set(self.counts)

    def derived(self, spec: DatasetSpec) -> SetContents:
        """What is known of the set ``spec``, which is made of this one."""
        names, counts = self.class_names, dict(self.counts)
        for step in spec.derive:
            if corruption_of(step) is None:
                first, last = half_of(len(names), step, spec.name)
                names, counts = names[first:last], {split: one[first:last] for split, one in counts.items()}
        return replace(self, name=spec.name, class_names=names, counts=counts)

    def without_images(self, most: int | None = None) -> ImageDataset:
        """A dataset of these classes with as many images of each, at most ``most``, of which none can be decoded."""

        def opener(name: str) -> Content:
            counts = self.counts[name] if most is None else np.minimum(self.counts[name], most)
            labels = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
            reader = GeneratedReader(len(labels), lambda index: np.zeros((1, 1, 3), dtype=np.uint8))
            return reader, labels, [f"{name}:{index}" for index in range(len(labels))]

        spec = DatasetSpec(self.name, self.name, train_split=self.train_split, test_split=self.test_split)
        openers = {name: (lambda name=name: opener(name)) for name in self.counts}
        return ImageDataset(spec, self.class_names, openers, {})


def check_splits(found: Check, study: Study, known: Mapping[str, SetContents]) -> None:
    """Add why the sets in ``known`` (by ``dataset NAME``, ``transfer set NAME``) cannot be split as runs ask for.

    What several runs meet is one finding.
    """
    answers: dict[tuple[object, ...], str | None] = {}
    refused: dict[tuple[str, str], list[str]] = {}
    for run in study.runs:
        settings = run.settings
        what = f"dataset {settings.dataset}"
        if what in known:
            key: tuple[object, ...] = (what, splits_key(settings), not settings.facts.adapts)
            if key not in answers:
                answers[key] = why_no_splits(known[what], settings)
            if answers[key] is not None:
                refused.setdefault((what, str(answers[key])), []).append(run.run_id)
        for name in settings.transfer:
            what = f"transfer set {name}"
            if what in known:
                guard = settings.guard_probe_per_class if name == settings.transfer[0] else None
                key = (what, guard, guard and (settings.transfer_limit, settings.data_seed))
                if key not in answers:
                    answers[key] = why_no_evaluation(known[what], settings, guard)
                if answers[key] is not None:
                    refused.setdefault((what, str(answers[key])), []).append(run.run_id)
    for (what, reason), runs in refused.items():
        whose = "" if len(runs) == len(study.runs) else f" (for {some(runs, 3)})"
        remedy = (
            "name another with --set transfer=[NAME], or change `guard_probe_per_class` or `transfer_limit`"
            if what.startswith("transfer")
            else "add images, or change the settings with --set (probe_size, train_per_class, validation_per_class, ...)"
        )
        found.add(what, "problem", f"{reason}{whose}", remedy)


def why_no_splits(contents: SetContents, settings: RunSettings) -> str | None:
    """Why a run cannot have the splits that its settings ask for; None where it can, or where that is not known."""
    if len(contents.class_names) < 2 and settings.facts.adapts:
        return f"it has {len(contents.class_names)} class, and a classifier needs at least 2"
    if not contents.counted:
        return None
    try:
        # No image is decoded to plan, so those that cannot be read are not known.
        planned = settings.model_copy(update={"unreadable": "error"})
        splits_of(contents.without_images(_enough(settings, len(contents.class_names))), planned)
    except DataError as error:
        return str(error).removeprefix(f"{contents.name}, ").removeprefix(f"{contents.name}: ")
    return None


def _enough(settings: RunSettings, classes: int) -> int:
    """Images a class that suffice for these settings: a set that has more is not ranked whole to plan."""
    asked = settings.probe_per_class or math.ceil((settings.probe_size or PROBE_SIZE) / classes)
    asked += (settings.validation_per_class or 1) + (settings.train_per_class or 1)
    # Of a class, `validation_fraction` is left out too, rounded.
    return math.ceil((asked + 2) / (1 - settings.validation_fraction))


def why_no_evaluation(contents: SetContents, settings: RunSettings, guard: int | None) -> str | None:
    """Why zero-shot accuracy cannot be had on a set; None where it can, or where that is not known.

    ``guard``: images a class that a guard sees, and that are not evaluated.
    """
    if len(contents.class_names) < 2:
        return f"it has {len(contents.class_names)} class, and zero-shot accuracy needs at least 2"
    if not contents.counted:
        return None
    try:
        part, _ = evaluation_part(
            contents.without_images(None if guard else 1),
            limit=settings.transfer_limit if guard else None,
            data_seed=settings.data_seed,
        )
    except DataError as error:
        return str(error).removeprefix(f"{contents.name}, ").removeprefix(f"{contents.name}: ")
    counts = part.class_counts(len(contents.class_names))
    short = [label for label, count in enumerate(counts) if guard and 0 < count <= guard]
    if short:
        return (
            f"`guard_probe_per_class` is {guard}, and of {contents.class_names[short[0]]!r} {counts[short[0]]} images are "
            "evaluated (`transfer_limit`): some must be left that the guard does not see"
        )
    return None
