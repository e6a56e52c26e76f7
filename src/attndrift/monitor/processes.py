"""Measuring together: every process takes its share of the images, and all end with the same numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, distributed


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

    def agree(self, problem: Exception | None) -> None:
        """Raise ``problem``, here or in another process: one that fails alone would leave the others waiting."""
        flag = torch.tensor([0, 0], dtype=torch.int64)
        if problem is not None:
            flag[0], flag[1] = 1, self.rank + 1
        flag = self.sum(flag)
        if problem is not None:
            raise problem
        if int(flag[0]):
            who = f"process {int(flag[1]) - 1}" if int(flag[0]) == 1 else f"{int(flag[0])} processes"
            raise OtherProcessError(f"the drift was not measured: {who} failed; its own error says why")


class OtherProcessError(RuntimeError):
    """Another process could not measure its share."""


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
