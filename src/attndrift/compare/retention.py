"""What is left of zero-shot accuracy, with paired intervals over images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attndrift.compare.differences import same_pixels
from attndrift.compare.errors import CompareError
from attndrift.compare.resolved import ResolvedModel
from attndrift.data.pixels import PixelStore
from attndrift.data.registry import DATASETS, find_spec
from attndrift.data.sources import load_dataset
from attndrift.data.splits import evaluation_part
from attndrift.metrics.representation import embedding_drift
from attndrift.retention.retained import Retained
from attndrift.retention.zero_shot import (
    DEFAULT_TEMPLATES,
    TextFeatures,
    evaluate_zero_shot,
    refuse_same_source,
)


def check_zero_shot(base: ResolvedModel, adapted: ResolvedModel, name: str) -> None:
    """Raise ``ValueError`` for an unknown dataset, one that a side was trained on, and a side without tokenizer."""
    refuse_trained_on(base, adapted, name)
    for role, side in (("BASE", base), ("ADAPTED", adapted)):
        if side.view.text_encoder is None:
            raise CompareError(
                f"--zero-shot: {role} ({side.source}, a {type(side.model).__name__}) has no text tower, and class names are "
                "texts; leave --zero-shot out"
            )
        if side.tokenizer is None:
            raise CompareError(f"--zero-shot: {role} ({side.source}) has no tokenizer; save the model's own beside it")


def refuse_trained_on(base: ResolvedModel, adapted: ResolvedModel, *names: str) -> None:
    """Raise ``ValueError`` for an unknown dataset among ``names``, and one that a side was trained on."""
    for origin in [find_spec(name).origin for name in names]:
        for side in (base, adapted):
            if side.trained_on is not None and side.trained_on in DATASETS:
                refuse_same_source(find_spec(side.trained_on).origin, origin)


def measure_zero_shot(
    base: ResolvedModel,
    adapted: ResolvedModel,
    name: str,
    *,
    weight_drift: float,
    limit: int | None = None,
    batch_size: int = 64,
    cache: Path | None = None,
) -> dict[str, Any]:
    """Zero-shot accuracy of both sides on the held-out images of the registered dataset ``name``.

    Each side embeds the class names with its own text encoder and the images with its own processor. See
    :func:`check_zero_shot` for what is refused beforehand.

    Args:
        weight_drift: between the two; with it, embeddings that are bit for bit equal raise.
        limit: at most this many images, spread over the classes.

    Returns accuracies in 0..1, ``retention_pct`` (None, with ``retention_reason``, where the base is below
    twice chance), the change in percentage points, each with a paired
    interval over images, and what the accuracies are accuracies of.
    """
    dataset = load_dataset(name)
    part, _ = evaluation_part(dataset, limit=limit)
    split = dataset.split(part.split)
    shared = same_pixels(base.image_processor, adapted.image_processor)
    store = PixelStore.open(split, base.image_processor, indices=part.indices, cache_dir=cache)
    own = store if shared else PixelStore.open(split, adapted.image_processor, indices=part.indices, cache_dir=cache)
    labels = store.labels
    results, texts = [], []
    for side, images in ((base, store), (adapted, own)):
        guarded = side is adapted and shared
        texts.append(TextFeatures.of(side.model, side.tokenizer, dataset.class_names, DEFAULT_TEMPLATES))
        results.append(
            evaluate_zero_shot(
                side.model,
                images,
                labels,
                text_features=texts[-1],
                batch_size=batch_size,
                pretrained=base.model if guarded else None,
                weight_drift=weight_drift if guarded else None,
            )
        )
    before, after = results
    classes = len(dataset.class_names)
    kept = Retained.of(before.correct, after.correct, classes)
    return {
        "dataset": dataset.name,
        "split": part.split,
        "n": before.n,
        "classes": classes,
        "chance": 1.0 / classes,
        "base_accuracy": before.accuracy,
        "adapted_accuracy": after.accuracy,
        "change_points": kept.change_points,
        "retention_pct": kept.retention_pct,
        **kept.intervals(),
        "retention_reason": kept.reason,
        "templates": list(DEFAULT_TEMPLATES),
        "class_names": list(dataset.class_names),
        "preprocessing": {"base": _settings(base), "adapted": _settings(adapted)},
        "text_embedding_drift": float(embedding_drift(*(text.features for text in texts))),
        "text": "each model's own text encoder and tokenizer",
    }


def _settings(side: ResolvedModel) -> dict[str, Any]:
    values = side.image_processor.to_dict()
    names = ("size", "resample", "do_center_crop", "crop_size", "image_mean", "image_std")
    return {name: _plain(values.get(name)) for name in names}


def _plain(value: Any) -> Any:
    if hasattr(value, "items"):
        return {str(key): item for key, item in value.items()}
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else value
