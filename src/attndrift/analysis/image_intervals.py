"""Uncertainty over test images: what one run can say about itself, without a second seed.

An accuracy is a share of ``n`` images, so the tables' accuracy and ``n`` give an interval over images. It says
how far another draw of images could move the number of *this* run; another seed moves it further, so that no method
differs from another by such an interval.
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

from attndrift.analysis.numbers import number
from attndrift.files import is_inside, warn_left_out
from attndrift.results.arrays import ArrayFileError, read_arrays
from attndrift.results.measures import column_stem
from attndrift.retention.image_limits import paired_ratio_limits, wilson_limits
from attndrift.retention.retained import LEVEL

Bits = NDArray[np.bool_]
NOT_KNOWN = (math.nan, math.nan)


@dataclass(frozen=True)
class ImageOutcomes:
    """Which image of a transfer set was classified rightly: ``adapted`` and ``pretrained``, (n,) bool each."""

    adapted: Bits
    pretrained: Bits


Outcomes = Mapping[tuple[str, str], ImageOutcomes]
"""(run_id, transfer set, or SET_MEASURE for another measure than zero-shot) -> which of its images were right."""


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


@dataclass(frozen=True)
class ImageIntervals:
    """Intervals over images of the runs of a table: (low, high), in percent where the measure is, NaN where not known.

    ``outcomes`` may be empty; what is in it is used only where it agrees with the accuracies of the table.
    A run is a mapping of the columns of the table ``runs``.
    """

    outcomes: Outcomes
    level: float

    def bits(self, run: Mapping[Any, Any], name: str) -> ImageOutcomes | None:
        """The outcomes of one run on a set (of a measure: SET_MEASURE), None where they are absent or belong to other numbers than the table's."""
        own = self.outcomes.get((str(run["run_id"]), name))
        if own is None or not len(own.adapted):
            return None
        stated = [number(run.get(f"{column_stem(name)}_{end}")) for end in ("accuracy", "pretrained")]
        measured = [float(own.adapted.mean()), float(own.pretrained.mean())]
        same = all(s is not None and abs(s - m) < 1e-6 for s, m in zip(stated, measured, strict=True))
        return own if same else None

    def accuracy(self, run: Mapping[Any, Any], column: str) -> tuple[float, float]:
        """Wilson's, of `test_accuracy`, `best_val_accuracy` or `transfer_SET_MEASURE_accuracy`, 0..1."""
        counts = {"test_accuracy": "n_test", "best_val_accuracy": "n_validation"}
        value, n = number(run.get(column)), number(run.get(counts.get(column, column.removesuffix("_accuracy") + "_n")))
        if value is None or not n:
            return NOT_KNOWN
        low, high = wilson_limits(value * n, n, self.level)
        return float(low), float(high)

    def retention(self, run: Mapping[Any, Any], name: str) -> tuple[float, float]:
        """Bonett and Price's, of the retention on transfer set ``name`` (of a measure: SET_MEASURE), percent.

        Only where it is known which images were right: without the pairs an interval covers far more than its level. The
        tables hold the interval of 95%.
        """
        own, stem = self.bits(run, name), column_stem(name)
        if number(run.get(f"{stem}_retention_pct")) is None:
            return NOT_KNOWN
        if own is None:
            given = [number(run.get(f"{stem}_retention_{end}_pct")) for end in ("low", "high")]
            known = self.level == LEVEL and given[0] is not None and given[1] is not None
            return (float(given[0] or 0.0), float(given[1] or 0.0)) if known else NOT_KNOWN
        both, lost = (int((own.adapted[own.pretrained] == right).sum()) for right in (True, False))
        won = int((own.adapted & ~own.pretrained).sum())
        low, high = paired_ratio_limits(both, won, lost, self.level)
        return 100 * float(low), 100 * float(high)
