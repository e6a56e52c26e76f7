"""Intervals over images against closed forms, resampling and coverage; and which findings are told first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from reference_records import convert, read_records, reference_folder

from attndrift.analysis import analyze
from attndrift.analysis.image_intervals import (
    ImageIntervals,
    ImageOutcomes,
    difference_limits,
    ratio_limits,
    read_image_outcomes,
    wilson,
)
from attndrift.analysis.result import TOPICS, Finding
from attndrift.files import LeftOutWarning
from attndrift.results.tables import Tables
from benchmarks.synthetic import synthetic_tables

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


def test_wilson_is_the_score_interval() -> None:
    low, high = wilson(np.array([0.0, 0.3, 1.0, np.nan]), np.array([50, 50, 50, 50]), LEVEL)
    z = 1.959963984540054
    for share, limit in ((0.3, low[1]), (0.3, high[1])):
        assert abs(share - limit) == pytest.approx(z * np.sqrt(limit * (1 - limit) / 50))
    assert low[0] == pytest.approx(0.0)
    assert high[2] == pytest.approx(1.0)
    assert high[0] > 0.05
    assert np.isnan(low[3])
    assert np.isnan(high[3])


def test_paired_interval_agrees_with_resampled_images() -> None:
    rng = np.random.default_rng(0)
    bits = _bits(rng, 1000, 0.6)
    paired = ImageIntervals({("a", "s"): bits}, LEVEL).retention(_run("a", bits), "s")
    draws = rng.integers(0, 1000, (4000, 1000))
    ratios = 100 * bits.adapted[draws].mean(axis=1) / bits.pretrained[draws].mean(axis=1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    assert paired.low == pytest.approx(low, abs=0.6)
    assert paired.high == pytest.approx(high, abs=0.6)
    assert (paired.unit, paired.n) == ("image", 1000)
    unpaired = ImageIntervals({}, LEVEL).retention(_run("a", bits), "s")
    # Answers before and after go together, so doing without the pairs is the wider, safe side.
    assert unpaired.low < paired.low
    assert unpaired.high > paired.high


def test_difference_of_two_runs_agrees_with_resampled_images() -> None:
    rng = np.random.default_rng(1)
    one = _bits(rng, 1000, 0.6)
    after = np.where(rng.random(1000) < 0.8, one.adapted, rng.random(1000) < 0.3)
    two = ImageOutcomes(after, one.pretrained)
    images = ImageIntervals({("a", "s"): one, ("b", "s"): two}, LEVEL)
    found = images.retention_difference(_run("a", one), _run("b", two), "s")
    draws = rng.integers(0, 1000, (4000, 1000))
    gaps = one.adapted.astype(float) - two.adapted
    values = 100 * gaps[draws].mean(axis=1) / one.pretrained[draws].mean(axis=1)
    assert [found.low, found.high] == pytest.approx(list(np.percentile(values, [2.5, 97.5])), abs=0.6)
    without = ImageIntervals({}, LEVEL).retention_difference(_run("a", one), _run("b", two), "s")
    assert without.low < found.low < found.high < without.high


def test_unpaired_ratio_covers_what_it_should() -> None:
    rng = np.random.default_rng(2)
    inside = 0
    for _ in range(400):
        first, second = rng.binomial(500, 0.2) / 500, rng.binomial(500, 0.6) / 500
        low, high = ratio_limits(first, second, 500, LEVEL)
        inside += low <= 1 / 3 <= high
    assert 0.92 <= inside / 400 <= 0.98
    low, high = ratio_limits(0.0, 0.6, 500, LEVEL)
    assert low == pytest.approx(0.0, abs=1e-12)
    assert 0 < high < 0.03


def test_difference_limits_hold_at_the_edges() -> None:
    low, high = difference_limits(0.0, 50, 1.0, 50, LEVEL)
    assert low == pytest.approx(-1.0)
    assert -1 < high < -0.8


def test_bits_of_other_numbers_are_not_used() -> None:
    rng = np.random.default_rng(3)
    bits = _bits(rng, 300, 0.5)
    other = _run("a", bits) | {"transfer_s_zero_shot_accuracy": 0.111, "transfer_s_zero_shot_retention_pct": 20.0}
    images = ImageIntervals({("a", "s"): bits}, LEVEL)
    assert images.bits(_run("a", bits), "s") is bits
    assert images.bits(other, "s") is None
    assert "unpaired" in images.retention(other, "s").method
    # Two runs that the pretrained model answered differently are not of the same images.
    two = ImageOutcomes(bits.adapted, np.roll(bits.pretrained, 1))
    images = ImageIntervals({("a", "s"): bits, ("b", "s"): two}, LEVEL)
    assert "unpaired" in images.retention_difference(_run("a", bits), _run("b", two), "s").method


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


def _one_seed() -> Tables:
    return convert([r for r in read_records(reference_folder()) if r["config"]["seed"] == 7 or "sweep" in r])


def _told(findings: list[Finding]) -> list[str | None]:
    return [finding.topic for finding in findings]


def test_first_findings_of_one_seed_carry_intervals_over_images_and_say_so() -> None:
    result = analyze(_one_seed())
    assert result.data.single_seed
    first = result.most_important(5)
    # The records have no preservation loss; the topics that they have come in their order.
    assert _told(first)[:4] == [topic for topic in TOPICS if topic != "preservation"]
    lost, methods, entropy = first[:3]
    for finding in (lost, methods):
        assert finding.evidence["interval"]["unit"] == "image"
        assert "one seed: other seeds would add to them" in finding.sentence
    assert "test images" in lost.sentence
    assert "no interval of their own: one seed" in entropy.sentence
    for finding in first:
        interval = finding.evidence["interval"]
        assert interval["low"] < interval["high"]
        assert finding.strength in ("supported", "descriptive")
    row = next(r for r in result.tables["runs"].rows if r["variant"] == "full" and r["learning_rate"] == 1e-4)
    name = (
        "transfer_cifar100_zero_shot_retention_pct"
        if "cifar100" in lost.sentence
        else "transfer_cifar10_zero_shot_retention_pct"
    )
    assert lost.evidence["effect"] == pytest.approx(row[name])
    assert f"{row[name]:.1f}%" in lost.sentence


def test_first_findings_of_three_seeds_carry_intervals_over_seeds() -> None:
    result = analyze(convert(read_records(reference_folder())))
    lost = result.most_important(1)[0]
    assert lost.evidence["interval"]["unit"] == "seed"
    assert "Student's t over 3 seeds" in lost.sentence
    assert "one seed" not in lost.sentence
    # Student's t by hand at 1e-4, from the published 3.7 ± 0.6 (mean, sample sd) to the printed digits.
    if "cifar100" in lost.sentence:
        interval = lost.evidence["intervals"]["1e-4"]
        assert (interval["high"] - interval["low"]) / 2 == pytest.approx(4.302653 * 0.6 / np.sqrt(3), abs=0.2)


def test_order_prefers_measured_effects_and_never_fills_with_nothing() -> None:
    result = analyze(synthetic_tables(seeds=3, rates=3))
    known = {finding.id for finding in result.findings}
    everything = result.most_important(len(result.findings))
    assert {finding.id for finding in everything} <= known
    assert len({finding.id for finding in everything}) == len(everything)
    for finding in everything:
        assert finding.strength not in ("no evidence", "too few")
        assert finding.evidence["interval"]["low"] is not None
    topics = _told(everything)
    first_round = list(dict.fromkeys(topic for topic in topics if topic is not None))
    assert topics[: len(first_round)] == [topic for topic in TOPICS if topic in first_round]
    assert result.most_important(0) == []


def test_an_effect_within_its_interval_is_not_told_first() -> None:
    tables = _one_seed()
    runs = tables.runs.copy()
    runs["loss"] = runs["loss"].astype(object)
    base = runs[(runs["method"] == "full") & (runs["learning_rate"] == 1e-5) & runs["test_accuracy"].notna()]
    extra = []
    for weight, shift in ((0.01, 0.001), (1.0, 0.2)):
        row = base.iloc[0].copy()
        row["run_id"], row["loss"] = f"apr{weight}", f"attention_preservation:{weight}"
        for name in ("cifar10", "cifar100"):
            row[f"transfer_{name}_zero_shot_accuracy"] += shift
            row[f"transfer_{name}_zero_shot_retention_pct"] = (
                100 * row[f"transfer_{name}_zero_shot_accuracy"] / row[f"transfer_{name}_zero_shot_pretrained"]
            )
        extra.append(row)
    weak = Tables(pd.concat([runs, pd.DataFrame(extra[:1])], ignore_index=True), tables.history, tables.layers)
    both = Tables(pd.concat([runs, pd.DataFrame(extra)], ignore_index=True), tables.history, tables.layers)
    assert "preservation" not in _told(analyze(weak).most_important(5))
    told = next(f for f in analyze(both).most_important(5) if f.topic == "preservation")
    assert "the interval excludes 0 at weight 1 only" in told.sentence
    assert "(Bonferroni)" in told.sentence
    assert "97.5% intervals" in told.sentence
