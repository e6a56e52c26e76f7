"""Images: which datasets there are, where they come from, how they are split, and pixels decoded once."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attndrift.data.dataset import ImageDataset, ImageSplit, refuse_same_origin
    from attndrift.data.errors import DataError, DatasetUnavailable, UnreadableImageError
    from attndrift.data.order import EpochBatchSampler, TrainingImages, epoch_order, flips, training_loader
    from attndrift.data.pixels import PixelStore
    from attndrift.data.prompts import TEMPLATES, clean_class_name, fill, prompts_for
    from attndrift.data.registry import DATASETS, DatasetSpec
    from attndrift.data.sources import load_dataset
    from attndrift.data.splits import SplitPart, Splits, evaluation_part, make_splits

_HOMES = {
    "DataError": "errors",
    "DatasetUnavailable": "errors",
    "UnreadableImageError": "errors",
    "EpochBatchSampler": "order",
    "TrainingImages": "order",
    "epoch_order": "order",
    "flips": "order",
    "training_loader": "order",
    "PixelStore": "pixels",
    "TEMPLATES": "prompts",
    "clean_class_name": "prompts",
    "fill": "prompts",
    "prompts_for": "prompts",
    "DATASETS": "registry",
    "DatasetSpec": "registry",
    "ImageDataset": "dataset",
    "ImageSplit": "dataset",
    "load_dataset": "sources",
    "refuse_same_origin": "dataset",
    "SplitPart": "splits",
    "Splits": "splits",
    "evaluation_part": "splits",
    "make_splits": "splits",
}

__all__ = [
    "DATASETS",
    "TEMPLATES",
    "DataError",
    "DatasetSpec",
    "DatasetUnavailable",
    "EpochBatchSampler",
    "ImageDataset",
    "ImageSplit",
    "PixelStore",
    "SplitPart",
    "Splits",
    "TrainingImages",
    "UnreadableImageError",
    "clean_class_name",
    "epoch_order",
    "evaluation_part",
    "fill",
    "flips",
    "load_dataset",
    "make_splits",
    "prompts_for",
    "refuse_same_origin",
    "training_loader",
]


def __getattr__(name: str) -> Any:
    # Drawing images, or listing datasets, must not cost an import of torch.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
