"""Work of an accelerator: as it is left running, and recorded once and replayed, without the launches that bind small batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from attndrift.metrics import StructureAccumulator, StructureSummary
from attndrift.observing import observe
from attndrift.training.recorded import recorded


def captured(work: Callable[[], Any]) -> Callable[[], None]:
    """``work`` as a CUDA graph. It must wait for nothing, read nothing, and take its input where it took it before.

    The functions that it calls run once, here; a replay only repeats what they asked of the device.
    """
    graph, found = recorded(work, torch.device("cuda", torch.cuda.current_device()))

    def replay(_: Any = found) -> None:  # held here, as it must stay where it is
        graph.replay()

    return replay


def observed_once(model: nn.Module, work: Callable[[], object]) -> StructureAccumulator:
    """``work``, a pass of ``model`` or a step, with all four metrics of it computed on the device and left there."""
    accumulator = StructureAccumulator(check=False)
    with observe(model, check=False) as seen:
        work()
        accumulator.update(seen.attention, seen.cls_mass)
    return accumulator


def observed_throughout(model: nn.Module, work: Callable[[], object], times: int) -> list[StructureSummary]:
    """``work`` so many times in one observation, as it would be left on: nothing in it waits for the device, and the metrics of
    all are read after the last."""
    accumulators = []
    with observe(model, check=False) as seen:
        for _ in range(times):
            work()
            accumulator = StructureAccumulator(check=False)
            accumulator.update(seen.attention, seen.cls_mass)
            accumulators.append(accumulator)
    return [accumulator.compute() for accumulator in accumulators]
