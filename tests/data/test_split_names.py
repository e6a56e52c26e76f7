"""Splits are known by their names in any spelling, from folders as from tables, and no split both trains and tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import datasets
import pytest
from made_data import Table, picture

from attndrift.data import DataError, load_dataset, make_splits

HELD_OUT = (
    *("dev", "Test", "TEST", "val", "Validation", "eval", "valid", "test2017", "val_2014", "Testing", "test-set"),
    *("Evaluation", "Holdout", "held_out", "test split", "DEV-SET", "development", "test\u0662"),
)
TRAINS = ("TRAIN", "Train", "training", "Training-Set", "train2017", "train_split", "TRAIN 14")


def _renamed(image_folder: Path, old: str, new: str) -> dict[str, str]:
    # A disk that does not tell cases apart needs the step between.
    (image_folder / old).rename(image_folder / "fold").rename(image_folder / new)
    return {"name": "zoo", "path": str(image_folder)}


@pytest.mark.parametrize("name", HELD_OUT)
def test_a_held_out_split_is_known_in_any_spelling(name: str, image_folder: Path) -> None:
    dataset = load_dataset(_renamed(image_folder, "test", name))
    assert (dataset.train_split, dataset.test_split) == ("train", name)
    assert dataset.class_names == ("big dog", "cat", "owl")
    assert (len(dataset.train), len(dataset.test)) == (24, 12)


@pytest.mark.parametrize("name", TRAINS)
def test_a_training_split_is_known_in_any_spelling(name: str, image_folder: Path) -> None:
    dataset = load_dataset(_renamed(image_folder, "train", name))
    assert (dataset.train_split, dataset.test_split, len(dataset.train)) == (name, "test", 24)


@pytest.mark.parametrize("name", HELD_OUT)
def test_no_spelling_of_a_split_becomes_a_class(name: str, image_folder: Path) -> None:
    """One stray image in each, and a folder of images beside them: what once made classes of the splits."""
    source = _renamed(image_folder, "test", name)
    for split in ("train", name):
        picture(9).save(image_folder / split / "9.png")
    (image_folder / "UNLABELED").mkdir()
    picture(9).save(image_folder / "UNLABELED" / "9.png")
    with pytest.warns(UserWarning, match="are left out"):
        dataset = load_dataset(source)
    assert dataset.class_names == ("big dog", "cat", "owl")
    assert (dataset.test_split, len(dataset.test)) == (name, 12)


@pytest.mark.parametrize("name", ["testable", "trainer", "valley", "device", "evaluate me", "test tube", "set", "12"])
def test_a_class_that_begins_like_a_split_is_a_class(name: str, image_folder: Path) -> None:
    for split in ("train", "test"):
        (image_folder / split / "cat").rename(image_folder / split / name)
    found = load_dataset({"name": "zoo", "path": str(image_folder), "train_split": "train"})
    assert name in found.source["class_names_in_data"]
    flat = load_dataset({"name": "zoo", "path": str(image_folder / "train")})
    assert name in flat.source["class_names_in_data"]


def test_a_class_may_be_called_as_a_split_is(image_folder: Path) -> None:
    """A train is a vehicle."""
    for split in ("train", "test"):
        (image_folder / split / "cat").rename(image_folder / split / "train")
    assert load_dataset({"name": "zoo", "path": str(image_folder)}).class_names == ("big dog", "owl", "train")
    assert load_dataset({"name": "zoo", "path": str(image_folder / "test")}).class_names == ("big dog", "owl", "train")


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (("Train", "VAL", "Test"), ("Train", "Test")),
        (("train", "dev", "validation"), ("train", "validation")),
        (("train", "Train", "test"), ("train", "test")),
        (("training", "eval", "dev"), ("training", "dev")),
        (("train", "extra"), ("train", None)),
        (("train2014", "train2017", "test"), "`train_split`"),
        (("train", "test2014", "test2017"), "`test_split`"),
        (("train", "Val", "VAL"), "`test_split`"),
        (("fold1", "test"), "no split `train`"),
    ],
)
def test_of_several_splits(names: tuple[str, ...], chosen: tuple[str, str | None] | str, table_folder: Table) -> None:
    rows: dict[str, list[object]] = {"image": [picture(1), picture(2)], "label": ["cat", "dog"]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    source = {"name": "zoo", "path": str(table_folder(dict.fromkeys(names, rows), features))}
    if isinstance(chosen, str):
        with pytest.raises(DataError, match=chosen):
            load_dataset(source)
    else:
        found = load_dataset(source)
        assert (found.train_split, found.test_split) == chosen


@pytest.mark.parametrize(
    ("asked", "folders"),
    [
        ({"train_split": "test", "test_split": "test"}, ("train", "test")),
        ({"test_split": "train"}, ("train", "test")),
        ({"train_split": "test"}, ("test",)),
        ({"train_split": "VAL"}, ("VAL", "extra")),
        ({"train_split": "dev", "test_split": "dev"}, ("dev",)),
    ],
)
def test_no_split_trains_and_tests(asked: dict[str, str], folders: tuple[str, ...], image_folder: Path) -> None:
    for old, new in zip(("train", "test"), folders, strict=False):
        (image_folder / old).rename(image_folder / f"new {new}")
    for old in ("train", "test"):
        if (image_folder / old).exists():
            shutil.rmtree(image_folder / old)
    for new in folders:
        (image_folder / f"new {new}").rename(image_folder / new)
    dataset = load_dataset({"name": "zoo", "path": str(image_folder), **asked})
    with pytest.raises(DataError, match=r"is both `train_split` and `test_split`|no held-out split"):
        make_splits(dataset, selection="test", data_seed=0)


def test_of_two_splits_the_one_that_does_not_train_is_held_out(image_folder: Path) -> None:
    """Training on what is called a test once tested on it too."""
    (image_folder / "train").rename(image_folder / "val")
    assert load_dataset({"name": "zoo", "path": str(image_folder), "train_split": "test"}).test_split == "val"
    assert load_dataset({"name": "zoo", "path": str(image_folder), "train_split": "val"}).test_split == "test"
