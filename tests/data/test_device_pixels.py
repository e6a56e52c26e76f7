"""Images made on the device are those of the store, bit for bit; the device's part runs on the CPU here."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from made_data import in_memory
from transformers import CLIPImageProcessorPil

from attndrift.data import PixelStore, TrainingImages, device_pixels
from attndrift.data.device_pixels import DevicePixels, pixels_on

CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.fixture
def store() -> PixelStore:
    processor = CLIPImageProcessorPil(size={"shortest_edge": 14}, crop_size={"height": 14, "width": 12})
    return PixelStore.open(in_memory({"train": [6, 5], "test": [2, 2]}).train, processor)


@pytest.mark.parametrize("part", [1, 3 * 14 * 12 * 4, 1 << 28])
@pytest.mark.parametrize("free", [0, 8 * 11 * 3 * 14 * 12 - 8, 8 * 11 * 3 * 14 * 12])
def test_equal_to_the_store_whole_and_in_parts(
    store: PixelStore, monkeypatch: pytest.MonkeyPatch, free: int, part: int
) -> None:
    monkeypatch.setattr(device_pixels, "_free_memory", lambda device: free)
    monkeypatch.setattr(device_pixels, "PART", part)
    there = DevicePixels(store, CPU)
    generator = np.random.default_rng(0)
    for _ in range(5):
        positions, flip = generator.integers(0, 11, 7), generator.random(7) < 0.5
        for chosen in (None, flip, np.zeros(7, bool)):
            got = there.fetch(positions, chosen)
            assert got.dtype == torch.float32
            assert torch.equal(got, store.fetch(positions, chosen))
        assert torch.equal(there.fetch_uint8(positions, flip), store.fetch_uint8(positions, flip))
    assert (there._resident is not None) == (free >= 8 * 11 * 3 * 14 * 12), "an eighth of the free memory, and no more"
    assert there.fetch([]).shape == (0, 3, 14, 12)


def test_a_part_of_a_store(store: PixelStore) -> None:
    part = store.subset([7, 2])
    there = DevicePixels(part, CPU)
    assert torch.equal(there.fetch([1, 0], [True, False]), part.fetch([1, 0], [True, False]))
    assert (len(there), there.ids, there.size) == (2, part.ids, part.size)
    assert torch.equal(there.subset([2]).fetch([0]), store.fetch([2]))


def test_on_a_cpu_there_is_nothing_to_do(store: PixelStore) -> None:
    assert pixels_on(store, CPU) is store


def test_a_batch_comes_where_the_pixels_come_and_its_positions_stay(store: PixelStore) -> None:
    batch = TrainingImages(pixels_on(store, META), store.labels, seed=3).__getitems__([4, 0, 9])
    for name in ("pixel_values", "labels"):
        assert batch[name].device == META
    assert batch["pixel_values"].shape == (3, 3, 14, 12)
    assert all(isinstance(batch[name], np.ndarray) for name in ("positions", "flipped"))


def test_wrong_requests(store: PixelStore) -> None:
    there = DevicePixels(store, CPU)
    with pytest.raises(IndexError, match="the store has 11 images"):
        there.fetch([11])
    with pytest.raises(ValueError, match="`flip` has 1 values for 2 positions"):
        there.fetch([0, 1], flip=[True])
