"""The seconds that observing takes inside a pass, timed in its hooks.

On a noisy machine the difference of two passes is smaller than their spread. Inside one pass the seconds can be counted: in the
hooks, in entering and leaving the observation, and in the metrics. The effect on the rest of the pass (caches, memory) is
not counted here; the ratio of whole passes has it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from attndrift.attention import observe
from attndrift.attention.observer import Recorder
from attndrift.metrics import StructureAccumulator

TITLE = "observing, timed in its hooks inside the same passes"


class Stopwatch:
    """Adds up the seconds that are spent inside :meth:`running`."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.running():
                return function(*args, **kwargs)

        return timed


@contextmanager
def timed_hooks(watch: Stopwatch) -> Iterator[None]:
    """Inside, ``watch`` times every hook of an observation."""
    originals = {name: getattr(Recorder, name) for name in Recorder.HOOKS}
    try:
        for name, original in originals.items():
            setattr(Recorder, name, watch.around(original))
        yield
    finally:
        for name, original in originals.items():
            setattr(Recorder, name, original)


def observed_pass(model: nn.Module, work: Callable[[], Any]) -> float:
    """Run ``work``, a pass or a step of ``model``, observed, with all four metrics; the seconds that observing took."""
    watch = Stopwatch()
    with timed_hooks(watch), ExitStack() as observing:
        with watch.running():
            seen = observing.enter_context(observe(model))
        work()
        with watch.running():
            accumulator = StructureAccumulator()
            accumulator.update(seen.attention, seen.cls_mass)
            observing.close()
            accumulator.compute()
    return watch.seconds


def overhead_row(what: str, case: str, spent: Sequence[float], whole: Sequence[float]) -> dict[str, Any]:
    """A row: ``spent`` of the ``whole`` seconds of each pass, and each pass over what it is without them."""
    ratios = [seconds / (seconds - own) for own, seconds in zip(spent, whole, strict=True)]
    return {
        "case": case, "what": what,
        "observing s": statistics.median(spent), "whole s": statistics.median(whole),
        "whole / whole without": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios),
        "n": len(ratios),
    }  # fmt: skip
