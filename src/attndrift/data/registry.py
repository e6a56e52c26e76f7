"""The datasets that are known by name, a row each.

To add one, add a row. Everything that a loader needs to know stands in the row: the hub name, the
folder names under which a local copy is found, columns, splits, licence, and the origin of the
images, by which a transfer set drawn from the target's own source is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal

from attndrift.data.errors import DataError, near

Kind = Literal["images", "generated", "digits"]


@dataclass(frozen=True)
class DatasetSpec:
    """Where a dataset is and how it is read.

    Attributes:
        name: short name, as in a study file.
        origin: source of the images. Two datasets of one origin may hold the same photographs.
        kind: ``images`` are files or table rows, ``generated`` are made on demand, ``digits`` come
            with scikit-learn.
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
    """

    name: str
    origin: str
    kind: Kind = "images"
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


# Helber et al. name the classes for programs (`timm/eurosat-rgb` has these names); these are the words CLIP's authors
# used for them. `tanganke/eurosat` has the words already, which stay as they are.
_EUROSAT_SPOKEN = {
    "AnnualCrop": "annual crop land",
    "Forest": "forest",
    "HerbaceousVegetation": "brushland or shrubland",
    "Highway": "highway or road",
    "Industrial": "industrial buildings or commercial buildings",
    "Pasture": "pasture land",
    "PermanentCrop": "permanent crop land",
    "Residential": "residential buildings or homes or apartments",
    "River": "river",
    "SeaLake": "lake or sea",
}

# The hub's copy has lost a letter of class 26, which is `crab` in Krizhevsky's own files.
_CIFAR100_SPOKEN = {"cra": "crab"}

_ROWS = (
    DatasetSpec(
        name="eurosat",
        title="EuroSAT RGB: Sentinel-2 tiles, 10 kinds of land use (Helber et al. 2019)",
        origin="eurosat",
        hub="tanganke/eurosat",
        revision="43750fc422c7fbd4289e2df3f7473617a5937acc",
        mirrors=("timm/eurosat-rgb",),
        folders=("eurosat-rgb", "eurosat"),
        image_column="image",
        label_column="label",
        id_column="image_id",
        train_split="train",
        test_split="test",
        spoken=_EUROSAT_SPOKEN,
        # Of the images (Helber et al.); the card of the hub's copy states none.
        licence="MIT",
        prompts="eurosat",
    ),
    DatasetSpec(
        name="pets",
        title="Oxford-IIIT Pet: 37 breeds of cats and dogs (Parkhi et al. 2012)",
        origin="oxford-iiit-pet",
        hub="timm/oxford-iiit-pet",
        folders=("pets", "oxford-iiit-pet"),
        image_column="image",
        label_column="label",
        id_column="image_id",
        train_split="train",
        test_split="test",
        licence="CC-BY-SA-4.0",
        prompts="pets",
    ),
    DatasetSpec(
        name="cifar10",
        title="CIFAR-10: 32x32 photographs, 10 classes (Krizhevsky 2009)",
        origin="cifar-10",
        hub="uoft-cs/cifar10",
        config="plain_text",
        revision="0b2714987fa478483af9968de7c934580d0bb9a2",
        mirrors=("cifar10",),
        folders=("cifar10",),
        image_column="img",
        label_column="label",
        id_column="image_id",
        train_split="train",
        test_split="test",
        licence="unknown",
        prompts="cifar",
    ),
    DatasetSpec(
        name="cifar100",
        title="CIFAR-100: 32x32 photographs, 100 classes (Krizhevsky 2009)",
        origin="cifar-100",
        hub="uoft-cs/cifar100",
        config="cifar100",
        revision="aadb3af77e9048adbea6b47c21a81e47dd092ae5",
        mirrors=("cifar100",),
        folders=("cifar100",),
        image_column="img",
        label_column="fine_label",
        id_column="image_id",
        train_split="train",
        test_split="test",
        spoken=_CIFAR100_SPOKEN,
        licence="unknown",
        prompts="cifar",
    ),
    DatasetSpec(
        name="objects",
        title="generated objects, for zero-shot transfer without a download",
        origin="generated-objects",
        kind="generated",
        licence="Apache-2.0",
    ),
    DatasetSpec(
        name="tiles",
        title="generated land-use tiles, a stand-in for EuroSAT",
        origin="generated-tiles",
        kind="generated",
        licence="Apache-2.0",
    ),
    DatasetSpec(
        name="critters",
        title="generated critters of many breeds, a stand-in for Oxford-IIIT Pet",
        origin="generated-critters",
        kind="generated",
        licence="Apache-2.0",
        train_size=7400,
        test_size=1480,
    ),
    DatasetSpec(
        name="digits",
        title="8x8 handwritten digits that come with scikit-learn (Alpaydin and Kaynak 1998)",
        origin="optdigits",
        kind="digits",
        licence="CC-BY-4.0",
    ),
)

DATASETS: Final[dict[str, DatasetSpec]] = {row.name: row for row in _ROWS}
"""Every dataset known by name."""


def find_spec(name: str) -> DatasetSpec:
    """The row called ``name``; :class:`DataError`, with a near match, where there is none."""
    if name in DATASETS:
        return DATASETS[name]
    raise DataError(
        f"no dataset is called {name!r}{near(name, DATASETS)} There are {', '.join(DATASETS)}; "
        "a dataset of your own needs `path` (a local folder) or `hub` (a hub name)"
    )


def row_of_hub(hub: str) -> DatasetSpec | None:
    """The registered dataset that the hub dataset ``hub`` is a copy of, as it is read there; None for another one."""
    wanted = hub.lower()
    for row in _ROWS:
        if row.hub is not None and row.hub.lower() == wanted:
            return row
        if wanted in row.mirrors:
            return replace(row, hub=wanted, config=None, revision=None)
    return None
