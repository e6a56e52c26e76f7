"""Intervals over images of single runs: which images were right, and where nothing is known of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attndrift.analysis.image_intervals import (
    ImageIntervals,
    ImageOutcomes,
    read_image_outcomes,
)
from attndrift.files import LeftOutWarning

LEVEL = 0.95


def _run(run_id: str, bits: ImageOutcomes) -> dict[str, Any]:
    after, before = float(bits.adapted.mean()), float(bits.pretrained.mean())
    return {
        "run_id": run_id,
        "transfer_s_zero_shot_accuracy": after,
        "transfer_s_zero_shot_pretrained": before,
        "transfer_s_zero_shot_retention_pct": 100 * after / before,
        "transfer_s_zero_shot_n": len(bits.adapted),
    }


def _bits(rng: np.random.Generator, n: int, keep: float) -> ImageOutcomes:
    before = rng.random(n) < 0.7
    after = np.where(before, rng.random(n) < keep, rng.random(n) < 0.05)
    return ImageOutcomes(after, before)


def test_paired_interval_agrees_with_resampled_images() -> None:
    rng = np.random.default_rng(0)
    bits = _bits(rng, 1000, 0.6)
    found = ImageIntervals({("a", "s"): bits}, LEVEL).retention(_run("a", bits), "s")
    draws = rng.integers(0, 1000, (4000, 1000))
    ratios = 100 * bits.adapted[draws].mean(axis=1) / bits.pretrained[draws].mean(axis=1)
    assert found == pytest.approx(tuple(np.percentile(ratios, [2.5, 97.5])), abs=0.6)


def test_without_pairs_there_is_no_interval_of_a_ratio() -> None:
    """An unpaired one would cover far more than its level; that of one accuracy needs no pair."""
    bits = _bits(np.random.default_rng(0), 1000, 0.6)
    images = ImageIntervals({}, LEVEL)
    assert np.isnan(images.retention(_run("a", bits), "s")).all()
    low, high = images.accuracy(_run("a", bits), "transfer_s_zero_shot_accuracy")
    assert low < bits.adapted.mean() < high
    assert np.isnan(images.accuracy({"run_id": "a", "test_accuracy": 0.5}, "test_accuracy")).all()


def test_bits_of_other_numbers_are_not_used() -> None:
    rng = np.random.default_rng(3)
    bits = _bits(rng, 300, 0.5)
    other = _run("a", bits) | {"transfer_s_zero_shot_accuracy": 0.111, "transfer_s_zero_shot_retention_pct": 20.0}
    images = ImageIntervals({("a", "s"): bits}, LEVEL)
    assert images.bits(_run("a", bits), "s") is bits
    assert images.bits(other, "s") is None
    assert np.isnan(images.retention(other, "s")).all()


def test_outcomes_are_read_from_run_folders(tmp_path: Path) -> None:
    bits = _bits(np.random.default_rng(4), 37, 0.5)
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    np.savez_compressed(
        folder / "transfer_s.npz",
        n=np.int64(37),
        adapted=np.packbits(bits.adapted),
        pretrained=np.packbits(bits.pretrained),
    )
    found = read_image_outcomes(tmp_path)
    np.testing.assert_array_equal(found["one", "s"].adapted, bits.adapted)
    np.testing.assert_array_equal(found["one", "s"].pretrained, bits.pretrained)
    assert read_image_outcomes(tmp_path / "nothing") == {}
    (folder / "transfer_s.npz").write_bytes(b"PK\x03\x04 cut short")
    with pytest.warns(LeftOutWarning, match=r"transfer_s\.npz: not a file of packed outcomes"):
        assert read_image_outcomes(tmp_path) == {}
