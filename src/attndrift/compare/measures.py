"""What is left of a model's accuracies on a set, by every retention measure that both sides allow."""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Any

from attndrift.compare.differences import same_pixels
from attndrift.compare.resolved import ResolvedModel
from attndrift.data.dataset import ImageDataset
from attndrift.data.errors import DataError
from attndrift.data.pixels import PixelStore
from attndrift.data.sources import load_dataset
from attndrift.data.splits import SplitPart, evaluation_part, refuse_overlap
from attndrift.results.measures import MEASURES, RetentionMeasure, retention_metric
from attndrift.retention.retained import Retained
from attndrift.retention.task import Labelled, RetentionTask
from attndrift.retention.zero_shot import DEFAULT_TEMPLATES, TextFeatures

BANK_IMAGES = 5_000
"""Training images that measures learn from, at most."""

NUMBERS = {
    "base_accuracy": "{} of BASE, 0 .. 1",
    "adapted_accuracy": "{} of ADAPTED, 0 .. 1",
    "change_points": "change of the {}, percentage points",
    "retention_pct": "100 x {} of ADAPTED / BASE, percent",
    "retention_low_pct": "lower end of that retention's 95% interval, percent",
    "retention_high_pct": "upper end of that interval, percent",
    "change_low_points": "lower end of the 95% interval of the change of the {}, percentage points",
    "change_high_points": "upper end of that interval, percentage points",
}
"""What the summary of a comparison holds of a measure: the end of the name, and what it is."""


def number_name(measure: str, end: str) -> str:
    """What one of :data:`NUMBERS` is called in the summary.

    >>> number_name("zero_shot", "retention_pct"), number_name("knn", "retention_pct")
    ('retention_pct', 'knn_retention_pct')
    """
    return retention_metric(measure).replace("retention_pct", end) if "retention" in end else f"{measure}_{end}"


def measure_retention(
    base: ResolvedModel,
    adapted: ResolvedModel,
    name: str,
    *,
    limit: int | None = None,
    bank_limit: int | None = BANK_IMAGES,
    batch_size: int = 64,
    cache: Path | None = None,
) -> list[dict[str, Any]]:
    """A row a registered measure, of both sides on the held-out images of the registered dataset ``name``.

    Args:
        limit: images at most, spread over the classes; ``bank_limit`` of the set's training images, which measures learn from.

    A row has ``measure``, ``dataset``, ``n``, ``bank``, accuracies in 0..1, retention and change with their paired intervals,
    ``cost`` in words, ``seconds`` that both sides took, and ``reason`` where there is no number: a measure that one of them
    cannot have, or a base that is at chance.
    """
    dataset = load_dataset(name)
    part, _ = evaluation_part(dataset, limit=limit)
    bank, no_bank = _bank(dataset, part, bank_limit)
    tasks = _tasks(base, adapted, dataset, part, bank, batch_size, cache)
    classes = len(dataset.class_names)
    rows = []
    for measure in MEASURES:
        row = {
            "measure": measure.name, "label": measure.label, "dataset": dataset.name, "split": part.split, "n": len(part),
            "bank": len(bank) if bank is not None and measure.needs_bank else None, "classes": classes,
            "chance": 1 / classes, "cost": measure.cost,
        }  # fmt: skip
        reason = _impossible(measure, tasks, no_bank)
        numbers = _numbers(measure, (base, adapted), tasks, classes) if reason is None else {"reason": reason}
        rows.append({**_NOTHING, **row, **numbers})
    return rows


_NOTHING = dict.fromkeys(
    (*NUMBERS, "retention_pct_interval", "change_points_interval", "seconds", "base_detail", "adapted_detail", "reason")
)


def _bank(dataset: ImageDataset, part: SplitPart, limit: int | None) -> tuple[SplitPart | None, str]:
    """Training images that are none of ``part``; None, and why there are none."""
    try:
        bank, _ = evaluation_part(dataset, limit=limit, name="bank", split="train")
        refuse_overlap([bank, part])
    except DataError as error:
        return None, str(error)
    return bank, ""


def _tasks(
    base: ResolvedModel,
    adapted: ResolvedModel,
    dataset: ImageDataset,
    part: SplitPart,
    bank: SplitPart | None,
    batch_size: int,
    folder: Path | None,
) -> list[RetentionTask]:
    """The set as each side sees it: its own pixels, and its own text features where it has them."""

    @functools.cache
    def labelled(processor: Any, which: str) -> Labelled:
        chosen = part if which == "queries" else bank
        assert chosen is not None
        split = dataset.split(chosen.split)
        store = PixelStore.open(split, processor, indices=chosen.indices, cache_dir=folder)
        return Labelled(store, chosen.labels)

    shared = same_pixels(base.image_processor, adapted.image_processor)
    tasks = []
    for side in (base, adapted):
        processor = base.image_processor if shared else side.image_processor
        has_text = side.tokenizer is not None and side.view.text_encoder is not None
        text = TextFeatures.of(side.model, side.tokenizer, dataset.class_names, DEFAULT_TEMPLATES) if has_text else None
        tasks.append(
            RetentionTask(
                dataset=dataset.name,
                split=part.split,
                queries=labelled(processor, "queries"),
                class_names=dataset.class_names,
                text=text,
                bank=None if bank is None else lambda processor=processor: labelled(processor, "bank"),  # type: ignore[misc]
                batch_size=batch_size,
            )
        )
    return tasks


def _impossible(measure: RetentionMeasure, tasks: list[RetentionTask], no_bank: str) -> str | None:
    for role, task in zip(("BASE", "ADAPTED"), tasks, strict=True):
        reason = measure.impossible(text=task.text is not None, bank=task.bank is not None)
        if reason is not None:
            why = f" ({no_bank})" if measure.needs_bank and no_bank else ""
            return f"{role}: {reason}{why}"
    return None


def _numbers(
    measure: RetentionMeasure, sides: tuple[ResolvedModel, ResolvedModel], tasks: list[RetentionTask], classes: int
) -> dict[str, Any]:
    began = time.perf_counter()
    try:
        before, after = (measure.measure(side.model, task) for side, task in zip(sides, tasks, strict=True))
    except ValueError as error:
        return {"reason": str(error)}
    kept = Retained.of(before.correct, after.correct, classes)
    return {
        "base_accuracy": before.accuracy, "adapted_accuracy": after.accuracy, **kept.columns(), **kept.intervals(),
        "seconds": time.perf_counter() - began, "reason": kept.reason,
        "base_detail": before.to_json(), "adapted_detail": after.to_json(),
    }  # fmt: skip
