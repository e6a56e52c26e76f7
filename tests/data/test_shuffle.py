"""Order and flips: functions of (seed, epoch, position) that touch no global generator."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from accelerate import skip_first_batches
from hypothesis import given, settings
from hypothesis import strategies as st

from attndrift.data import EpochBatchSampler, TrainingImages, epoch_order, flips, training_loader

SEEDS = st.integers(0, 2**32 - 1)
EPOCHS = st.integers(0, 10_000)


class Numbers:
    """Images whose pixels are their position; a flip makes them negative."""

    def fetch(self, positions: np.ndarray, flip: np.ndarray | None = None) -> torch.Tensor:
        sign = np.where(flip, -1.0, 1.0) if flip is not None else 1.0
        return torch.as_tensor((np.asarray(positions) + 1) * sign).float()[:, None, None, None]


@given(n=st.integers(1, 500), seed=SEEDS, epoch=EPOCHS)
@settings(max_examples=50, deadline=None)
def test_an_order_is_a_permutation_and_repeats(n: int, seed: int, epoch: int) -> None:
    order = epoch_order(n, seed, epoch)
    assert sorted(order.tolist()) == list(range(n))
    np.testing.assert_array_equal(order, epoch_order(n, seed, epoch))


def test_seed_and_epoch_both_matter() -> None:
    orders = {tuple(epoch_order(50, seed, epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25
    patterns = {tuple(flips(50, seed, epoch)) for seed in range(5) for epoch in range(5)}
    assert len(patterns) == 25


@given(seed=SEEDS, epoch=EPOCHS, positions=st.lists(st.integers(0, 300), max_size=40))
@settings(max_examples=50, deadline=None)
def test_a_flip_depends_on_its_own_position_alone(seed: int, epoch: int, positions: list[int]) -> None:
    chosen = flips(positions, seed, epoch)
    assert chosen.dtype == bool
    np.testing.assert_array_equal(chosen, flips(301, seed, epoch)[np.asarray(positions, dtype=int)])


def test_flips_are_fair_and_independent_of_the_order() -> None:
    n = 20_000
    drawn = flips(n, 7, 3)
    assert abs(drawn.mean() - 0.5) < 4 * 0.5 / n**0.5
    place = np.empty(n, dtype=int)
    place[epoch_order(n, 7, 3)] = np.arange(n)
    assert abs(np.corrcoef(place, drawn)[0, 1]) < 4 / n**0.5
    both = flips(n, 7, 3) == flips(n, 7, 4)
    assert abs(both.mean() - 0.5) < 4 * 0.5 / n**0.5


def test_every_place_is_equally_likely() -> None:
    counts = np.zeros((6, 6))
    for epoch in range(3000):
        counts[np.arange(6), epoch_order(6, 1, epoch)] += 1
    expected = 500.0
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 60  # 25 degrees of freedom: exceeded once in ten thousand


def test_the_stream_is_the_same_on_every_machine() -> None:
    """A change of these values changes every training: it would no longer resume older states."""
    assert epoch_order(8, 42, 3).tolist() == PINNED_ORDER
    assert flips(8, 42, 3).tolist() == PINNED_FLIPS


PINNED_ORDER = [3, 4, 2, 6, 0, 1, 5, 7]
PINNED_FLIPS = [True, True, False, False, False, False, False, True]


@given(n=st.integers(1, 60), batch=st.integers(1, 20), seed=SEEDS, epoch=EPOCHS, data=st.data())
@settings(max_examples=50, deadline=None)
def test_batches_from_any_position_are_those_of_the_whole_epoch(
    n: int, batch: int, seed: int, epoch: int, data: st.DataObject
) -> None:
    sampler = EpochBatchSampler(n, batch, seed)
    sampler.set_epoch(epoch)
    whole = list(sampler)
    assert len(whole) == len(sampler) == -(-n // batch)
    assert sorted(position for part in whole for position in part) == list(range(n))
    start = data.draw(st.integers(0, len(whole)))
    sampler.set_epoch(epoch, start)
    assert list(sampler) == whole[start:]
    assert len(sampler) == len(whole) - start


def test_the_last_batch_can_be_dropped() -> None:
    sampler = EpochBatchSampler(10, 4, 0, drop_last=True)
    assert [len(batch) for batch in sampler] == [4, 4]
    assert len(sampler) == 2


@pytest.mark.parametrize("flip", [True, False])
def test_a_loader_gives_the_batches_and_draws_from_no_global_generator(flip: bool) -> None:
    images = TrainingImages(Numbers(), np.arange(10) % 3, seed=5, flip=flip)
    loader = training_loader(images, 4)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    for epoch in (0, 1):
        images.set_epoch(epoch)
        loader.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
        batches = list(loader)
        positions = np.concatenate([batch["positions"] for batch in batches])
        np.testing.assert_array_equal(positions, epoch_order(10, 5, epoch))
        flipped = np.concatenate([batch["flipped"] for batch in batches])
        np.testing.assert_array_equal(flipped, flips(positions, 5, epoch) if flip else np.zeros(10, bool))
        pixels = torch.cat([batch["pixel_values"] for batch in batches]).flatten().numpy()
        np.testing.assert_array_equal(pixels, (positions + 1) * np.where(flipped, -1, 1))
        labels = torch.cat([batch["labels"] for batch in batches])
        np.testing.assert_array_equal(labels, positions % 3)
    assert torch.equal(torch.get_rng_state(), states[0])
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert random.getstate() == states[2]


def test_skipping_batches_as_a_resumed_trainer_does() -> None:
    images = TrainingImages(Numbers(), np.zeros(10), seed=5)
    loader = training_loader(images, 3)
    whole = [batch["pixel_values"] for batch in loader]
    rest = [batch["pixel_values"] for batch in skip_first_batches(loader, 2)]
    assert len(rest) == 2
    for one, other in zip(rest, whole[2:], strict=True):
        assert torch.equal(one, other)


def test_one_image_is_a_batch_of_one() -> None:
    assert TrainingImages(Numbers(), [0, 1], seed=0)[1]["positions"].tolist() == [1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: epoch_order(0, 0, 0), "`n` is 0"),
        (lambda: epoch_order(3, -1, 0), "`seed` is -1"),
        (lambda: flips(3, 0, -1), "`epoch` is -1"),
        (lambda: flips([-1], 0, 0), "`positions` holds -1"),
        (lambda: EpochBatchSampler(3, 0, 0), "`batch_size` is 0"),
        (lambda: EpochBatchSampler(3, 4, 0, drop_last=True), "make no batch"),
        (lambda: EpochBatchSampler(3, 2, 0).set_epoch(0, 3), "`start` is 3"),
    ],
)
def test_wrong_requests(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        call()
