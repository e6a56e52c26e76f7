"""The parts of the data: disjoint, balanced, nested, and a function of the data and the seed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_data import in_memory, picture

from attndrift.data import DataError, evaluation_part, load_dataset, make_splits
from attndrift.data.dataset import ImageDataset
from attndrift.data.readers import GeneratedReader
from attndrift.data.registry import DatasetSpec
from attndrift.data.splits import monitor_part, refuse_overlap

COUNTS = {"train": [20, 14, 17], "test": [9, 5, 7]}
COUNTS_STRATEGY = st.lists(st.integers(6, 25), min_size=1, max_size=6)


def test_dividing_a_dataset_looks_at_no_image() -> None:
    looked_at: list[int] = []

    def opened() -> tuple[GeneratedReader, np.ndarray, list[str]]:
        def draw(index: int) -> np.ndarray:
            looked_at.append(index)
            return np.zeros((4, 4, 3), dtype=np.uint8)

        return GeneratedReader(40, draw), np.arange(40) % 2, [str(index) for index in range(40)]

    dataset = ImageDataset(DatasetSpec(name="made", origin="made"), ["a", "b"], {"train": opened, "test": opened}, {})
    splits = make_splits(dataset, selection="validation", data_seed=0)
    assert splits.who_gets_what
    assert not looked_at
    assert splits.to_json()["fingerprint"]
    assert looked_at


def spread(counts: list[int]) -> int:
    return max(counts) - min(counts)


@given(
    train=COUNTS_STRATEGY,
    seed=st.integers(0, 2**32 - 1),
    probe=st.integers(1, 2),
    validation=st.integers(1, 2),
    wanted=st.integers(1, 2),
)
@settings(max_examples=40, deadline=None)
def test_parts_of_selection_validation_are_disjoint_and_balanced(
    train: list[int], seed: int, probe: int, validation: int, wanted: int
) -> None:
    dataset = in_memory({"train": train, "test": [2] * len(train)})
    splits = make_splits(
        dataset,
        selection="validation",
        data_seed=seed,
        train_per_class=wanted,
        validation_per_class=validation,
        probe_per_class=probe,
    )
    classes = len(train)
    for part, number in ((splits.train, wanted), (splits.validation, validation), (splits.probe, probe)):
        assert part.split == "train"
        assert part.class_counts(classes) == [number] * classes
        assert [dataset.train.ids[i] for i in part.indices] == list(part.ids)
        np.testing.assert_array_equal(part.labels, dataset.train.labels[part.indices])
    ids = [*splits.train.ids, *splits.validation.ids, *splits.probe.ids]
    assert len(set(ids)) == len(ids)
    assert splits.test.split == "test"
    assert len(splits.test) == 2 * classes


@given(size=st.integers(1, 14), seed=st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_probe_counts_differ_by_at_most_one(size: int, seed: int) -> None:
    dataset = in_memory(COUNTS)
    for selection in ("test", "validation"):
        splits = make_splits(dataset, selection=selection, data_seed=seed, probe_size=size)
        assert len(splits.probe) == size
        assert spread(splits.probe.class_counts(3)) <= 1


@pytest.mark.parametrize(
    "counts", [[150, 150], [10] * 37, [6, 6], [3] * 10, [200, 5, 5], [5] * 100, [30, 30, 30], [1990, 4, 4], [2] * 6]
)
@pytest.mark.parametrize("asked", [{}, {"train_per_class": 1}, {"validation_fraction": 0.5}])
def test_a_probe_whose_size_is_not_given_leaves_a_small_set_its_images(
    counts: list[int], asked: dict[str, float]
) -> None:
    dataset = in_memory({"train": counts, "test": [2] * len(counts)})
    if counts == [2] * 6 or (counts == [3] * 10 and "validation_fraction" in asked):
        with pytest.raises(DataError, match="probe"):  # nothing is left for it
            make_splits(dataset, selection="validation", data_seed=3, **asked)
        return
    splits = make_splits(dataset, selection="validation", data_seed=3, **asked)
    probe = splits.probe.class_counts(len(counts))
    assert 4 <= len(splits.probe) <= max(4, min(200, sum(counts) // 10))
    tiny = sum(min(n // 10, 1) for n in counts) == 0 and len(counts) < 4
    assert all(number <= max(1 if not tiny else 2, n // 10) for number, n in zip(probe, counts, strict=True))
    if not asked:
        assert len(splits.train) >= 0.5 * sum(counts)
        assert len(splits.train) + len(splits.validation) + len(splits.probe) == sum(counts)


@pytest.mark.parametrize("counts", [[200] * 10, [120] * 37, [1000, 1100]])
def test_a_large_set_has_a_probe_of_200_spread_evenly(counts: list[int]) -> None:
    dataset = in_memory({"train": counts, "test": [2] * len(counts)})
    splits = [make_splits(dataset, selection="validation", data_seed=3, probe_size=size) for size in (None, 200)]
    assert len(splits[0].probe) == 200
    assert splits[0].hash == splits[1].hash


def test_a_probe_that_shares_the_test_takes_what_there_is() -> None:
    dataset = in_memory({"train": [20, 20], "test": [9, 30]})
    splits = make_splits(dataset, selection="test", data_seed=3)
    assert splits.probe.class_counts(2) == [9, 30]
    assert (
        splits.who_gets_what == "made: 40 images train, 39 validate and test, 39 are the probe (shared with the test)"
    )


def test_without_numbers_everything_is_used() -> None:
    dataset = in_memory(COUNTS)
    splits = make_splits(dataset, selection="validation", data_seed=1, probe_size=6, validation_fraction=0.25)
    assert splits.validation.class_counts(3) == [5, 4, 4]  # a quarter of 20, 14, 17; halves upwards
    assert splits.train.class_counts(3) == [13, 8, 11]
    assert splits.test.class_counts(3) == COUNTS["test"]


def test_selection_test_validates_on_the_test() -> None:
    dataset = in_memory(COUNTS)
    splits = make_splits(dataset, selection="test", data_seed=0, probe_size=7)
    assert splits.validation is splits.test
    assert splits.train.class_counts(3) == COUNTS["train"]
    assert splits.test.class_counts(3) == COUNTS["test"]
    assert splits.probe.split == "test"
    assert set(splits.probe.ids) < set(splits.test.ids)
    with pytest.raises(DataError, match=r"validates on the whole held-out split"):
        make_splits(dataset, selection="test", data_seed=0, validation_per_class=2)


def test_more_training_images_change_no_other_part_and_hold_the_fewer() -> None:
    dataset = in_memory(COUNTS)
    few, many = (
        make_splits(
            dataset,
            selection="validation",
            data_seed=5,
            train_per_class=n,
            validation_per_class=3,
            probe_size=7,
        )
        for n in (2, 6)
    )
    assert set(few.train.ids) < set(many.train.ids)
    for name in ("validation", "test", "probe"):
        assert few.parts[name].hash == many.parts[name].hash
    assert few.hash != many.hash


@pytest.mark.parametrize("seed", range(6))
def test_test_limits_are_nested_and_even(seed: int) -> None:
    dataset = in_memory(COUNTS)
    before: set[str] = set()
    for limit in range(1, 22):
        part = make_splits(dataset, selection="test", data_seed=seed, test_limit=limit, probe_size=3).test
        assert len(part) == limit
        assert before < set(part.ids)
        before = set(part.ids)
        counts = np.asarray(part.class_counts(3))
        short = counts < np.asarray(COUNTS["test"])
        if short.any():
            assert counts.max() - counts[short].min() <= 1
    assert len(make_splits(dataset, selection="test", data_seed=seed, test_limit=999, probe_size=3).test) == 21


def test_the_parts_do_not_depend_on_the_order_of_the_rows() -> None:
    one, other = (
        make_splits(in_memory(COUNTS, shuffle=s), selection="validation", data_seed=3, train_per_class=4, probe_size=6)
        for s in (0, 1)
    )
    for name, part in one.parts.items():
        assert set(part.ids) == set(other.parts[name].ids)


def test_the_seed_decides() -> None:
    dataset = in_memory(COUNTS)
    make = {"selection": "validation", "train_per_class": 4, "probe_size": 6}
    first, again, other = (make_splits(dataset, data_seed=s, **make) for s in (3, 3, 4))
    assert first.to_json() == again.to_json()
    assert first.hash != other.hash
    assert first.probe.ids != other.probe.ids


def test_other_pixels_under_the_same_ids_have_another_hash(image_folder: Path) -> None:
    source = {"name": "zoo", "path": str(image_folder)}
    before = make_splits(load_dataset(source), selection="test", data_seed=0, probe_size=3)
    assert before.hash
    picture(999).save(image_folder / "train" / "cat" / "0.png")
    after = make_splits(load_dataset(source), selection="test", data_seed=0, probe_size=3)
    assert before.train.hash == after.train.hash
    assert before.hash != after.hash


def test_the_choice_is_the_same_on_every_machine() -> None:
    """A change of these values changes every recorded split: raise it to a new major version."""
    splits = make_splits(
        in_memory(COUNTS),
        selection="validation",
        data_seed=42,
        train_per_class=1,
        validation_per_class=1,
        probe_size=3,
    )
    assert sorted(splits.probe.ids) == PINNED["probe"]
    assert sorted(splits.validation.ids) == PINNED["validation"]
    assert sorted(splits.train.ids) == PINNED["train"]


PINNED = {
    "probe": ["train/0/5", "train/1/10", "train/2/12"],
    "validation": ["train/0/9", "train/1/1", "train/2/14"],
    "train": ["train/0/13", "train/1/8", "train/2/10"],
}


def test_the_record_is_plain_and_complete() -> None:
    dataset = in_memory(COUNTS)
    splits = make_splits(dataset, selection="validation", data_seed=3, train_per_class=4, probe_size=6)
    record = json.loads(json.dumps(splits.to_json()))
    assert record["hash"] == splits.hash
    assert record["fingerprint"] == dataset.fingerprint
    assert record["parts"]["train"]["n"] == 12
    assert len(record["parts"]["train"]["ids"]) == len(record["parts"]["train"]["indices"]) == 12
    assert record["skipped"] == {"train": {}, "test": {}}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probe_per_class": 15}, r"the probe needs 15 images of 'class 1'; there are 14"),
        ({"probe_size": 60}, r"the probe needs 20 images of 'class 1'; there are 14 \(and 1 more class"),
        ({"validation_per_class": 12, "probe_per_class": 3}, r"probe and validation needs 15 images"),
        (
            {"train_per_class": 9, "validation_per_class": 3, "probe_per_class": 3},
            r"training needs 15 images",
        ),
        ({"validation_per_class": 13, "probe_per_class": 1}, r"training needs 15 images of 'class 1'"),
        ({"train_per_class": 0}, r"`train_per_class` is 0"),
        ({"test_limit": -1}, r"`test_limit` is -1"),
        ({"validation_fraction": 1.0}, r"`validation_fraction` is 1.0"),
        ({"selection": "other"}, r"'test' or 'validation'"),
        ({"unreadable": "ignore"}, r"'error' or 'skip'"),
    ],
)
def test_impossible_requests(options: dict[str, object], message: str) -> None:
    settings_ = {"selection": "validation", "data_seed": 0, "probe_size": 6, **options}
    with pytest.raises(DataError, match=message):
        make_splits(in_memory(COUNTS), **settings_)  # type: ignore[arg-type]


def test_a_class_without_images_is_named() -> None:
    for split in ("train", "test"):
        counts = {**COUNTS, split: [5, 0, 0]}
        with pytest.raises(DataError, match=rf"split `{split}`: classes without images: class 1, class 2"):
            make_splits(in_memory(counts), selection="validation", data_seed=0, probe_size=3)


def test_unreadable_images_are_skipped_on_request_and_listed(image_folder: Path) -> None:
    for name in ("train/cat/3.png", "test/owl/1.png"):
        (image_folder / name).write_bytes(b"damaged")
    dataset = load_dataset({"name": "zoo", "path": str(image_folder)})
    seen: list[tuple[int, int]] = []
    splits = make_splits(
        dataset,
        selection="validation",
        data_seed=0,
        probe_size=3,
        unreadable="skip",
        progress=lambda done, total: seen.append((done, total)),
    )
    assert {split: list(images) for split, images in splits.skipped.items()} == {
        "train": ["cat/3.png"],
        "test": ["owl/1.png"],
    }
    assert "no image format" in splits.skipped["train"]["cat/3.png"]
    used = {i for name in ("train", "validation", "probe") for i in splits.parts[name].ids}
    assert used == set(dataset.train.ids) - {"cat/3.png"}
    assert len(splits.test) == 11
    assert seen[23] == (24, 24)
    part, skipped = evaluation_part(dataset, unreadable="skip")
    assert (len(part), list(skipped)) == (11, ["owl/1.png"])


def test_parts_of_a_transfer_set() -> None:
    dataset = in_memory(COUNTS)
    whole, _ = evaluation_part(dataset)
    assert len(whole) == 21
    few, _ = evaluation_part(dataset, limit=6)
    assert few.class_counts(3) == [2, 2, 2]
    more, _ = evaluation_part(dataset, limit=9)
    assert set(few.ids) < set(more.ids)


@pytest.mark.data
def test_eurosat_with_both_selections(data_folder: Path, tmp_path: Path) -> None:
    dataset = load_dataset("eurosat", data_dir=data_folder, cache_dir=tmp_path)
    seed = make_splits(dataset, selection="test", data_seed=42)
    assert {name: len(part) for name, part in seed.parts.items()} == {
        "train": 21_600,
        "validation": 5_400,
        "test": 5_400,
        "probe": 200,
    }
    small = make_splits(
        dataset,
        selection="validation",
        data_seed=0,
        train_per_class=160,
        validation_per_class=30,
        probe_per_class=20,
    )
    assert [len(part) for part in small.parts.values()] == [1600, 300, 5400, 200]
    free = make_splits(dataset, selection="validation", data_seed=0)
    assert len(free.probe) == 200
    assert free.probe.class_counts(10) == [20] * 10
    assert len(free.train) + len(free.validation) + len(free.probe) == 21_600


# Images that a run watches while it trains


@given(
    train=COUNTS_STRATEGY,
    count=st.integers(1, 200),
    limit=st.none() | st.integers(1, 40),
    seed=st.integers(0, 100),
    one_split=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_no_image_is_watched_and_evaluated(
    train: list[int], count: int, limit: int | None, seed: int, one_split: bool
) -> None:
    counts = {"train": train, "test": [n // 2 + 1 for n in train]}
    dataset = in_memory(counts, train_split="test" if one_split else "train")
    evaluated, _ = evaluation_part(dataset, limit=limit, data_seed=seed)
    watched, _ = monitor_part(dataset, count, data_seed=seed, taken=[evaluated])
    left = sum(counts["test"]) - len(evaluated) if one_split else sum(train)
    if watched is None:
        assert left == 0
        return
    assert len(watched) == min(count, left)
    refuse_overlap([evaluated, watched])
    images = [(part.split, i) for part in (evaluated, watched) for i in part.indices.tolist()]
    assert len(set(images)) == len(images)
    assert np.array_equal(watched.labels, dataset.split(watched.split).labels[watched.indices])
    if not one_split:
        numbers = watched.class_counts(len(train))
        assert all(n == all_ or n >= max(numbers) - 1 for n, all_ in zip(numbers, train, strict=True))


def test_parts_that_share_an_image_are_refused() -> None:
    dataset = in_memory(COUNTS)
    evaluated, _ = evaluation_part(dataset, limit=10)
    again, _ = evaluation_part(dataset, limit=4, name="monitor")
    with pytest.raises(
        ValueError, match=r"image 'test/\d/\d' of split `test` is in the parts `transfer` and `monitor`"
    ):
        refuse_overlap([evaluated, again])


def test_images_that_cannot_be_read_are_not_watched(tmp_path: Path) -> None:
    for split, number in (("train", 6), ("test", 2)):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(number):
                picture(index).save(tmp_path / split / name / f"{index}.png")
    for index in (0, 3):
        (tmp_path / "train" / "a" / f"{index}.png").write_bytes(b"no picture")
    dataset = load_dataset({"name": "t", "path": str(tmp_path)})
    evaluated, _ = evaluation_part(dataset)
    watched, skipped = monitor_part(dataset, 50, unreadable="skip", taken=[evaluated])
    assert watched is not None
    assert watched.class_counts(2) == [4, 6]
    assert set(skipped) == {"a/0.png", "a/3.png"}
