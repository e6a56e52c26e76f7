"""Ratios against a named alternative, measured in one run: medians over interleaved pairs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

Work = Callable[[], object]


@dataclass(frozen=True)
class Ratio:
    """One measured ratio.

    Attributes:
        what, against: what was timed, and what it was timed against, in words.
        ratio: median over pairs of time(what) / time(against).
        low, high: smallest and largest ratio of a pair.
        seconds, seconds_against: median times.
        pairs: number of interleaved pairs, after one that is thrown away.
        megabytes, megabytes_against: median of the largest memory that each took; null where not measured.
        at_most: what the ratio is meant to stay below; null where nothing was promised.
    """

    what: str
    against: str
    ratio: float
    low: float
    high: float
    seconds: float
    seconds_against: float
    pairs: int
    megabytes: float | None = None
    megabytes_against: float | None = None
    at_most: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def aiming_at(self, at_most: float) -> Ratio:
        """The same with its target."""
        return replace(self, at_most=at_most)


def ratio_of(what: str, against: str, pairs: Sequence[tuple[float, float]]) -> Ratio:
    """The ratio of pairs of seconds (what, against), of which the first is thrown away."""
    kept = pairs[1:]
    ratios = [first / second for first, second in kept]
    return Ratio(
        what,
        against,
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        statistics.median(first for first, _ in kept),
        statistics.median(second for _, second in kept),
        len(kept),
    )


def timed(work: Work, wait: Work) -> float:
    """Seconds that ``work`` takes; ``wait`` returns once the device has done everything that was asked of it."""
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def _nothing() -> None:
    return None


def compare(
    what: str,
    work: Work,
    against: str,
    alternative: Work,
    pairs: int,
    *,
    wait: Work = _nothing,
    at_most: float | None = None,
) -> Ratio:
    """Time ``work`` against ``alternative`` in interleaved pairs, the order changing from pair to pair.

    One pair more than ``pairs`` is measured; the first one warms up and is thrown away.
    """
    times: list[tuple[float, float]] = []
    for index in range(pairs + 1):
        if index % 2:
            second = timed(alternative, wait)
            first = timed(work, wait)
        else:
            first = timed(work, wait)
            second = timed(alternative, wait)
        times.append((first, second))
    found = ratio_of(what, against, times)
    return found if at_most is None else found.aiming_at(at_most)
