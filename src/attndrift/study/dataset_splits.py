"""Which images a run's settings mean: the dataset and its splits, for running and for planning alike."""

from __future__ import annotations

import json
from typing import Any

from attndrift.data.dataset import ImageDataset
from attndrift.data.sources import load_dataset
from attndrift.data.splits import Splits, make_splits
from attndrift.study.settings import RunSettings

SPLIT_FIELDS = (
    "selection", "data_seed", "train_per_class", "validation_per_class", "validation_fraction", "probe_size",
    "probe_per_class", "test_limit", "unreadable",
)  # fmt: skip
"""The settings that decide the splits of a dataset."""


def source_of(name: str, settings: RunSettings) -> str | dict[str, Any]:
    """Where the dataset called ``name`` is: in the run's own source where it is the target and has one."""
    if name == settings.dataset and settings.source is not None:
        return {"name": name, **settings.source.model_dump()}
    return name


def open_dataset(name: str, settings: RunSettings) -> ImageDataset:
    """The dataset called ``name`` of a run."""
    return load_dataset(source_of(name, settings))


def splits_of(dataset: ImageDataset, settings: RunSettings) -> Splits:
    """The splits of the run's target."""
    return make_splits(dataset, **{name: getattr(settings, name) for name in SPLIT_FIELDS})


def splits_key(settings: RunSettings) -> str:
    """Equal for two runs exactly where dataset and splits are equal."""
    values = settings.to_json()
    return json.dumps([values[name] for name in ("dataset", "source", *SPLIT_FIELDS)])
