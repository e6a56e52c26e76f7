"""Uncertainty over test images: what one run can say about itself, without a second seed.

An accuracy is a share of ``n`` images, so the tables' accuracy and ``n`` give an interval over images. It says
how far another draw of images could move the number of *this* run; another seed would move it further.
Where the study folder still holds which image was right (``runs/<run>/transfer_<set>.npz``, packed bits
``adapted`` and ``pretrained`` with their number ``n``), numbers of the same images are compared in pairs.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from attndrift.analysis.numbers import number
from attndrift.analysis.result import Interval
from attndrift.files import is_inside, warn_left_out
from attndrift.results.arrays import ArrayFileError, read_arrays

# Imports inside functions: these packages take time to load, which only who needs them pays.

Bits = NDArray[np.bool_]
UNIT = "image"


@dataclass(frozen=True)
class ImageOutcomes:
    """Which image of a transfer set was classified rightly: ``adapted`` and ``pretrained``, (n,) bool each."""

    adapted: Bits
    pretrained: Bits


Outcomes = Mapping[tuple[str, str], ImageOutcomes]
"""(run_id, transfer set) -> which of its images were right."""


def read_image_outcomes(folder: str | os.PathLike[str]) -> dict[tuple[str, str], ImageOutcomes]:
    """What the run folders of a study hold about single images; empty where there are none.

    A file that cannot be read is left out, with a :class:`~attndrift.files.LeftOutWarning`.
    """
    found: dict[tuple[str, str], ImageOutcomes] = {}
    for path in sorted(Path(folder).glob("runs/*/transfer_*.npz")):
        if not is_inside(path, Path(folder)):
            continue
        try:
            arrays = read_arrays(path, ("n", "adapted", "pretrained"))
            n, packed = arrays["n"], [arrays[name] for name in ("adapted", "pretrained")]
            if n.dtype.kind not in "iu" or n.shape != () or any(bits.dtype != np.uint8 for bits in packed):
                raise ArrayFileError("`n` must be one whole number, and the outcomes packed bits")
            if any(bits.shape != (-(-int(n) // 8),) for bits in packed):
                raise ArrayFileError(f"its {int(n)} images do not fit the outcomes")
        except (OSError, ArrayFileError) as error:
            warn_left_out(
                f"{path}: not a file of packed outcomes ({error}). Intervals over its images are left out; run the run "
                "again to rewrite it"
            )
            continue
        bits = [np.unpackbits(one, count=int(n)).astype(bool) for one in packed]
        found[path.parent.name, path.stem.removeprefix("transfer_")] = ImageOutcomes(bits[0], bits[1])
    return found


def wilson(share: Any, n: Any, level: float) -> tuple[Any, Any]:
    """Wilson's interval of a share of ``n`` images (arrays or numbers); NaN where either is missing."""
    # statsmodels takes most of a second to import, which only who asks for such intervals pays.
    from statsmodels.stats.proportion import proportion_confint

    share, n = np.asarray(share, dtype=float), np.asarray(n, dtype=float)
    good = np.isfinite(share) & np.isfinite(n) & (n > 0)
    count, total = np.where(good, share * n, 0.0), np.where(good, n, 1.0)
    low, high = proportion_confint(count, total, alpha=1 - level, method="wilson")
    return np.where(good, low, np.nan), np.where(good, high, np.nan)


def _blank(level: float, reason: str) -> Interval:
    return Interval(level=level, unit=UNIT, n=0, method="none", reason=reason)


def accuracy_interval(accuracy: Any, n: Any, level: float) -> Interval:
    """Wilson's interval of one accuracy (0..1)."""
    value, count = number(accuracy), number(n)
    if value is None or not count:
        return _blank(level, "accuracy or number of images not given")
    low, high = wilson(value, count, level)
    return Interval(low=float(low), high=float(high), level=level, unit=UNIT, n=int(count), method="Wilson")


def ratio_limits(first: float, second: float, n: float, level: float) -> tuple[float, float]:
    """Limits of ``first / second``, two shares of ``n`` images, from Wilson's limits of each.

    Donner and Zou 2012 (MOVER), as if the two were independent: too wide where the same images are right in
    both, which is the safe side.
    """
    (l1, u1), (l2, u2) = (tuple(float(v) for v in wilson(p, n, level)) for p in (first, second))
    product = first * second
    low = product - math.sqrt(max(product**2 - l1 * u2 * (2 * first - l1) * (2 * second - u2), 0.0))
    high = product + math.sqrt(max(product**2 - u1 * l2 * (2 * first - u1) * (2 * second - l2), 0.0))
    return low / (u2 * (2 * second - u2)), high / (l2 * (2 * second - l2))


def difference_limits(first: float, n_first: float, second: float, n_second: float, level: float) -> Any:
    """Newcombe's limits of ``first - second``, two shares, as if of independent images."""
    from statsmodels.stats.proportion import confint_proportions_2indep

    return confint_proportions_2indep(
        first * n_first, n_first, second * n_second, n_second, method="newcomb", compare="diff", alpha=1 - level
    )


@dataclass(frozen=True)
class ImageIntervals:
    """Intervals over images of the runs of a table, in percent where the measure is.

    ``outcomes`` may be empty; what is in it is used only where it agrees with the accuracies of the table.
    A run is a mapping of the columns of the table ``runs``.
    """

    outcomes: Outcomes
    level: float

    def bits(self, run: Mapping[str, Any], name: str) -> ImageOutcomes | None:
        """The outcomes of one run, None where they are absent or belong to other numbers than the table's."""
        own = self.outcomes.get((str(run["run_id"]), name))
        if own is None or not len(own.adapted):
            return None
        stated = [number(run.get(f"transfer_{name}_zero_shot_{end}")) for end in ("accuracy", "pretrained")]
        measured = [float(own.adapted.mean()), float(own.pretrained.mean())]
        same = all(s is not None and abs(s - m) < 1e-6 for s, m in zip(stated, measured, strict=True))
        return own if same else None

    def accuracy(self, run: Mapping[str, Any], column: str) -> Interval:
        """Of `test_accuracy`, `best_val_accuracy` or `transfer_S_zero_shot_accuracy`, 0..1."""
        counts = {"test_accuracy": "n_test", "best_val_accuracy": "n_validation"}
        count = counts.get(column, column.removesuffix("_accuracy") + "_n")
        return accuracy_interval(run.get(column), run.get(count), self.level)

    def retention(self, run: Mapping[str, Any], name: str) -> Interval:
        """Of the retention on transfer set ``name``, percent."""
        after, before = (
            number(run.get(f"transfer_{name}_zero_shot_accuracy")),
            number(run.get(f"transfer_{name}_zero_shot_pretrained")),
        )
        n = number(run.get(f"transfer_{name}_zero_shot_n"))
        if after is None or not before or not n or number(run.get(f"transfer_{name}_zero_shot_retention_pct")) is None:
            return _blank(self.level, "accuracies or number of images not given")
        own = self.bits(run, name)
        if own is not None:
            ratio = after / before
            error = _standard_error(own.adapted - ratio * own.pretrained, before)
            if error > 0:
                z = float(stats.norm.ppf((1 + self.level) / 2))
                low, high = max(ratio - z * error, 0.0), ratio + z * error
                return self._interval(low, high, len(own.adapted), "paired with the pretrained model, delta method")
        low, high = ratio_limits(after, before, n, self.level)
        return self._interval(low, high, int(n), "unpaired, MOVER with Wilson limits")

    def retention_difference(self, first: Mapping[str, Any], second: Mapping[str, Any], name: str) -> Interval:
        """Of retention(first) - retention(second) in points, two runs of one pretrained model."""
        one, two = self.bits(first, name), self.bits(second, name)
        before = number(first.get(f"transfer_{name}_zero_shot_pretrained"))
        other = number(second.get(f"transfer_{name}_zero_shot_pretrained"))
        values = [number(run.get(f"transfer_{name}_zero_shot_accuracy")) for run in (first, second)]
        counts = [number(run.get(f"transfer_{name}_zero_shot_n")) for run in (first, second)]
        if not before or other is None or abs(before - other) > 1e-9 or None in values or not all(counts):
            return _blank(self.level, "the two runs are not of one pretrained model and transfer set")
        a, b = float(values[0] or 0.0), float(values[1] or 0.0)
        # Equal answers of the pretrained model, image by image: the same images in the same order.
        if one is not None and two is not None and np.array_equal(one.pretrained, two.pretrained):
            ratio = (a - b) / before
            deviations = one.adapted.astype(float) - two.adapted - ratio * one.pretrained
            error = _standard_error(deviations, before)
            if error > 0:
                z = float(stats.norm.ppf((1 + self.level) / 2))
                return self._interval(ratio - z * error, ratio + z * error, len(deviations), "paired, delta method")
        low, high = difference_limits(a, float(counts[0] or 0), b, float(counts[1] or 0), self.level)
        return self._interval(
            low / before, high / before, int(counts[0] or 0), "unpaired, Newcombe, pretrained accuracy as given"
        )

    def accuracy_difference(self, first: Mapping[str, Any], second: Mapping[str, Any], column: str) -> Interval:
        """Of the difference of two accuracies in points, as if of independent images."""
        one, two = self.accuracy(first, column), self.accuracy(second, column)
        if one.low is None or two.low is None:
            return _blank(self.level, "accuracy or number of images not given")
        low, high = difference_limits(float(first[column]), one.n, float(second[column]), two.n, self.level)
        return self._interval(low, high, one.n, "unpaired, Newcombe")

    def _interval(self, low: float, high: float, n: int, method: str) -> Interval:
        return Interval(low=100 * low, high=100 * high, level=self.level, unit=UNIT, n=n, method=method)


def _standard_error(deviations: NDArray[np.float64], scale: float) -> float:
    """Of a ratio of means whose linearised deviations these are, ``scale`` the mean below the line."""
    if len(deviations) < 2:
        return 0.0
    return float(np.std(deviations, ddof=1) / math.sqrt(len(deviations)) / scale)
