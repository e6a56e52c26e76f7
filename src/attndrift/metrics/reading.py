"""Reading numbers of an accelerator together, so that it is waited for once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

Later = Callable[[], Tensor]
"""Gives a tensor whose computation may still be under way when this is handed out."""


class Readings:
    """Tensors that are wanted later, on the CPU, and come in one journey.

    To read a number of an accelerator is to wait until it has done all that it was asked for, while it is asked for nothing
    more. What is only noted here is not waited for before the first of the functions handed out is called.
    """

    TOGETHER = frozenset({"cuda"})
    """Devices whose tensors are read together; each needs float64. Those of others are read one by one."""

    def __init__(self) -> None:
        self._noted: list[Tensor] = []
        self._sent: list[Later] = []

    def later(self, values: Tensor) -> Later:
        """A function that gives ``values``, which nobody changes, in float64 on the CPU."""
        values = values.detach()
        if values.device.type not in self.TOGETHER:
            return lambda: values.cpu().to(torch.float64)
        place, shape = len(self._sent) + len(self._noted), values.shape
        self._noted.append(values.to(torch.float64).flatten())

        def read() -> Tensor:
            self.send()
            return self._sent[place]().view(shape)

        return read

    def send(self) -> None:
        """Let what was noted so far set out: the accelerator is then waited for as far as that, not for what comes after it."""
        if not self._noted:
            return
        noted, self._noted = self._noted, []
        # Parts of a model may lie on devices of their own.
        arrived = _journey(torch.cat([one.to(noted[0].device, non_blocking=True) for one in noted]))
        ends = accumulate(len(one) for one in noted)
        self._sent += [partial(_part, arrived, end - len(one), end) for one, end in zip(noted, ends, strict=True)]


def _part(arrived: Later, start: int, end: int) -> Tensor:
    return arrived()[start:end]


def _journey(values: Tensor) -> Later:
    if values.device.type != "cuda":
        return values.cpu
    # Only into pinned memory does a copy leave the processor free.
    here = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    here.copy_(values, non_blocking=True)
    done = torch.cuda.current_stream(values.device).record_event()

    def arrived() -> Tensor:
        done.synchronize()
        return here

    return arrived
