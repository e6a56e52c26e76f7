"""The registry of datasets: one :class:`DatasetSpec` a set, in :mod:`attndrift.data.known`.

To add one, register a row. Everything that a loader needs to know stands in the row: the hub name, the folder names
under which a local copy is found, columns, splits, licence, and the origin of the images, by which a transfer set drawn
from the target's own source is refused. Nothing here imports torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from attndrift.data.derived_names import derivation, family
from attndrift.data.errors import DataError
from attndrift.registry import Registry, unknown_name


@dataclass(frozen=True)
class DatasetSpec:
    """Where a dataset is and how it is read.

    Attributes:
        name: short name, as in a study file.
        origin: source of the images. Two datasets of one origin may hold the same photographs.
        load: makes the set, where its images are neither files nor table rows: a function of this row, or ``module:name``
            of one. ``made`` then says where they come from.
        hub: name on the hub; ``config`` and ``revision`` choose within it. A ``revision`` stands here only where
            that commit was seen to hold the splits; without one the newest is taken, and recorded.
        mirrors: other hub names of the same images, in lower case.
        path: local folder, instead of the hub.
        folders: names that a local copy may have in the data folder (``ATTNDRIFT_DATA``).
        image_column, label_column, id_column: None finds the column by its type or usual name. An
            ``id_column`` that is absent is an error only where ``id_required``.
        train_split, test_split: None takes the usual names.
        class_names: replaces the class names, in label order.
        spoken: other wording of single class names, for prompts.
        prompts: named prompt ensemble made for this dataset (the default of an evaluation stays
            ``a photo of a {class}.``).
        train_size, test_size: images of a generated set.
        derive: how the set is made of another, step by step, as :mod:`attndrift.data.derived_names` has it.
        evaluation_only: a set that was made to evaluate on: no run may train on it.
    """

    name: str
    origin: str
    title: str = ""
    hub: str | None = None
    config: str | None = None
    revision: str | None = None
    mirrors: tuple[str, ...] = ()
    path: Path | None = None
    folders: tuple[str, ...] = ()
    image_column: str | None = None
    label_column: str | None = None
    id_column: str | None = None
    id_required: bool = False
    train_split: str | None = None
    test_split: str | None = None
    class_names: tuple[str, ...] | None = None
    spoken: Mapping[str, str] = field(default_factory=dict)
    licence: str = "unknown"
    prompts: str = "default"
    train_size: int = 2000
    test_size: int = 1000
    load: Callable[[DatasetSpec], Any] | str | None = None
    made: str = ""
    derive: tuple[str, ...] = ()
    evaluation_only: bool = False

    def make(self) -> Any:
        """The :class:`~attndrift.data.ImageDataset` that ``load`` makes."""
        load = self.load
        if isinstance(load, str):
            module, _, name = load.partition(":")
            load = getattr(importlib.import_module(module), name)
        assert load is not None
        return load(self)


DATASETS: Registry[DatasetSpec] = Registry("dataset", "attndrift.data.known", group="attndrift.datasets")
"""Every dataset known by name: those of :mod:`attndrift.data.known`, of installed packages, and of this process."""


@dataclass(frozen=True)
class Suite:
    """Transfer sets that are evaluated together.

    Attributes:
        name: in ``transfer`` of a study file, where it stands for its sets.
        title: what it is; ``source`` says who put it together.
        sets: names of datasets.
    """

    name: str
    title: str
    sets: tuple[str, ...]
    source: str


SUITES: Registry[Suite] = Registry("suite", "attndrift.data.suites", group="attndrift.suites")
"""Every suite known by name: those of :mod:`attndrift.data.suites`, of installed packages, and of this process."""


def expand_suites(names: tuple[str, ...], target: str, origin: str | None = None) -> tuple[str, ...]:
    """The sets that ``names`` stand for: a suite for its sets, a set for itself; each once.

    Of a suite, the ``target`` is left out, and every set of its source: ``origin``, or that of the registry.
    ``SET+halves`` and ``SET+corruptions-3`` are suites too.

    >>> expand_suites(("offline", "cifar100"), "tiles")
    ('objects', 'critters', 'digits', 'cifar100')
    """
    found: dict[str, None] = {}
    origin = origin or (DATASETS[target].origin if target in DATASETS else None)
    for name in names:
        members = family(name)
        if name in SUITES:
            members = tuple(one for one in SUITES[name].sets if one != target and find_spec(one).origin != origin)
        found.update(dict.fromkeys(members))
    return tuple(found)


def find_spec(name: str) -> DatasetSpec:
    """The row called ``name``; :class:`DataError`, with a near match, where there is none."""
    if name in DATASETS:
        return DATASETS[name]
    if "+" in name:
        base, steps = derivation(name)
        return replace(find_spec(base), name=name, derive=steps)
    raise DataError(
        unknown_name(
            "dataset",
            name,
            DATASETS.names(),
            "`attndrift list datasets` shows every dataset. One of your own needs `path` (a local folder) or `hub` (a hub name)",
        )
    )


def row_of_hub(hub: str) -> DatasetSpec | None:
    """The registered dataset that the hub dataset ``hub`` is a copy of, as it is read there; None for another one."""
    wanted = hub.lower()
    for row in DATASETS:
        if row.hub is not None and row.hub.lower() == wanted:
            return row
        if wanted in row.mirrors:
            return replace(row, hub=wanted, config=None, revision=None)
    return None
