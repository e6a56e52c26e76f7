"""Images: which datasets there are, where they come from, how they are split, and pixels decoded once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attndrift.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from attndrift.data.dataset import ImageDataset, ImageSplit, refuse_same_origin
    from attndrift.data.errors import DataError, DatasetUnavailable, UnreadableImageError
    from attndrift.data.pixels import PixelStore
    from attndrift.data.prompts import TEMPLATES, clean_class_name, fill, prompts_for
    from attndrift.data.registry import DATASETS, DatasetSpec
    from attndrift.data.shuffle import EpochBatchSampler, TrainingImages, epoch_order, flips, training_loader
    from attndrift.data.sources import load_dataset
    from attndrift.data.splits import SplitPart, Splits, evaluation_part, make_splits

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

__getattr__, __dir__ = lazy_imports(
    __name__,
    {
        "attndrift.data.dataset": (
            "ImageDataset",
            "ImageSplit",
            "refuse_same_origin",
        ),
        "attndrift.data.errors": (
            "DataError",
            "DatasetUnavailable",
            "UnreadableImageError",
        ),
        "attndrift.data.pixels": ("PixelStore",),
        "attndrift.data.prompts": (
            "TEMPLATES",
            "clean_class_name",
            "fill",
            "prompts_for",
        ),
        "attndrift.data.registry": (
            "DATASETS",
            "DatasetSpec",
        ),
        "attndrift.data.shuffle": (
            "EpochBatchSampler",
            "TrainingImages",
            "epoch_order",
            "flips",
            "training_loader",
        ),
        "attndrift.data.sources": ("load_dataset",),
        "attndrift.data.splits": (
            "SplitPart",
            "Splits",
            "evaluation_part",
            "make_splits",
        ),
    },
)
