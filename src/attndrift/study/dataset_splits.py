"""Which images a run's settings mean: the dataset and its splits, for running and for planning alike."""

from __future__ import annotations

import json
from typing import Any

from attndrift.data.dataset import ImageDataset
from attndrift.data.derived import derive, whole_of
from attndrift.data.derived_names import derivation
from attndrift.data.prompts import OWN, TEMPLATES
from attndrift.data.registry import DatasetSpec
from attndrift.data.sources import load_dataset, local_state, spec_of
from attndrift.data.splits import Splits, make_splits
from attndrift.study.set_descriptions import description_of
from attndrift.study.settings import RunSettings

SPLIT_FIELDS = (
    "selection", "data_seed", "train_per_class", "validation_per_class", "validation_fraction", "probe_size",
    "probe_per_class", "test_limit", "unreadable",
)  # fmt: skip
"""The settings that decide the splits of a dataset."""


def source_of(name: str, settings: RunSettings) -> str | dict[str, Any]:
    """Where the dataset called ``name`` is, as :func:`attndrift.data.load_dataset` takes it."""
    own = description_of(settings, name)
    if own is None:
        return name
    if name in settings.sources or (name == settings.dataset and settings.source is own):
        return {"name": name, **own.where()}
    base, steps = derivation(name)
    return {"name": base, "derive": steps, **own.where()}


class OpenDatasets:
    """Opens datasets, each once while its files stay as they are; sets that are made of one share it."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, str | None], ImageDataset] = {}

    def open(self, name: str, settings: RunSettings) -> ImageDataset:
        """The dataset called ``name`` of a run."""
        return self._of(spec_of(source_of(name, settings)))

    def _of(self, spec: DatasetSpec) -> ImageDataset:
        key = (repr(spec), local_state(spec))
        if key not in self._open:
            self._open[key] = derive(self._of(whole_of(spec)), spec) if spec.derive else load_dataset(spec)
        return self._open[key]


def templates_of(dataset: ImageDataset, settings: RunSettings) -> tuple[str, ...]:
    """The prompt templates of an open set, as :func:`templates_for` chooses them."""
    return templates_for(dataset.name, dataset.templates, dataset.prompts, settings)


def templates_for(name: str, brought: tuple[str, ...] | None, ensemble: str, settings: RunSettings) -> tuple[str, ...]:
    """The prompt templates of a set: those that the study file gives it, those ``brought`` with it, or those of the run.

    ``ensemble``: the one made for the set, which a run with ``prompts: own`` takes.
    """
    own = description_of(settings, name)
    if own is not None and own.prompts is not None:
        return own.prompts
    if brought is not None:
        return brought
    return TEMPLATES[ensemble] if settings.prompts == (OWN,) else settings.prompts


def why_no_target(name: str) -> str:
    """What a run on a set to evaluate on is answered with."""
    return f"{name} was made to evaluate on, and no run may train on it; take it as a transfer set"


def splits_of(dataset: ImageDataset, settings: RunSettings) -> Splits:
    """The splits of the run's target."""
    return make_splits(dataset, **{name: getattr(settings, name) for name in SPLIT_FIELDS})


def splits_key(settings: RunSettings) -> str:
    """Equal for two runs exactly where dataset and splits are equal."""
    values = settings.to_json()
    return json.dumps([source_of(settings.dataset, settings), *(values[name] for name in SPLIT_FIELDS)])
