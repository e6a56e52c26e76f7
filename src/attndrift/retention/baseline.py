"""What a model can do before anything is done to it: zero-shot accuracy, with what it is an accuracy of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attndrift.data.errors import DatasetUnavailable
from attndrift.data.pixels import PixelStore
from attndrift.data.sources import load_dataset, spec_of
from attndrift.data.splits import evaluation_part
from attndrift.models.backbone import backbone_of
from attndrift.models.errors import ModelError
from attndrift.models.load import describe, has_text_tower, load_model, load_processor
from attndrift.retention.retained import accuracy_limits, why_no_retention
from attndrift.retention.zero_shot import DEFAULT_TEMPLATES, TextFeatures, evaluate_zero_shot

# Imports inside functions: these packages take time to load, which only who needs them pays.

DEFAULT_SETS = ("objects", "cifar100")
"""The generated set, which is always there, and the one that the first report measured."""

Progress = Callable[[str, int, int], None]
"""Told what is being done, how many images are done, and of how many."""


@dataclass(frozen=True)
class ZeroShotScore:
    """The zero-shot accuracy of a model on one set.

    Attributes:
        dataset, split: what was classified.
        accuracy: top-1, 0..1.
        low, high: 95% Wilson interval over images.
        n: images.
        chance: 1 / classes.
        remark: why retention would be null with this accuracy, or None.
        evidence: class names, templates, preprocessing, hash of the image ids.
    """

    dataset: str
    split: str
    accuracy: float
    low: float
    high: float
    n: int
    chance: float
    remark: str | None
    evidence: dict[str, Any]


@dataclass(frozen=True)
class Baseline:
    """Scores of one model; ``absent`` holds the sets that could not be had, with the reason."""

    model: dict[str, Any]
    scores: list[ZeroShotScore]
    absent: dict[str, str]


def _without_text(model: str | Path, what: str) -> str:
    return (
        f"{model}: {what} has no text tower, and zero-shot accuracy needs one. A study measures knn and "
        "linear_probe of it (`measures`), with method: none of the pretrained model"
    )


def refuse_zero_shot(model: str | Path, sets: Sequence[str]) -> None:
    """Raise what :func:`zero_shot_baseline` would of a model without text tower or an unknown set, without loading either."""
    for name in sets:
        spec_of(name)
    if not has_text_tower(model):
        raise ModelError(_without_text(model, "the model"))


def zero_shot_baseline(
    model: str | Path,
    sets: Sequence[str] = DEFAULT_SETS,
    *,
    limit: int | None = None,
    templates: Sequence[str] = DEFAULT_TEMPLATES,
    batch_size: int = 200,
    progress: Progress = lambda what, done, total: None,
) -> Baseline:
    """Zero-shot accuracy of a pretrained model on the held-out splits of ``sets``.

    Args:
        model: as :func:`attndrift.models.load.load_model` takes it.
        sets: datasets of the registry. One that is known and not to be had here is left out, with its reason.
        limit: images a set, spread evenly over classes; None for all.
        templates: prompts; ``{class}`` stands for the class name.
        batch_size: images a forward pass.
        progress: see :data:`Progress`.

    Raises :class:`~attndrift.models.ModelError` and :class:`~attndrift.data.DataError` for an unknown name.
    """
    loaded = load_model(model)
    if backbone_of(loaded).text_encoder is None:
        raise ModelError(_without_text(model, f"a {type(loaded).__name__}"))
    tokenizer, processor = load_processor(model)
    keys = ("do_resize", "size", "resample", "do_center_crop", "crop_size", "image_mean", "image_std")
    preprocessing = {key: processor.to_dict().get(key) for key in keys}
    scores, absent = [], {}
    for name in sets:
        try:
            dataset = load_dataset(name)
            part, _ = evaluation_part(dataset, limit=limit, data_seed=0)
        except DatasetUnavailable as error:
            absent[name] = str(error)
            continue
        store = PixelStore.open(
            dataset.split(part.split),
            processor,
            indices=part.indices,
            progress=lambda done, total, name=name: progress(f"{name}: images", done, total),  # type: ignore[misc]
        )
        text = TextFeatures.of(loaded, tokenizer, dataset.class_names, templates)

        def batches(store: PixelStore = store, name: str = name) -> Any:
            for start in range(0, len(store), batch_size):
                yield store.fetch(range(start, min(start + batch_size, len(store))))
                progress(f"{name}: zero-shot", min(start + batch_size, len(store)), len(store))

        result = evaluate_zero_shot(
            loaded,
            batches(),
            part.labels,
            text_features=text,
            dataset=name,
            split=part.split,
            preprocessing=preprocessing,
        )
        low, high = accuracy_limits(result.correct)
        scores.append(
            ZeroShotScore(
                dataset=name,
                split=part.split,
                accuracy=result.accuracy,
                low=low,
                high=high,
                n=result.n,
                chance=1.0 / len(dataset.class_names),
                remark=why_no_retention(result.accuracy, len(dataset.class_names), result.n),
                evidence={**result.evidence, "ids_sha256": part.hash, "interval": "Wilson, 95%, over images"},
            )
        )
    return Baseline(describe(model, loaded), scores, absent)
