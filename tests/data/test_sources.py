"""Datasets from image folders, tables, drawings and the hub."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest
from huggingface_hub import constants
from made_data import Table, encoded, in_memory, picture
from PIL import Image

from attndrift.data import (
    DataError,
    DatasetUnavailable,
    UnreadableImageError,
    hub,
    load_dataset,
    refuse_same_origin,
)
from attndrift.data.generated import GENERATED
from attndrift.data.readers import TableReader
from attndrift.data.registry import DATASETS
from attndrift.data.sources import describe, find_local, spec_of

NAMES = ["cat", "big_dog"]


def features(**more: object) -> datasets.Features:
    return datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES), **more})


def rows(number: int, **more: list[object]) -> dict[str, list[object]]:
    return {"image": [picture(i) for i in range(number)], "label": [i % 2 for i in range(number)], **more}


# Image folders


def test_an_image_folder(image_folder: Path) -> None:
    dataset = load_dataset({"name": "zoo", "path": str(image_folder)})
    assert dataset.class_names == ("big dog", "cat", "owl")
    assert (dataset.train_split, dataset.test_split) == ("train", "test")
    split = dataset.split("train")
    assert len(split) == 24
    assert split.labels.dtype == np.int64
    assert split.labels.tolist() == sorted(split.labels.tolist())
    assert split.ids[0] == "big_dog/0.png"
    with Image.open(image_folder / "train" / split.ids[5]) as image:
        np.testing.assert_array_equal(np.asarray(split[5]), np.asarray(image))
    assert dataset.source["kind"] == "image folder"


def test_one_level_of_folders_is_a_training_split_without_a_test(image_folder: Path) -> None:
    dataset = load_dataset({"path": str(image_folder / "train"), "name": "zoo"})
    assert dataset.splits == ("train",)
    assert len(dataset.train) == 24
    with pytest.raises(DataError, match=r"no held-out split.*`test_split`"):
        _ = dataset.test


def test_a_missing_split_names_those_there_are(image_folder: Path) -> None:
    with pytest.raises(DataError, match=r"no split `valid` \(test_split\)\. The splits are test, train"):
        load_dataset({"name": "zoo", "path": str(image_folder), "test_split": "valid"})
    (image_folder / "train").rename(image_folder / "fold")
    with pytest.raises(DataError, match=r"no split `train`.*fold, test"):
        load_dataset({"name": "zoo", "path": str(image_folder)})


def test_a_class_without_images_is_named(image_folder: Path) -> None:
    for file in (image_folder / "test" / "owl").iterdir():
        file.rename(file.with_suffix(".txt"))
    with pytest.raises(DataError, match=r"classes without images in .*: owl"):
        _ = load_dataset({"name": "zoo", "path": str(image_folder)}).test


def test_a_held_out_class_that_is_not_trained_is_named(image_folder: Path) -> None:
    (image_folder / "test" / "owl").rename(image_folder / "test" / "elk")
    with pytest.raises(DataError, match=r"no class of the training split: elk"):
        _ = load_dataset({"name": "zoo", "path": str(image_folder)}).test


def test_hidden_files_are_left_out_and_nested_ones_found(image_folder: Path) -> None:
    (image_folder / "train" / "cat" / ".thumb.png").write_bytes(b"x")
    (image_folder / "train" / ".cache").mkdir()
    deeper = image_folder / "train" / "cat" / "more"
    deeper.mkdir()
    picture(99).save(deeper / "X.PNG")
    split = load_dataset({"name": "zoo", "path": str(image_folder)}).train
    assert "cat/more/X.PNG" in split.ids
    assert len(split) == 25


def test_class_names_replace_those_of_the_folders(image_folder: Path) -> None:
    source = {"name": "zoo", "path": str(image_folder), "class_names": ["hound", "puss", "owl"]}
    dataset = load_dataset(source)
    assert dataset.class_names == ("hound", "puss", "owl")
    assert dataset.source["class_names_in_data"] == ["big_dog", "cat", "owl"]
    with pytest.raises(DataError, match=r"2 names; the data have 3 classes \(big_dog, cat, owl\)"):
        load_dataset({**source, "class_names": ["a", "b"]})


def test_an_unreadable_image_is_named_when_asked_for_and_listed(image_folder: Path) -> None:
    damaged = image_folder / "train" / "cat" / "3.png"
    damaged.write_bytes(damaged.read_bytes()[:100])
    split = load_dataset({"name": "zoo", "path": str(image_folder)}).train
    index = split.ids.index("cat/3.png")
    with pytest.raises(UnreadableImageError, match=r"zoo/cat/3\.png"):
        split[index]
    assert list(split.unreadable()) == [index]


def test_an_index_out_of_range(image_folder: Path) -> None:
    split = load_dataset({"name": "zoo", "path": str(image_folder)}).train
    for index in (-1, 24):
        with pytest.raises(IndexError, match="0 to 23"):
            split[index]


def test_the_fingerprint_sees_pixels_and_names(image_folder: Path) -> None:
    source = {"name": "zoo", "path": str(image_folder)}
    before = load_dataset(source).fingerprint
    assert load_dataset(source).fingerprint == before
    picture(12345).save(image_folder / "test" / "owl" / "0.png")
    changed = load_dataset(source).fingerprint
    assert changed != before
    (image_folder / "test" / "owl" / "0.png").rename(image_folder / "test" / "owl" / "00.png")
    assert load_dataset(source).fingerprint not in (before, changed)


# Tables


def test_a_table_folder(table_folder: Table) -> None:
    path = table_folder({"train": rows(6), "test": rows(4)}, features())
    dataset = load_dataset({"name": "t", "path": str(path)})
    assert dataset.class_names == ("cat", "big dog")
    assert dataset.train.ids[:2] == ["train:0", "train:1"]
    assert dataset.train.labels.tolist() == [0, 1, 0, 1, 0, 1]
    np.testing.assert_array_equal(np.asarray(dataset.test[3]), np.asarray(picture(3)))
    assert dataset.source["image_column"] == "image"


def test_ids_come_from_their_column_and_are_made_unique(table_folder: Table) -> None:
    spec = features(image_id=datasets.Value("string"))
    path = table_folder({"train": rows(4, image_id=["a", "b", "a", "a"]), "test": rows(2, image_id=["x", "y"])}, spec)
    assert load_dataset({"name": "t", "path": str(path)}).train.ids == ["a", "b", "a#2", "a#3"]


def test_columns_by_mapping(table_folder: Table) -> None:
    spec = datasets.Features(
        {
            "img": datasets.Image(),
            "thumb": datasets.Image(),
            "fine": datasets.ClassLabel(names=NAMES),
            "coarse": datasets.ClassLabel(names=["x"]),
            "key": datasets.Value("int64"),
        }
    )
    one = {
        "img": [picture(i) for i in range(4)],
        "thumb": [picture(9)] * 4,
        "fine": [0, 1, 1, 0],
        "coarse": [0] * 4,
        "key": [7, 8, 9, 10],
    }
    path = str(table_folder({"fit": one, "held": one}, spec))
    names = {"image_column": "img", "label_column": "fine", "id_column": "key"}
    splits = {"train_split": "fit", "test_split": "held"}
    dataset = load_dataset({"name": "t", "path": path, **names, **splits})
    assert dataset.train.ids == ["7", "8", "9", "10"]
    assert dataset.train.labels.tolist() == [0, 1, 1, 0]
    with pytest.raises(DataError, match=r"2 columns hold images \(img, thumb\); name one as `image_column`"):
        load_dataset({"name": "t", "path": path, **splits, "label_column": "fine"})
    with pytest.raises(DataError, match=r"several columns hold class labels \(fine, coarse\)"):
        load_dataset({"name": "t", "path": path, **splits, "image_column": "img"})
    for role, wrong in (("image_column", "pic"), ("label_column", "y"), ("id_column", "uid")):
        with pytest.raises(DataError, match=rf"no column `{wrong}` \({role}\).*`img` \(image\).*`key` \(int64\)"):
            load_dataset({"name": "t", "path": path, **splits, **names, role: wrong})
    with pytest.raises(DataError, match=r"column `key` holds int64, not images"):
        load_dataset({"name": "t", "path": path, **splits, **names, "image_column": "key"})
    with pytest.raises(DataError, match=r"no split `train`.*The splits are fit, held"):
        load_dataset({"name": "t", "path": path, **names})


def test_text_labels_become_classes_in_order(table_folder: Table) -> None:
    spec = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    images = [picture(i) for i in range(3)]
    path = table_folder({"train": {"image": images, "label": ["b", "a", "b"]},
                         "test": {"image": images, "label": ["a", "b", "a"]}}, spec)  # fmt: skip
    dataset = load_dataset({"name": "t", "path": str(path)})
    assert dataset.class_names == ("a", "b")
    assert dataset.train.labels.tolist() == [1, 0, 1]


def test_bare_numbers_need_names_and_must_fit_them(table_folder: Table) -> None:
    spec = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    images = [picture(i) for i in range(3)]
    path = str(table_folder({"train": {"image": images, "label": [0, 1, 2]},
                             "test": {"image": images, "label": [0, 1, 0]}}, spec))  # fmt: skip
    with pytest.raises(DataError, match="`class_names`"):
        load_dataset({"name": "t", "path": path})
    with pytest.raises(DataError, match="run from 0 to 2, but there are 2 class names"):
        _ = load_dataset({"name": "t", "path": path, "class_names": ["a", "b"]}).train
    assert load_dataset({"name": "t", "path": path, "class_names": ["a", "b", "c"]}).train.labels.max() == 2


def test_missing_labels_are_counted(table_folder: Table) -> None:
    broken = rows(4)
    broken["label"] = [0, None, 1, -1]
    path = table_folder({"train": broken, "test": rows(2)}, features())
    with pytest.raises(DataError, match="2 of 4 images have no label"):
        _ = load_dataset({"name": "t", "path": str(path)}).train


def test_a_row_without_an_image_is_unreadable(table_folder: Table) -> None:
    holes = rows(4)
    holes["image"][2] = None
    path = table_folder({"train": holes, "test": rows(2)}, features())
    split = load_dataset({"name": "t", "path": str(path)}).train
    with pytest.raises(UnreadableImageError, match=r"t/train:2.*no image in this row"):
        split[2]
    assert list(split.unreadable()) == [2]


def test_damaged_bytes_in_a_table(table_folder: Table) -> None:
    holes = rows(3)
    holes["image"][1] = {"bytes": encoded(picture(1))[:90], "path": None}
    path = table_folder({"train": holes, "test": rows(2)}, features())
    assert list(load_dataset({"name": "t", "path": str(path)}).train.unreadable()) == [1]


def test_images_as_plain_bytes(table_folder: Table) -> None:
    spec = datasets.Features({"jpg": datasets.Value("binary"), "label": datasets.ClassLabel(names=NAMES)})
    one = {"jpg": [encoded(picture(i)) for i in range(2)], "label": [0, 1]}
    split = load_dataset({"name": "t", "path": str(table_folder({"train": one, "test": one}, spec))}).train
    np.testing.assert_array_equal(np.asarray(split[1]), np.asarray(picture(1)))
    assert len(split.fingerprint) == 64


@pytest.mark.parametrize("begin", [b"\xff\xd8\xff\xe0", b"BM", b"P6\n1 1"])
@pytest.mark.parametrize("place", [10, 50_000, 99_999])
def test_the_digest_of_a_table_sees_all_but_the_middle_of_a_large_compressed_image(place: int, begin: bytes) -> None:
    def digest(content: bytes) -> str:
        spec = datasets.Features({"image": datasets.Value("binary")})
        return TableReader(datasets.Dataset.from_dict({"image": [content]}, features=spec), "image").digest()

    content = bytearray(begin.ljust(100_000, b"\0"))
    before = digest(bytes(content))
    assert digest(bytes(content[:-1])) != before
    content[place] = 1
    seen = place != 50_000 or begin[0] != 0xFF  # of a compressed image, another middle has another length or end
    assert (digest(bytes(content)) != before) == seen


def test_an_address_is_not_fetched() -> None:
    table = datasets.Dataset.from_dict(
        {"image": [{"bytes": None, "path": "https://example.invalid/a.png"}]},
        features=datasets.Features({"image": datasets.Image()}),
    )
    reader = TableReader(table, "image")
    with pytest.raises(UnreadableImageError, match="only the address"):
        reader.raw(0, "one")
    assert len(reader.digest()) == 64


def test_a_damaged_table_is_an_error_that_names_the_folder(tmp_path: Path) -> None:
    (tmp_path / "bad" / "data").mkdir(parents=True)
    (tmp_path / "bad" / "data" / "train-0.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match=r"bad cannot be read as a dataset: .*Parquet"):
        load_dataset({"name": "t", "path": str(tmp_path / "bad")})


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="cannot be read as a dataset"):
        load_dataset({"name": "t", "path": str(tmp_path / "empty")})


# Descriptions


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent does not exist \(`path`\)"):
        load_dataset({"name": "t", "path": str(tmp_path / "absent")})


def test_wrong_keys_and_both_places() -> None:
    with pytest.raises(DataError, match="there is no dataset key `image_colum`; did you mean `image_column`"):
        load_dataset({"name": "t", "path": ".", "image_colum": "x"})
    with pytest.raises(DataError, match="not both"):
        spec_of({"path": "a", "hub": "b"})
    with pytest.raises(DataError, match="must be a list of names"):
        spec_of({"path": "a", "class_names": "cat"})


def test_a_registered_name_with_a_place_of_its_own_keeps_origin_and_columns() -> None:
    spec = spec_of({"name": "cifar100", "path": "x", "hub": None})
    assert (spec.origin, spec.label_column, spec.hub) == ("cifar-100", "fine_label", None)
    assert spec_of({"name": "mine", "hub": "uoft-cs/cifar100"}).origin == "cifar-100"


def test_the_data_folder_goes_before_the_hub(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_folder.rename(tmp_path / "pets")
    monkeypatch.setattr(hub, "find_hub", lambda *_, **__: pytest.fail("asked the hub"))
    assert load_dataset("pets", data_dir=tmp_path).origin == "oxford-iiit-pet"
    monkeypatch.setenv("ATTNDRIFT_DATA", str(tmp_path))
    assert describe("pets") == str(tmp_path / "pets")
    assert len(load_dataset("pets").train) == 24
    assert find_local(DATASETS["eurosat"]) is None
    with pytest.raises(DataError, match=r"does not exist \(data_dir\)"):
        load_dataset("pets", data_dir=tmp_path / "absent")
    monkeypatch.setenv("ATTNDRIFT_DATA", str(tmp_path / "absent"))
    with pytest.raises(DataError, match=r"does not exist \(ATTNDRIFT_DATA\)"):
        load_dataset("pets")


# The hub


def test_a_hub_out_of_reach_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DatasetUnavailable, match=r"pets: the hub is out of reach.*ATTNDRIFT_DATA"):
        load_dataset("pets")


FILES = [
    "README.md",
    "data/test-00000-of-00001.parquet",
    "data/train-00001-of-00002.parquet",
    "data/train-00000-of-00002.parquet",
]


def _in_the_cache(root: Path, files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A dataset ``made/set`` in the cache of the hub, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    folder = root / "datasets--made--set"
    commit = "c" * 40
    for name, text in {"refs/main": commit, **{f"snapshots/{commit}/{n}": t for n, t in files.items()}}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    hub.forget_answers()


CARD_OF_SPLITS = """---
configs:
- config_name: default
  data_files:
  - {split: train, path: data/train-*}
  - {split: test, path: data/test-*}
---
"""
SHARD = "data/train-00000-of-00001.parquet"


@pytest.mark.parametrize(
    ("files", "missing"),
    [
        ({"README.md": CARD_OF_SPLITS}, ["data/train-*", "data/test-*"]),
        ({"README.md": CARD_OF_SPLITS, SHARD: ""}, ["data/test-*"]),
        ({"README.md": CARD_OF_SPLITS, "data/train-00000-of-00002.parquet": ""}, ["data/train-*", "data/test-*"]),
    ],
    ids=["description alone", "one split", "half a split"],
)
def test_a_split_that_the_cache_lacks_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], missing: list[str]
) -> None:
    _in_the_cache(tmp_path, files, monkeypatch)
    found = hub.find_hub("made/set", config=None, revision=None, where="set")
    assert list(found.missing(["train", "test"])) == missing
    with pytest.raises(DatasetUnavailable, match="could not be downloaded"):
        hub.fetch(found, ["train", "test"], None, "set")


@pytest.mark.parametrize("files", [{"README.md": "# A set"}, {"README.md": "# A set", ".gitattributes": ""}])
def test_a_description_alone_in_the_cache_is_no_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str]
) -> None:
    _in_the_cache(tmp_path, files, monkeypatch)
    with pytest.raises(DatasetUnavailable, match="only the description is in the cache"):
        hub.find_hub("made/set", config=None, revision=None, where="set")


def test_files_tell_their_split_by_their_names() -> None:
    assert hub.split_files(FILES, {}, None, "mine") == {
        "test": ("data/test-00000-of-00001.parquet",),
        "train": ("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"),
    }
    assert hub.split_files(["train.parquet", "test.parquet"], {}, None, "mine") == {
        "train": ("train.parquet",), "test": ("test.parquet",),
    }  # fmt: skip
    assert hub.split_files(["a/train.parquet", "b/train.parquet"], {}, None, "mine") is None
    assert hub.split_files(["train/cat/1.jpg"], {}, None, "mine") is None


def test_a_card_says_which_configuration_holds_which_files() -> None:
    files = ["small/train-0.parquet", "full/train-0.parquet", "full/held-0.parquet"]
    full = [{"split": "train", "path": "full/train-*"}, {"split": "test", "path": ["full/held-*"]}]
    card = {
        "configs": [
            {"config_name": "small", "data_files": [{"split": "train", "path": "small/*"}]},
            {"config_name": "full", "data_files": full, "default": True},
        ]
    }
    found = {"train": ("full/train-0.parquet",), "test": ("full/held-0.parquet",)}
    assert hub.split_files(files, card, None, "mine") == hub.split_files(files, card, "full", "mine") == found
    assert hub.split_files(files, card, "small", "mine") == {"train": ("small/train-0.parquet",)}
    with pytest.raises(DataError, match=r"mine: no configuration `large` \(config\)\. There are small, full"):
        hub.split_files(files, card, "large", "mine")
    del card["configs"][1]["default"]
    with pytest.raises(DataError, match="several configurations"):
        hub.split_files(files, card, None, "mine")


def test_a_split_that_nobody_asks_for_is_not_read(table_folder: Table) -> None:
    path = table_folder({"train": rows(4), "test": rows(2), "noisy": rows(2)}, features())
    (path / "data" / "noisy-00000-of-00001.parquet").write_bytes(b"no Parquet")
    dataset = load_dataset({"name": "t", "path": str(path)})
    assert dataset.splits == ("noisy", "test", "train")
    assert (len(dataset.train), len(dataset.test)) == (4, 2)
    with pytest.raises(DataError, match="cannot be read as a dataset"):
        dataset.split("noisy")


# Generated sets and digits


@pytest.fixture
def fake_drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        name = "tiles"
        class_names = ("red_one", "green", "blue")

        def label(self, seed: int, index: int) -> int:
            return index % 3

        def draw(self, seed: int, index: int) -> np.ndarray:
            return np.full((64, 64, 3), 10 * seed + index % 100, dtype=np.uint8)

    monkeypatch.setitem(GENERATED, "tiles", Fake())  # type: ignore[arg-type]


@pytest.mark.usefixtures("fake_drawings")
def test_a_drawn_set() -> None:
    dataset = load_dataset("tiles")
    assert (len(dataset.train), len(dataset.test)) == (2000, 1000)
    assert dataset.class_names == ("red one", "green", "blue")
    assert dataset.train.labels[:4].tolist() == [0, 1, 2, 0]
    assert np.asarray(dataset.train[3])[0, 0, 0] != np.asarray(dataset.test[3])[0, 0, 0]
    small = load_dataset({"name": "tiles", "train_size": 9, "test_size": 6})
    assert (len(small.train), len(small.test)) == (9, 6)
    with pytest.raises(DataError, match="`train_size` is 2"):
        load_dataset({"name": "tiles", "train_size": 2})


def test_digits() -> None:
    dataset = load_dataset("digits")
    assert (len(dataset.train), len(dataset.test)) == (1442, 355)
    assert np.ptp(np.bincount(dataset.test.labels)) <= 2
    assert set(dataset.train.ids).isdisjoint(dataset.test.ids)
    assert set(dataset.test.labels.tolist()) == set(range(10))
    image = np.asarray(dataset.train[0])
    assert image.shape == (8, 8, 3)
    assert max(np.asarray(dataset.train[i]).max() for i in range(10)) == 255
    assert dataset.class_names[dataset.train.labels[0]] == "zero"


# One source, twice


def test_a_transfer_set_of_the_targets_source_is_refused(image_folder: Path) -> None:
    digits = load_dataset("digits")
    zoo = load_dataset({"name": "zoo", "path": str(image_folder)})
    refuse_same_origin(digits, [zoo])
    with pytest.raises(DataError, match=r"'again' and the target 'zoo' are drawn from one source"):
        refuse_same_origin(zoo, [digits, load_dataset({"name": "again", "path": str(image_folder)})])


def test_the_same_images_under_another_origin_are_refused() -> None:
    target, copy = (in_memory({"train": [3, 3], "test": [2, 2]}, name=name) for name in ("a", "b"))
    other = in_memory({"train": [3, 4], "test": [1, 2]}, name="c")
    assert target.origin != copy.origin
    refuse_same_origin(target, [other])
    with pytest.raises(DataError, match="the same images"):
        refuse_same_origin(target, [other, copy])


# The real ones


@pytest.mark.data
def test_eurosat(data_folder: Path, tmp_path: Path) -> None:
    dataset = load_dataset("eurosat", data_dir=data_folder, cache_dir=tmp_path)
    assert len(dataset.train) + len(dataset.test) == 27_000
    assert len(dataset.class_names) == 10
    assert "annual crop land" in dataset.class_names
    assert dataset.train[0].size == (64, 64)
    assert dataset.train[0].mode == "RGB"
    assert len(set(dataset.train.ids) | set(dataset.test.ids)) == 27_000


@pytest.mark.data
def test_cifar100(data_folder: Path, tmp_path: Path) -> None:
    dataset = load_dataset("cifar100", data_dir=data_folder, cache_dir=tmp_path)
    assert (dataset.source["image_column"], dataset.source["label_column"]) == ("img", "fine_label")
    assert (len(dataset.train), len(dataset.test), len(dataset.class_names)) == (50_000, 10_000, 100)
    assert "aquarium fish" in dataset.class_names
    assert len(set(dataset.test.ids)) == 10_000
    assert dataset.test[0].size == (32, 32)


# Links, stray files, splits


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("train/cat/all", ".."),
        ("train/cat/own", "."),
        ("train/cat/top", "../.."),
        ("train/cat/owls", "../owl"),
        ("train/lynx", "cat"),
        ("train/cat/x.png", "../owl/1.png"),
        ("validation", "train"),
        ("train/all", ".."),
    ],
)
def test_a_link_to_images_that_are_there_already_is_refused(link: str, target: str, image_folder: Path) -> None:
    (image_folder / link).symlink_to(target)
    with pytest.raises(DataError, match=r"is a link to .*would count twice"):
        _ = load_dataset({"name": "zoo", "path": str(image_folder)}).train


def test_a_link_out_of_the_dataset_is_followed_but_not_in_a_circle(image_folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    picture(9).save(elsewhere / "9.png")
    (image_folder / "train" / "cat" / "more").symlink_to(elsewhere)
    assert len(load_dataset({"name": "zoo", "path": str(image_folder)}).train) == 25
    (elsewhere / "deeper").mkdir()
    (elsewhere / "deeper" / "up").symlink_to(elsewhere)
    with pytest.raises(DataError, match="is a link to"):
        _ = load_dataset({"name": "zoo", "path": str(image_folder)}).train


@pytest.mark.parametrize("place", ["one class", "two classes", "two splits", "two files", "two classes that are links"])
def test_an_image_that_is_reached_through_two_links_is_refused(place: str, image_folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    picture(9).save(elsewhere / "9.png")
    links = {
        "one class": ("train/cat/a", "train/cat/b"),
        "two classes": ("train/cat/a", "train/owl/a"),
        "two splits": ("train/cat/a", "test/owl/b"),
        "two files": ("train/cat/a.png", "train/owl/b.png"),
        "two classes that are links": ("train/lynx", "train/puma"),
    }[place]
    for link in links:
        (image_folder / link).symlink_to(elsewhere / "9.png" if place == "two files" else elsewhere)
    dataset = load_dataset({"name": "zoo", "path": str(image_folder)})
    with pytest.raises(DataError, match=r"are links to one image, .*9\.png: it would count twice"):
        _ = dataset.train, dataset.test


@pytest.mark.parametrize("length", [1, 2, 3])
def test_links_outside_the_dataset_that_lead_in_a_circle_are_refused(
    length: int, image_folder: Path, tmp_path: Path
) -> None:
    folders = [tmp_path / f"outside-{number}" for number in range(length)]
    for number, folder in enumerate(folders):
        folder.mkdir()
        picture(number).save(folder / f"{number}.png")
    for folder, following in zip(folders, [*folders[1:], folders[0]], strict=True):
        (folder / "next").symlink_to(following)
    (image_folder / "train" / "cat" / "more").symlink_to(folders[0])
    with pytest.raises(DataError, match="is a link to"):
        _ = load_dataset({"name": "zoo", "path": str(image_folder)}).train


@pytest.mark.parametrize("odd", ["stray", "top", "unlabeled", "logs", "readme"])
def test_splits_are_no_classes_whatever_stands_beside_them(odd: str, image_folder: Path) -> None:
    if odd == "stray":
        picture(9).save(image_folder / "train" / "9.png")
    elif odd == "top":
        picture(9).save(image_folder / "9.png")
    elif odd == "readme":
        (image_folder / "readme.txt").write_text("x")
    else:
        (image_folder / odd).mkdir()
        if odd == "unlabeled":
            picture(9).save(image_folder / odd / "9.png")
    if odd in ("stray", "top", "unlabeled"):
        with pytest.warns(UserWarning, match="1 images of .* are left out, as they are in no class folder: 9.png"):
            dataset = load_dataset({"name": "zoo", "path": str(image_folder)})
    else:
        dataset = load_dataset({"name": "zoo", "path": str(image_folder)})
    assert dataset.class_names == ("big dog", "cat", "owl")
    assert (dataset.train_split, dataset.test_split, len(dataset.train), len(dataset.test)) == ("train", "test", 24, 12)


def test_a_class_beside_splits_is_named(image_folder: Path) -> None:
    (image_folder / "lynx").mkdir()
    picture(9).save(image_folder / "lynx" / "9.png")
    with pytest.raises(DataError, match="lynx holds images and stands beside test, train"):
        load_dataset({"name": "zoo", "path": str(image_folder)})


@pytest.mark.parametrize("split", ["fold_A", "TRAIN", "My-Images"])
def test_splits_with_names_of_their_own_may_hold_a_stray_image(split: str, image_folder: Path) -> None:
    (image_folder / "train").rename(image_folder / split)
    picture(9).save(image_folder / split / "9.png")
    with pytest.warns(UserWarning, match="1 images of .* are left out"):
        dataset = load_dataset({"name": "zoo", "path": str(image_folder), "train_split": split})
    assert dataset.class_names == ("big dog", "cat", "owl")


def test_images_beside_classes_are_counted(image_folder: Path) -> None:
    picture(9).save(image_folder / "train" / "9.png")
    with pytest.warns(UserWarning, match="1 images of .*train are left out, as they are in no class folder: 9.png"):
        load_dataset({"name": "zoo", "path": str(image_folder / "train")})


def test_a_folder_that_is_no_class_is_named(image_folder: Path) -> None:
    (image_folder / "train" / "logs").mkdir()
    (image_folder / "train" / "logs" / "a.csv").write_text("x")
    with pytest.raises(DataError, match=r"classes without images in .*: logs.* 1 \.csv .*Move what is no class out"):
        _ = load_dataset({"name": "zoo", "path": str(image_folder)}).train


def test_an_empty_folder_is_no_class_and_is_named(image_folder: Path) -> None:
    for split in ("train", "test"):
        (image_folder / split / "zebra").mkdir()
    with pytest.warns(UserWarning, match=r"empty folders in .* are taken for no class: train/zebra, test/zebra\."):
        dataset = load_dataset({"name": "zoo", "path": str(image_folder)})
    assert dataset.class_names == ("big dog", "cat", "owl")


@pytest.mark.parametrize("name", ["a.heic", "a.HEIF", "a.jxl", "a.cr2", "a.svg", "a", "a.txt", "a.png.part"])
def test_files_that_are_left_out_are_counted_and_named(name: str, image_folder: Path) -> None:
    (image_folder / "train" / "cat" / name).write_bytes(b"x")
    with pytest.warns(
        UserWarning, match=rf"1 files are left out.*: 1 {Path(name).suffix.lower() or 'no suffix'} .*{name}"
    ):
        assert len(load_dataset({"name": "zoo", "path": str(image_folder)}).train) == 24


def test_a_broken_link_is_counted(image_folder: Path) -> None:
    (image_folder / "train" / "cat" / "gone.png").symlink_to("nowhere.png")
    with pytest.warns(UserWarning, match="1 broken link"):
        assert len(load_dataset({"name": "zoo", "path": str(image_folder)}).train) == 24


@pytest.mark.parametrize(
    ("suffix", "kind"), [(".jpe", "JPEG"), (".MPO", "MPO"), (".apng", "PNG"), (".j2k", "JPEG2000"), (".dib", "DIB")]
)
def test_more_suffixes_of_images(suffix: str, kind: str, image_folder: Path) -> None:
    picture(9).save(image_folder / "train" / "cat" / f"a{suffix}", format=kind)
    split = load_dataset({"name": "zoo", "path": str(image_folder)}).train
    assert split[split.ids.index(f"cat/a{suffix}")].size == (12, 10)
