"""In which order the runs of a study begin, so that no process waits long for the last one to end.

Twenty-one runs of about equal length, two at a time, leave one process without work for a whole run. Where lengths differ
a little, as they do, one process can take eleven shorter ones while the other takes ten longer ones. So the runs
that are left are divided anew whenever a process is free, by what runs of their kind have taken so far.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from attndrift.study.settings import NamedRun, RunSettings

FEW = 12
"""Runs a process, at most, that are divided; of more, the longest begins."""

_Kind = tuple[object, ...]


def expected_work(settings: RunSettings) -> float:
    """How long a run takes before any of its kind has been seen, on no particular scale.

    Rough: epochs, and that less is differentiated where layers are frozen. How many images an epoch has is not known.
    """
    method = settings.facts
    # A training that is counted in steps is taken for epochs of a hundred.
    epochs = settings.epochs if settings.steps is None else settings.steps / 100
    return method.work * 0.97**settings.freeze_layers * epochs if method.adapts else 0.05


def _kind(settings: RunSettings) -> _Kind:
    """Runs of one kind take the same time but for chance."""
    return (
        settings.dataset, settings.method, settings.text_tower, settings.head, tuple(settings.own.items()),
        settings.freeze_layers, tuple(settings.losses), settings.guard, settings.epochs, settings.steps, settings.batch_size,
    )  # fmt: skip


class Schedule:
    """The runs of a study that have not begun.

    ``jobs``: how many run at a time.
    """

    def __init__(self, runs: Iterable[NamedRun], jobs: int) -> None:
        self._waiting = list(runs)
        self._jobs = jobs
        self._taken: dict[_Kind, list[float]] = {}
        self._scales: list[float] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def took(self, run: NamedRun, seconds: float) -> None:
        """A run has ended after ``seconds``."""
        self._taken.setdefault(_kind(run.settings), []).append(seconds)
        self._scales.append(seconds / expected_work(run.settings))

    def expected_seconds(self, run: NamedRun) -> float:
        """The median of the runs of its kind, or, before the first one, by all runs so far and their expected work."""
        seen = self._taken.get(_kind(run.settings))
        if seen:
            return statistics.median(seen)
        return expected_work(run.settings) * (statistics.median(self._scales) if self._scales else 1.0)

    def take(self, under_way: Sequence[tuple[NamedRun, float]] = ()) -> NamedRun:
        """The run that begins in a process that is free now; of equal ones, the first of the study.

        ``under_way``: the runs of the other processes, with the seconds that each has had.
        Raises ``IndexError`` where no run waits.
        """
        longest = sorted(self._waiting, key=lambda run: -self.expected_seconds(run))
        chosen = longest[0]
        if len(longest) <= FEW * self._jobs:
            left = [max(0.0, self.expected_seconds(run) - had) for run, had in under_way]
            own = divided([self.expected_seconds(run) for run in longest], [0.0, *left])[0]
            chosen = longest[min(own, default=0)]
        self._waiting.remove(chosen)
        return chosen


def divided(lengths: Sequence[float], loads: Sequence[float]) -> list[list[int]]:
    """Which of the ``lengths``, by place, each process takes so that the last one ends early; ``loads`` is what each still has.

    The longest goes where least is (Graham 1969), then single ones are moved and pairs exchanged while that evens out the
    loads. Not always the best division, never a worse one than the first step's.
    """
    sums = list(loads)
    parts: list[list[int]] = [[] for _ in sums]
    for place in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        least = min(range(len(sums)), key=lambda j: sums[j])
        parts[least].append(place)
        sums[least] += lengths[place]

    def improved() -> bool:
        # From the fullest, as moving between others ends nothing earlier.
        full = max(range(len(sums)), key=lambda j: sums[j])
        for other in range(len(sums)):
            gap = sums[full] - sums[other]
            best, change = None, 0.0
            for one in parts[full]:
                for back in (None, *parts[other]):
                    moved = lengths[one] - (0.0 if back is None else lengths[back])
                    # The fuller of the two is relieved by this much at the end.
                    relief = min(moved, gap - moved)
                    if relief > change + 1e-9:
                        best, change = (one, back, moved), relief
            if best is not None:
                one, back, moved = best
                parts[full].remove(one)
                parts[other].append(one)
                if back is not None:
                    parts[other].remove(back)
                    parts[full].append(back)
                sums[full] -= moved
                sums[other] += moved
                return True
        return False

    while improved():
        pass
    return parts
