"""Times against a named alternative, measured in one process, round by round."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

Work = Callable[[], object]


@dataclass(frozen=True)
class Ratio:
    """One measured ratio.

    Attributes:
        what, against: what was timed, and what it was timed against, in words.
        ratio: median over pairs of time(what) / time(against); both times of a pair are from one round.
        low, high: smallest and largest ratio of a pair.
        seconds, seconds_against: median times.
        pairs: number of rounds.
        at_most: the target; null where there is none.
        case: what both were measured on, such as a model and a batch size.
        rounds: seconds of both in each round.
    """

    what: str
    against: str
    ratio: float
    low: float
    high: float
    seconds: float
    seconds_against: float
    pairs: int
    at_most: float | None = None
    case: str = ""
    rounds: tuple[tuple[float, float], ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def ratio_of(
    what: str,
    against: str,
    seconds: Sequence[float],
    seconds_against: Sequence[float],
    *,
    case: str = "",
    at_most: float | None = None,
) -> Ratio:
    """The ratio of times that were measured in pairs. Pair i of both is from round i."""
    pairs = tuple(zip(seconds, seconds_against, strict=True))
    ratios = [own / other for own, other in pairs]
    return Ratio(
        what, against, statistics.median(ratios), min(ratios), max(ratios),
        statistics.median(seconds), statistics.median(seconds_against), len(ratios), at_most, case, pairs,
    )  # fmt: skip


def timed(work: Work, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds that ``work`` takes by ``clock``."""
    start = clock()
    work()
    return clock() - start


def balanced_orders(count: int) -> list[list[int]]:
    """Orders of ``count`` things in which each comes equally often directly after each other one.

    ``count`` orders where that is even, twice as many where it is odd, each followed by its reverse (Williams 1949,
    Designs balanced for the estimation of residual effects of treatments).
    """
    zigzag = [(place + 1) // 2 if place % 2 else (count - place // 2) % count for place in range(count)]
    orders = [[(one + shift) % count for one in zigzag] for shift in range(count)]
    # An even number of them holds each one's reverse already.
    return orders if count % 2 == 0 else [order for one in orders for order in (one, one[::-1])]


def rounds(
    works: Mapping[str, Work], count: int, say: Callable[[str], object], clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of every work in each of ``count`` rounds, after one round that warms up and is thrown away.

    Each round runs everything once, so that a slow minute of the machine meets all of them. The orders are those of
    :func:`balanced_orders`, so that nothing always follows the same other thing.
    """
    names = list(works)
    orders = balanced_orders(len(names))
    found: dict[str, list[float]] = {name: [] for name in names}
    for place in range(count + 1):
        order = [names[one] for one in orders[(place - 1) % len(orders)]]
        now = {name: timed(works[name], clock) for name in order}
        say(f"round {place} of {count}: " + ", ".join(f"{name} {now[name]:.3f} s" for name in names))
        if place:
            for name in names:
                found[name].append(now[name])
    return found
