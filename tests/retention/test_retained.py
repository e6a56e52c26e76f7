"""What is left of an accuracy: paired intervals over images, and nothing where the pretrained model is at chance."""

from __future__ import annotations

import numpy as np
import pytest
from statsmodels.stats.proportion import proportion_confint

from attndrift.retention.retained import Retained, accuracy_limits, retention, why_no_retention


def _answers(seed: int, n: int = 300) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    before = generator.random(n) < 0.7
    return before, np.where(generator.random(n) < 0.8, before, generator.random(n) < 0.3)


def test_intervals_are_those_of_resampled_images() -> None:
    before, after = _answers(5)
    found = Retained.of(before, after, 10)
    picks = np.random.default_rng(6).integers(0, 300, (10_000, 300))
    change = 100 * (after[picks].mean(1) - before[picks].mean(1))
    kept = 100 * after[picks].mean(1) / before[picks].mean(1)
    for ours, resampled in ((found.change_limits, change), (found.retention_limits, kept)):
        assert ours is not None
        low, high = np.percentile(resampled, [2.5, 97.5])
        assert ours == pytest.approx((low, high), abs=0.08 * (high - low))
    # Two accuracies of different images say less of their difference.
    unpaired = accuracy_limits(after)[1] - accuracy_limits(before)[0]
    assert found.change_limits is not None
    assert found.change_limits[1] - found.change_limits[0] < 200 * unpaired


def test_a_model_that_answers_as_before_keeps_all_within_a_narrow_interval() -> None:
    before, _ = _answers(5)
    found = Retained.of(before, before, 10)
    assert (found.retention_pct, found.change_points, found.reason) == (100.0, 0.0, None)
    assert found.change_limits is not None
    assert found.retention_limits is not None
    assert -1.3 < found.change_limits[0] < 0 < found.change_limits[1] < 1.3
    assert 98 < found.retention_limits[0] < 100 < found.retention_limits[1] < 102


@pytest.mark.parametrize(("count", "n"), [(0, 5), (3, 17), (250, 500), (40, 40)])
def test_the_interval_of_an_accuracy_is_wilsons(count: int, n: int) -> None:
    expected = proportion_confint(count, n, method="wilson")
    assert accuracy_limits(np.arange(n) < count) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("right", "n", "classes", "says"),
    [
        (30, 200, 10, "below twice chance"),  # far above chance by its images, and little all the same
        (2, 8, 10, "cannot be told from chance"),
        (5, 5, 2, None),
        (3, 3, 2, "cannot be told from chance"),
        (4, 100, 50, "cannot be told from chance"),
        (6, 100, 50, None),
        (0, 10, 4, "below twice chance"),
    ],
)
def test_at_chance_there_is_no_number_and_a_reason(right: int, n: int, classes: int, says: str | None) -> None:
    before = np.arange(n) < right
    found = Retained.of(before, ~before, classes)
    if says is None:
        assert found.reason is None
        assert None not in found.columns().values()
        return
    assert found.reason is not None
    assert says in found.reason
    assert set(found.columns().values()) == {None}
    assert set(found.intervals().values()) == {None}
    assert why_no_retention(right / n, classes, n) == found.reason
    assert retention(0.5, right / n, classes, n) is None
