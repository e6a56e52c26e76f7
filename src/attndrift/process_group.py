"""Measuring together: every process takes its share of the images, and all end with the same numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self, cast

import torch
from torch import Tensor, distributed


class DivergedError(RuntimeError):
    """Training left the finite numbers: the loss, or a measured quantity, is not finite.

    Attributes:
        step: optimiser steps done by then; None where that is not known.
    """

    step: int | None = None

    def at(self, step: int) -> Self:
        """The same with the step, in its message too, unless it has one."""
        if self.step is None:
            self.step, self.args = step, (f"{self} after step {step}",)
        return self


@dataclass(frozen=True)
class Processes:
    """This process among those of ``torch.distributed``; alone where there is no process group.

    Image ``i`` of the probe belongs to process ``i % count``. Every process runs every batch, padded with a
    copy where it has fewer images than another one, so that all run equally many forward passes of equal
    size; the copies are dropped before anything is summed.
    """

    rank: int = 0
    count: int = 1

    @staticmethod
    def current() -> Processes:
        """The processes of the default group, or this one alone."""
        if distributed.is_available() and distributed.is_initialized():
            return Processes(distributed.get_rank(), distributed.get_world_size())
        return Processes()

    @property
    def first(self) -> bool:
        """Whether this is the process that speaks and writes."""
        return self.rank == 0

    def share(self, batch: Tensor, seen: int) -> tuple[Tensor, int]:
        """This process's images of ``batch``, padded; and how many of them are its own.

        Args:
            batch: (images, ...), the same in every process.
            seen: images in the batches before.
        """
        if self.count == 1:
            return batch, len(batch)
        mine = batch[(self.rank - seen) % self.count :: self.count]
        size = -(-len(batch) // self.count)
        copies = size - len(mine)
        return (torch.cat([mine, batch[:1].expand(copies, *batch.shape[1:])]) if copies else mine), len(mine)

    def sum(self, values: Tensor) -> Tensor:
        """The sum of ``values`` over the processes, in every one of them."""
        if self.count == 1:
            return values
        total = values.detach().clone().to(_device())
        distributed.all_reduce(total)
        return total.to(values.device)

    def join(self, rows: Tensor, batches: list[int]) -> Tensor:
        """The rows of all images, in the order of the probe.

        Args:
            rows: (padded images of this process, ...), batch after batch.
            batches: images in each batch, before it was shared out.
        """
        if self.count == 1:
            return rows
        local = rows.contiguous().to(_device())
        parts = [torch.empty_like(local) for _ in range(self.count)]
        distributed.all_gather(parts, local)
        joined = torch.empty((sum(batches), *rows.shape[1:]), dtype=rows.dtype)
        seen = start = 0
        for size in batches:
            padded = -(-size // self.count)
            for rank, part in enumerate(parts):
                first = (rank - seen) % self.count
                own = len(range(first, size, self.count))
                joined[seen + first : seen + size : self.count] = part[start : start + own].to(joined.device)
            seen, start = seen + size, start + padded
        return joined

    def from_first(self, values: Tensor) -> Tensor:
        """``values`` of the first process, in every process."""
        if self.count == 1:
            return values
        sent = values.detach().clone().to(_device())
        distributed.broadcast(sent, 0)
        return sent.to(values.device)

    def gather(self, rows: Tensor) -> list[Tensor]:
        """``rows`` of every process, on the CPU; they may differ in their first dimension."""
        if self.count == 1:
            return [rows.cpu()]
        lengths = torch.zeros(self.count, dtype=torch.int64)
        lengths[self.rank] = len(rows)
        lengths = self.sum(lengths)
        padded = torch.zeros((int(lengths.max()), *rows.shape[1:]), dtype=rows.dtype, device=_device())
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(self.count)]
        distributed.all_gather(parts, padded)
        return [part[:length].cpu() for part, length in zip(parts, lengths.tolist(), strict=True)]

    def wait(self) -> None:
        """Go on when all processes are here: what each has written before can then be read by all."""
        self.sum(torch.zeros(1))

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """A block that fails in all processes where it fails in one; nothing in it may wait for another process."""
        problem: Exception | None = None
        try:
            yield
        except Exception as error:
            if self.count == 1:
                raise
            problem = error
        if self.count > 1:
            self.agree(problem)

    def agree(self, problem: Exception | None) -> None:
        """Raise ``problem``, here or in another process: one that fails alone would leave the others waiting."""
        flag = torch.tensor([0, 0, 0], dtype=torch.int64)
        if problem is not None:
            flag[0], flag[1], flag[2] = 1, self.rank + 1, isinstance(problem, DivergedError)
        flag = self.sum(flag)
        if problem is not None:
            raise problem
        if int(flag[0]):
            who = f"process {int(flag[1]) - 1}" if int(flag[0]) == 1 else f"{int(flag[0])} processes"
            kind = OtherProcessDiverged if int(flag[2]) == int(flag[0]) else OtherProcessError
            raise kind(f"nothing was measured: {who} failed; its own error says why")


class OtherProcessError(RuntimeError):
    """Another process could not measure its share."""


class OtherProcessDiverged(OtherProcessError, DivergedError):
    """Another process found the model outside the finite numbers."""


def _device() -> torch.device:
    # NCCL and its like take tensors of their accelerator only.
    backend = cast(str, distributed.get_backend())
    if backend in ("gloo", "mpi") or "cpu:" in backend:
        return torch.device("cpu")
    accelerator = torch.accelerator.current_accelerator()
    return (
        torch.device("cpu")
        if accelerator is None
        else torch.device(accelerator.type, torch.accelerator.current_device_index())
    )
