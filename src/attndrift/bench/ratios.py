"""Ratios against a named alternative, measured in one run: medians over interleaved pairs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

Work = Callable[[], object]


@dataclass(frozen=True)
class Ratio:
    """One measured ratio.

    Attributes:
        what, against: what was timed, and what it was timed against, in words.
        ratio: median over pairs of time(what) / time(against), each pair from one round.
        low, high: smallest and largest ratio of a pair.
        seconds, seconds_against: median times.
        pairs: number of rounds, after one that is thrown away.
        megabytes, megabytes_against: median of the largest memory that each took; null where not measured.
        at_most: what the ratio is meant to stay below; null where nothing was promised.
        case: what both were measured on: a model, a batch; empty where ``what`` says it.
        rounds: seconds of both in each round, in the order of the rounds.
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
    case: str = ""
    rounds: tuple[tuple[float, float], ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def aiming_at(self, at_most: float | None) -> Ratio:
        """The same with its target; None for none."""
        return replace(self, at_most=at_most)


def ratio_of(
    what: str, against: str, seconds: Sequence[float], seconds_against: Sequence[float], *, case: str = ""
) -> Ratio:
    """The ratio of times that were measured in pairs, pair i of both in round i."""
    ratios = [own / other for own, other in zip(seconds, seconds_against, strict=True)]
    return Ratio(
        what,
        against,
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        statistics.median(seconds),
        statistics.median(seconds_against),
        len(ratios),
        case=case,
        rounds=tuple(zip(seconds, seconds_against, strict=True)),
    )


def _nothing(*_: object) -> None:
    return None


def timed(work: Work, wait: Work = _nothing) -> float:
    """Seconds that ``work`` takes; ``wait`` returns once the device has done everything that was asked of it."""
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def balanced_orders(count: int) -> list[list[int]]:
    """Orders of ``count`` things in which, all taken together, each comes equally often directly after each other one.

    ``count`` orders where that is even, twice as many where it is odd, each followed by its reverse (Williams 1949,
    Designs balanced for the estimation of residual effects of treatments).
    """
    zigzag = [(place + 1) // 2 if place % 2 else (count - place // 2) % count for place in range(count)]
    orders = [[(one + shift) % count for one in zigzag] for shift in range(count)]
    # An even number of them holds each one's reverse already.
    return orders if count % 2 == 0 else [order for one in orders for order in (one, one[::-1])]


def rounds(
    works: Mapping[str, Work], count: int, *, wait: Work = _nothing, say: Callable[[str], object] = _nothing
) -> dict[str, list[float]]:
    """Seconds of every work in each of ``count`` rounds, after one that warms up and is thrown away.

    In a round everything is run once, and what slows the machine for a while meets all of them. The orders are those of
    :func:`balanced_orders`, so that nothing always comes after the same other thing.
    """
    names = list(works)
    orders = balanced_orders(len(names))
    found: dict[str, list[float]] = {name: [] for name in names}
    for place in range(count + 1):
        order = [names[one] for one in orders[(place - 1) % len(orders)]]
        now = {name: timed(works[name], wait) for name in order}
        say(f"round {place} of {count}: " + ", ".join(f"{name} {now[name]:.3f} s" for name in names))
        if place:
            for name in names:
                found[name].append(now[name])
    return found
