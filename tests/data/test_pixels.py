"""Pixels made once by the processor itself, and normalised as it does."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
from made_data import in_memory, keep_in_process, picture
from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil

from attndrift.data import DataError, PixelStore, load_dataset, make_splits, pixel_cache


def small_processor(**options: object) -> CLIPImageProcessorPil:
    size = {"size": {"shortest_edge": 14}, "crop_size": {"height": 14, "width": 14}}
    return CLIPImageProcessorPil(**{**size, **options})


COUNTS = {"train": [6, 5], "test": [2, 2]}


@pytest.mark.parametrize(
    "processor",
    [
        small_processor(),
        small_processor(size={"shortest_edge": 9}),  # smaller than the crop: padded
        small_processor(image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.6, 0.7], rescale_factor=1 / 127.5),
        small_processor(do_normalize=False),
        SiglipImageProcessorPil(size={"height": 16, "width": 12}),
    ],
)
def test_equal_to_the_processor_from_end_to_end(processor: CLIPImageProcessorPil) -> None:
    split = in_memory(COUNTS).train
    store = PixelStore.open(split, processor)
    assert store.pixels.dtype == np.uint8
    images = [split[i] for i in range(len(split))]
    expected = processor(images, return_tensors="pt")["pixel_values"]
    result = store.fetch(range(len(split)))
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)


def test_a_flip_mirrors_and_nothing_else() -> None:
    store = PixelStore.open(in_memory(COUNTS).train, small_processor())
    flipped = store.fetch([4, 2, 4], flip=[True, False, False])
    torch.testing.assert_close(flipped[0], flipped[2].flip(-1), rtol=0, atol=0)
    torch.testing.assert_close(flipped[1], store.fetch([2])[0], rtol=0, atol=0)
    assert not torch.equal(flipped[0], flipped[2])


def test_fetching_does_not_change_the_store() -> None:
    store = PixelStore.open(in_memory(COUNTS).train, small_processor())
    before = store.fetch_uint8([0]).clone()
    store.fetch_uint8([0], flip=[True]).zero_()
    torch.testing.assert_close(store.fetch_uint8([0]), before)


def test_positions_and_subsets() -> None:
    split = in_memory(COUNTS).train
    store = PixelStore.open(split, small_processor(), indices=[7, 1, 4])
    assert store.ids == [split.ids[i] for i in (7, 1, 4)]
    np.testing.assert_array_equal(store.labels, split.labels[[7, 1, 4]])
    assert store.positions([4, 7]).tolist() == [2, 0]
    part = store.subset([4, 7])
    assert (len(part), part.size) == (2, (14, 14))
    torch.testing.assert_close(part.fetch([1, 0]), store.fetch([0, 2]))
    torch.testing.assert_close(part.subset([7]).fetch([0]), store.fetch([0]))
    whole = PixelStore.open(split, small_processor())
    torch.testing.assert_close(store.fetch([0, 1, 2]), whole.fetch([7, 1, 4]))
    with pytest.raises(DataError, match="images 3 of the split are not in this store"):
        store.positions([4, 3])
    with pytest.raises(DataError, match="not in this store"):
        part.subset([1])


def test_wrong_requests() -> None:
    split = in_memory(COUNTS).train
    store = PixelStore.open(split, small_processor())
    for positions in ([11], [-1]):
        with pytest.raises(IndexError, match="the store has 11 images"):
            store.fetch(positions)
    with pytest.raises(ValueError, match="`flip` has 1 values for 2 positions"):
        store.fetch([0, 1], flip=[True])
    with pytest.raises(ValueError, match="expected uint8"):
        store.normalize(torch.zeros(1, 3, 4, 4))
    for indices, message in (([], "no images"), ([11], "0 to 10"), ([1, 1], "twice")):
        with pytest.raises(DataError, match=message):
            PixelStore.open(split, small_processor(), indices=indices)
    assert store.fetch([]).shape == (0, 3, 14, 14)


def test_pixels_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[int, int]] = []
    first = PixelStore.open(in_memory(COUNTS).train, small_processor(), progress=lambda *counts: done.append(counts))
    assert done[-1] == (11, 11)
    assert isinstance(first.pixels, np.memmap)
    monkeypatch.setattr(pixel_cache, "_write", lambda *a: pytest.fail("made again"))
    again = PixelStore.open(in_memory(COUNTS).train, small_processor())
    np.testing.assert_array_equal(first.pixels, again.pixels)
    other_scale = PixelStore.open(in_memory(COUNTS).train, small_processor(image_mean=[0, 0, 0]))
    assert not torch.equal(other_scale.fetch([0]), first.fetch([0]))  # normalising is not in the file


@pytest.mark.parametrize("change", ["size", "resample", "pixels", "fewer", "others"])
def test_whatever_changes_the_pixels_makes_another_file(change: str, tmp_path: Path) -> None:
    split, processor, indices = in_memory(COUNTS).train, small_processor(), None
    PixelStore.open(split, processor, cache_dir=tmp_path)
    if change == "size":
        processor = small_processor(crop_size={"height": 14, "width": 13})
    elif change == "resample":
        processor = small_processor(resample=0)
    elif change == "pixels":
        split = in_memory(COUNTS, shuffle=1).train
    elif change == "fewer":
        indices = range(10)
    else:
        indices = list(reversed(range(11)))
    PixelStore.open(split, processor, indices=indices, cache_dir=tmp_path)
    assert len(list((tmp_path / "pixels").glob("*.npy"))) == 2


@pytest.mark.parametrize("damage", ["short", "empty", "text", "other shape"])
def test_a_damaged_file_is_made_again(damage: str, tmp_path: Path) -> None:
    split = in_memory(COUNTS).train
    whole = np.array(PixelStore.open(split, small_processor(), cache_dir=tmp_path).pixels)
    (file,) = (tmp_path / "pixels").glob("*.npy")
    content = file.read_bytes()
    if damage == "other shape":
        np.save(file, whole[:3])
    else:
        file.write_bytes({"short": content[:-5], "empty": b"", "text": b"hello"}[damage])
    again = PixelStore.open(split, small_processor(), cache_dir=tmp_path)
    np.testing.assert_array_equal(again.pixels, whole)


def test_an_interruption_leaves_nothing_behind(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    split = in_memory(COUNTS).train
    with pytest.raises(KeyboardInterrupt):
        PixelStore.open(split, small_processor(), cache_dir=tmp_path, progress=interrupt)
    assert {p.suffix for p in (tmp_path / "pixels").iterdir()} <= {".lock"}
    assert len(PixelStore.open(split, small_processor(), cache_dir=tmp_path)) == 11


def test_what_a_killed_process_left_is_written_over(tmp_path: Path) -> None:
    split = in_memory(COUNTS).train
    PixelStore.open(split, small_processor(), cache_dir=tmp_path)
    (file,) = (tmp_path / "pixels").glob("*.npy")
    expected = file.read_bytes()
    file.rename(file.with_suffix(".partial"))
    file.with_suffix(".partial").write_bytes(b"x" * 100_000)
    PixelStore.open(split, small_processor(), cache_dir=tmp_path)
    assert file.read_bytes() == expected


def test_two_processes_make_one_file(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        results = pool.map(keep_in_process, [str(tmp_path)] * 2, chunksize=1)
        pool.close()
        pool.join()
    assert sorted(made for made, _ in results) == [False, True]
    assert results[0][1] == results[1][1] == keep_in_process(str(tmp_path))[1]
    assert sorted(p.suffix for p in (tmp_path / "pixels").iterdir()) == [".json", ".lock", ".npy"]


def test_all_unreadable_images_are_named_at_once(image_folder: Path, tmp_path: Path) -> None:
    for name in ("cat/3.png", "owl/1.png"):
        (image_folder / "train" / name).write_bytes(b"damaged")
    split = load_dataset({"name": "zoo", "path": str(image_folder)}).train
    with pytest.raises(DataError, match=r"2 of 24 images cannot be read: zoo/cat/3.png .*zoo/owl/1.png .*skip"):
        PixelStore.open(split, small_processor(), cache_dir=tmp_path)
    assert not list((tmp_path / "pixels").glob("*.npy"))


def test_after_skipping_the_rest_is_kept(image_folder: Path) -> None:
    (image_folder / "train" / "big_dog" / "0.png").write_bytes(b"damaged")  # the first image of all
    dataset = load_dataset({"name": "zoo", "path": str(image_folder)})
    splits = make_splits(dataset, selection="validation", data_seed=0, probe_size=3, unreadable="skip")
    assert len(PixelStore.open(dataset.train, small_processor(), indices=splits.train.indices)) == 17


def test_images_of_different_sizes_are_an_error(image_folder: Path) -> None:
    picture(1, width=30).save(image_folder / "train" / "cat" / "5.png")
    split = load_dataset({"name": "zoo", "path": str(image_folder)}).train
    with pytest.raises(DataError, match=r"different sizes: 14 x 16 of .*, 14 x 42 of 'cat/5.png'"):
        PixelStore.open(split, small_processor(do_center_crop=False))


def test_a_processor_that_cannot_be_split_in_two_is_refused() -> None:
    class Stretching(CLIPImageProcessorPil):
        def normalize(self, image: np.ndarray, *args: object, **options: object) -> np.ndarray:
            return image - image.mean()

    with pytest.raises(DataError, match=r"its pixels cannot be kept"):
        PixelStore.open(in_memory(COUNTS).train, Stretching(size={"shortest_edge": 14}))


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="ATTNDRIFT_CACHE"):
        PixelStore.open(in_memory(COUNTS).train, small_processor(), cache_dir=tmp_path / "file")


def test_a_full_disk_is_said_before_hours_of_work(monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr(pixel_cache.shutil, "disk_usage", lambda folder: Usage)
    with pytest.raises(DataError, match=r"11 images of 14 x 14 pixels take 0.0 GB"):
        PixelStore.open(in_memory(COUNTS).train, small_processor())


@pytest.mark.data
def test_eurosat_pixels(data_folder: Path, tmp_path: Path) -> None:
    split = load_dataset("eurosat", data_dir=data_folder, cache_dir=tmp_path).train
    processor = CLIPImageProcessorPil()
    store = PixelStore.open(split, processor, indices=[0, 99, 21_599], cache_dir=tmp_path)
    expected = processor([split[i] for i in (0, 99, 21_599)], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(store.fetch([0, 1, 2]), expected, rtol=0, atol=1e-6)
