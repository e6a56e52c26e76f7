"""Reading numbers of an accelerator together, so that it is waited for once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Deferred = Callable[[], Tensor]
"""Gives a tensor whose computation may still be under way when this is handed out."""


class DeferredScalars:
    """Tensors that are wanted later, on the CPU, and come in one journey.

    To read a number of an accelerator is to wait until it has done all that it was asked for, while it is asked for nothing
    more. What is only noted here is not waited for before the first of the functions handed out is called.
    """

    TOGETHER = frozenset({"cuda"})
    """Devices whose tensors are read together; each needs float64. Those of others are read one by one."""

    def __init__(self) -> None:
        self._noted: list[Tensor] = []
        self._read: list[Tensor] = []

    def defer(self, values: Tensor) -> Deferred:
        """A function that gives ``values``, which nobody changes before, in float64 on the CPU."""
        values = values.detach()
        if values.device.type not in self.TOGETHER:
            return lambda: values.cpu().to(torch.float64)
        place, shape = len(self._noted), values.shape
        self._noted.append(values.to(torch.float64).flatten())
        return lambda: self._all()[place].view(shape)

    def _all(self) -> list[Tensor]:
        new = self._noted[len(self._read) :]
        if new:
            # Parts of a model may lie on devices of their own.
            arrived = torch.cat([one.to(new[0].device, non_blocking=True) for one in new]).cpu()
            self._read += arrived.split([len(one) for one in new])
        return self._read
