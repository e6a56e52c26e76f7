"""Dataset repositories in the layout of the real ones: splits, columns, features and class names; small generated images."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from hub_server import Repository, commit_id
from PIL import Image

EUROSAT_MAIN = "43750fc422c7fbd4289e2df3f7473617a5937acc"
PETS_MAIN = "0b061922a132175141736196aef1136ae3c64c35"
CIFAR10_MAIN = "0b2714987fa478483af9968de7c934580d0bb9a2"
CIFAR100_MAIN = "aadb3af77e9048adbea6b47c21a81e47dd092ae5"


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


EUROSAT = (
    "annual crop land",
    "forest",
    "brushland or shrubland",
    "highway or road",
    "industrial buildings or commercial buildings",
    "pasture land",
    "permanent crop land",
    "residential buildings or homes or apartments",
    "river",
    "lake or sea",
)
CORRUPTIONS = ("contrast", "gaussian_noise", "impulse_noise", "jpeg_compression", "motion_blur", "pixelate", "spatter")
CATS = frozenset(
    words(
        """
    abyssinian bengal birman bombay british_shorthair egyptian_mau maine_coon persian ragdoll
    russian_blue siamese sphynx
    """
    )
)
PETS = words(
    """
    abyssinian american_bulldog american_pit_bull_terrier basset_hound beagle bengal birman bombay boxer
    british_shorthair chihuahua egyptian_mau english_cocker_spaniel english_setter german_shorthaired
    great_pyrenees havanese japanese_chin keeshond leonberger maine_coon miniature_pinscher newfoundland
    persian pomeranian pug ragdoll russian_blue saint_bernard samoyed scottish_terrier shiba_inu siamese
    sphynx staffordshire_bull_terrier wheaten_terrier yorkshire_terrier
    """
)
CIFAR10 = words(
    """
    airplane automobile bird cat deer dog frog horse ship truck
    """
)
# Class 26 is spelled `cra` on the hub.
CIFAR100 = words(
    """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
    camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch cra crocodile cup
    dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower
    leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid
    otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray
    road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
    sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm
    """
)
CIFAR100_COARSE = words(
    """
    aquatic_mammals fish flowers food_containers fruit_and_vegetables household_electrical_devices
    household_furniture insects large_carnivores large_man-made_outdoor_things
    large_natural_outdoor_scenes large_omnivores_and_herbivores medium_mammals non-insect_invertebrates
    people reptiles small_mammals trees vehicles_1 vehicles_2
    """
)

Features = dict[str, tuple[str, ...] | str]
"""Column names, each with class names, ``image`` or ``string``."""


def _picture(rng: np.random.Generator, label: int, size: int) -> dict[str, Any]:
    """A PNG: the colour of its class, and noise by which no two are equal."""
    colour = np.random.default_rng(label).integers(0, 200, 3)
    pixels = colour + rng.integers(0, 56, (size, size, 3))
    with io.BytesIO() as stream:
        Image.fromarray(pixels.astype(np.uint8)).save(stream, "PNG", compress_level=1)
        return {"bytes": stream.getvalue(), "path": None}


def _table(features: Features, columns: dict[str, list[Any]]) -> bytes:
    """A Parquet file with the column types that ``datasets`` writes, and its features in the file's metadata."""
    described: dict[str, Any] = {}
    types = []
    for name, kind in features.items():
        if kind == "image":
            described[name] = {"_type": "Image"}
            types.append((name, pa.struct([("bytes", pa.binary()), ("path", pa.string())])))
        elif kind == "string":
            described[name] = {"dtype": "string", "_type": "Value"}
            types.append((name, pa.string()))
        else:
            described[name] = {"names": list(kind), "_type": "ClassLabel"}
            types.append((name, pa.int64()))
    metadata = {"huggingface": json.dumps({"info": {"features": described}})}
    with io.BytesIO() as stream:
        pq.write_table(pa.table(columns, schema=pa.schema(types, metadata)), stream)
        return stream.getvalue()


def _card(config: str, folder: str, features: Features, sizes: dict[str, int], licence: str | None) -> bytes:
    """The head of a dataset card, from which ``datasets`` takes features, splits and their files."""
    described: list[dict[str, Any]] = []
    for name, kind in features.items():
        if isinstance(kind, str):
            described.append({"name": name, "dtype": kind})
        else:
            names = {str(place): value for place, value in enumerate(kind)}
            described.append({"name": name, "dtype": {"class_label": {"names": names}}})
    info: dict[str, Any] = {
        "features": described,
        "splits": [{"name": split, "num_bytes": 1, "num_examples": size} for split, size in sizes.items()],
        "download_size": 1,
        "dataset_size": 1,
    }
    if config != "default":
        info = {"config_name": config, **info}
    files = [{"split": split, "path": f"{folder}/{split}-*"} for split in sizes]
    head: dict[str, Any] = {"dataset_info": info, "configs": [{"config_name": config, "data_files": files}]}
    if config != "default":
        head["configs"][0]["default"] = True
    if licence is not None:
        head["license"] = licence
    return b"---\n" + yaml.safe_dump(head, sort_keys=False).encode() + b"---\n"


def _repository(
    name: str,
    commit: str,
    features: Features,
    rows: dict[str, int],
    *,
    image: str,
    label: str,
    size: int,
    config: str = "default",
    licence: str | None = None,
    more: Any = lambda labels: {},
) -> Repository:
    """``rows[split]`` images of each class in each split; ``more`` makes the remaining columns from the labels."""
    folder = "data" if config == "default" else config
    classes = len(features[label])
    files: dict[str, bytes] = {}
    sizes = {split: per_class * classes for split, per_class in rows.items()}
    for number, (split, per_class) in enumerate(rows.items()):
        rng = np.random.default_rng([number, classes])
        labels = [int(value) for value in rng.permutation(np.repeat(np.arange(classes), per_class))]
        columns = {image: [_picture(rng, value, size) for value in labels], label: labels, **more(labels)}
        files[f"{folder}/{split}-00000-of-00001.parquet"] = _table(features, columns)
    files["README.md"] = _card(config, folder, features, sizes, licence)
    repository = Repository(name, "datasets")
    repository.commit("main", commit, files, author=name.partition("/")[0], title="Upload dataset")
    return repository


def eurosat() -> Repository:
    rows = {"train": 12, "test": 20} | dict.fromkeys(CORRUPTIONS, 1)
    features: Features = {"image": "image", "label": EUROSAT}
    return _repository("tanganke/eurosat", EUROSAT_MAIN, features, rows, image="image", label="label", size=64)


def _pet_columns(labels: list[int]) -> dict[str, list[Any]]:
    # Breeds of cats are written with a capital in the file names, those of dogs are not.
    names = ["_".join(part.title() for part in PETS[v].split("_")) if PETS[v] in CATS else PETS[v] for v in labels]
    return {
        "image_id": [f"{name}_{row}" for row, name in enumerate(names)],
        "label_cat_dog": [0 if PETS[value] in CATS else 1 for value in labels],
    }


def pets() -> Repository:
    features: Features = {"image": "image", "label": PETS, "image_id": "string", "label_cat_dog": ("cat", "dog")}
    return _repository(
        "timm/oxford-iiit-pet",
        PETS_MAIN,
        features,
        {"train": 6, "test": 6},
        image="image",
        label="label",
        size=64,
        licence="cc-by-sa-4.0",
        more=_pet_columns,
    )


def cifar10() -> Repository:
    features: Features = {"img": "image", "label": CIFAR10}
    rows = {"train": 6, "test": 4}
    return _repository(
        "uoft-cs/cifar10", CIFAR10_MAIN, features, rows, image="img", label="label", size=32, config="plain_text"
    )


def cifar100() -> Repository:
    features: Features = {"img": "image", "fine_label": CIFAR100, "coarse_label": CIFAR100_COARSE}
    return _repository(
        "uoft-cs/cifar100",
        CIFAR100_MAIN,
        features,
        {"train": 1, "test": 2},
        image="img",
        label="fine_label",
        size=32,
        config="cifar100",
        more=lambda labels: {"coarse_label": [value % 20 for value in labels]},
    )


WDS_TEMPLATES = ("a photo of a {c}.", "a blurry photo of a {c}.")


def webdataset(name: str, class_names: Sequence[str], rows: dict[str, int], *, labels: int | None = None) -> Repository:
    """``rows[split]`` images of each of the first ``labels`` classes, in two tar files a split, as CLIP_benchmark writes them."""
    files = {
        "classnames.txt": "\n".join(class_names).encode() + b"\n",
        "zeroshot_classification_templates.txt": "\n".join(WDS_TEMPLATES).encode() + b"\n",
    }
    for number, (split, per_class) in enumerate(rows.items()):
        rng = np.random.default_rng([number, len(class_names)])
        values = [int(value) for value in rng.permutation(np.repeat(np.arange(labels or len(class_names)), per_class))]
        half = (len(values) + 1) // 2
        for shard, part in enumerate((values[:half], values[half:])):
            with io.BytesIO() as stream:
                with tarfile.open(fileobj=stream, mode="w") as tar:
                    for row, value in enumerate(part):
                        own = {"cls": str(value).encode(), "png": _picture(rng, value, 32)["bytes"]}
                        for suffix, content in own.items():
                            member = tarfile.TarInfo(f"s{shard * half + row:07d}.{suffix}")
                            member.size = len(content)
                            tar.addfile(member, io.BytesIO(content))
                files[f"{split}/{shard}.tar"] = stream.getvalue()
        files[f"{split}/nshards.txt"] = b"2\n"
    repository = Repository(f"clip-benchmark/wds_{name}", "datasets")
    repository.commit("main", commit_id(name), files, author="djghosh", title="Initial upload")
    return repository


def webdatasets() -> list[Repository]:
    """Three of the suite ``clip-benchmark``: with a training split, with a test split alone, with classes that no image has."""
    return [
        webdataset("vtab-cifar10", CIFAR10, {"test": 4, "train": 3}),
        webdataset("imagenet-a", ("stingray", "goldfinch", "junco", "robin"), {"test": 4}),
        webdataset("objectnet", ("air freshener", "banana", "backpack"), {"test": 4}, labels=2),
    ]


def dataset_repositories() -> list[Repository]:
    return [eurosat(), pets(), cifar100(), cifar10(), *webdatasets()]
