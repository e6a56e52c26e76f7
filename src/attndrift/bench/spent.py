"""The seconds of observing, taken where they are spent.

The difference of two passes drowns in their spread on a machine that is not quiet. Inside one pass the same seconds can be
counted exactly: in the hooks of the observation, in entering and leaving it, and in the metrics. What they do to the rest of
the pass (caches, memory) is not in them; the ratio of whole passes has it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from attndrift.bench.ratios import Work
from attndrift.metrics import StructureAccumulator
from attndrift.observing import observe
from attndrift.observing.observer import Recorder

SPENT = "observing, timed where it is spent, inside the same passes"
"""Title of the table of :func:`spent_row`."""


class Stopwatch:
    """Seconds that were spent in what it was put around; ``wait`` returns once the device has done what was asked."""

    def __init__(self, wait: Work = lambda: None) -> None:
        self.seconds = 0.0
        self._wait = wait

    @contextmanager
    def running(self) -> Iterator[None]:
        """Counts what is done inside."""
        self._wait()
        start = time.perf_counter()
        try:
            yield
        finally:
            self._wait()
            self.seconds += time.perf_counter() - start

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, counted."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.running():
                return function(*args, **kwargs)

        return timed


@contextmanager
def timed_hooks(watch: Stopwatch) -> Iterator[None]:
    """Every hook of an observation counts on ``watch``."""
    originals = {name: getattr(Recorder, name) for name in Recorder.HOOKS}
    try:
        for name, original in originals.items():
            setattr(Recorder, name, watch.around(original))
        yield
    finally:
        for name, original in originals.items():
            setattr(Recorder, name, original)


def observed_pass(model: nn.Module, forward: Callable[[], Any], watch: Stopwatch) -> Any:
    """``forward`` of ``model`` observed, all four metrics of it computed; ``watch`` counts the seconds of that.

    Returns what ``forward`` returns.
    """
    accumulator = StructureAccumulator()
    with timed_hooks(watch), ExitStack() as observing:
        with watch.running():
            seen = observing.enter_context(observe(model))
        output = forward()
        with watch.running():
            accumulator.update(seen.attention, seen.cls_mass)
            observing.close()
            accumulator.compute()
    return output


def spent_row(what: str, case: str, spent: Sequence[float], whole: Sequence[float]) -> dict[str, Any]:
    """A row: ``spent`` of the ``whole`` seconds of each pass, and each pass over what it is without them, at least 1."""
    ratios = [seconds / (seconds - own) for own, seconds in zip(spent, whole, strict=True)]
    return {
        "case": case,
        "what": what,
        "observing s": statistics.median(spent),
        "whole s": statistics.median(whole),
        "whole / whole without": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
        "n": len(ratios),
    }
