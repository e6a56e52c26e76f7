"""What is left of an accuracy: retention and change, with intervals over images, and the reason where there is none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attndrift.retention.image_limits import Limits, paired_ratio_limits, tango_limits, wilson_limits

LEVEL = 0.95
"""Of every interval here."""


def retention(accuracy: float, pretrained: float, n_classes: int, n: int | None = None) -> float | None:
    """100 x adapted / pretrained accuracy; None where the pretrained one is at chance.

    :func:`why_no_retention` says why. Accuracies in 0..1; raises ``ValueError`` outside.
    """
    for name, value in (("accuracy", accuracy), ("pretrained", pretrained)):
        if not (math.isfinite(value) and 0 <= value <= 1):
            raise ValueError(f"{name} is {value}; an accuracy lies in 0..1")
    if why_no_retention(pretrained, n_classes, n):
        return None
    return 100.0 if accuracy == pretrained else 100.0 * accuracy / pretrained  # no 99.99999999999999


def why_no_retention(pretrained: float, n_classes: int, n: int | None = None) -> str | None:
    """Why retention is null for a pretrained accuracy, or None where it is a number.

    It is null below twice chance, and, where the number ``n`` of images is given, where Wilson's 95% interval of the
    pretrained accuracy includes chance: what is retained of it would be noise.
    """
    if n_classes < 2:
        raise ValueError(f"n_classes is {n_classes}; an accuracy needs at least 2")
    chance = 1.0 / n_classes
    if pretrained < 2 * chance:
        return (
            f"the pretrained accuracy, {pretrained:.4f}, is below twice chance ({2 * chance:.4f} with {n_classes} "
            "classes): there is nothing to retain"
        )
    if n is not None:
        low, high = (float(end) for end in wilson_limits(pretrained * n, n, LEVEL))
        if low <= chance:
            return (
                f"the pretrained accuracy, {pretrained:.4f} of {n} images, cannot be told from chance ({chance:.4f} with "
                f"{n_classes} classes): its 95% interval is {low:.4f} to {high:.4f}. More images narrow it"
            )
    return None


def accuracy_limits(correct: NDArray[np.bool_]) -> tuple[float, float]:
    """Wilson's 95% interval of an accuracy, 0..1, from which images are right: (images,)."""
    low, high = wilson_limits(int(correct.sum()), len(correct), LEVEL)
    return float(low), float(high)


@dataclass(frozen=True)
class Retained:
    """An accuracy after adaptation beside the one before, on the same images.

    Attributes:
        n: images.
        retention_pct: 100 x after / before, ``change_points``: after minus before in percentage points. Both None at chance.
        retention_limits, change_limits: paired 95% intervals over images of the two: Bonett and Price's, and Tango's. They
            hold where no image is answered differently. None with their values.
        reason: why there are none.
    """

    n: int
    retention_pct: float | None
    change_points: float | None
    retention_limits: tuple[float, float] | None
    change_limits: tuple[float, float] | None
    reason: str | None

    @classmethod
    def of(cls, before: NDArray[np.bool_], after: NDArray[np.bool_], n_classes: int) -> Retained:
        """From which images are right before and after: (images,) each, in the same order."""
        n, both = len(before), int((before & after).sum())
        reason = why_no_retention(float(before.mean()), n_classes, n)
        if reason is not None:
            return cls(n, None, None, None, None, reason)
        lost, won = int(before.sum()) - both, int(after.sum()) - both
        return cls(
            n,
            retention(float(after.mean()), float(before.mean()), n_classes, n),
            100.0 * (float(after.mean()) - float(before.mean())),
            _percent(paired_ratio_limits(both, won, lost, LEVEL)),
            _percent(tango_limits(won, lost, n, LEVEL)),
            None,
        )

    def columns(self) -> dict[str, float | None]:
        """What stands in the table ``runs`` behind ``transfer_SET_MEASURE_``."""
        kept, change = self.retention_limits or (None, None), self.change_limits or (None, None)
        return {
            "retention_pct": self.retention_pct, "retention_low_pct": kept[0], "retention_high_pct": kept[1],
            "change_points": self.change_points, "change_low_points": change[0], "change_high_points": change[1],
        }  # fmt: skip

    def intervals(self) -> dict[str, Mapping[str, Any] | None]:
        """The two intervals as a record has them: ends, level, method, number of images."""
        about = {"level": LEVEL, "unit": "image", "n": self.n}
        return {
            name: None
            if limits is None
            else {"low": limits[0], "high": limits[1], "method": f"paired, {method}", **about}
            for name, limits, method in (
                ("retention_pct_interval", self.retention_limits, "Bonett and Price"),
                ("change_points_interval", self.change_limits, "Tango"),
            )
        }


def _percent(limits: Limits) -> tuple[float, float]:
    return 100 * float(limits[0]), 100 * float(limits[1])
