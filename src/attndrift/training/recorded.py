"""A training step's forward and backward pass as a CUDA graph: recorded once, replayed for every batch of its size.

A step of ViT-B/32 on 64 images asks a GPU for 1,200 operations, which takes a processor longer to ask for than the GPU to
do. A replay asks once. It does the very same operations on the very same memory, so nothing else about a run changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

Work = Callable[[Mapping[str, Tensor]], tuple[Tensor, ...]]
"""Of a batch's tensors the loss, of which the gradients are taken, and whatever else is to be known; nothing in it may wait
for the device, and it must do the same for every batch."""

Found = TypeVar("Found")

_WARM = 3


def recorded(
    work: Callable[[], Found], device: torch.device, between: Callable[[], None] = lambda: None
) -> tuple[torch.cuda.CUDAGraph, Found]:
    """What ``work`` asks of a CUDA device as a graph to replay, and what it returned when that was recorded.

    ``work`` must read nothing, wait for nothing, and take its input where it took it before; it runs a few times first, with
    ``between`` after each. What it returned is overwritten by every replay, and must be kept as long as the graph.
    """
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        # Libraries choose their algorithms, and take the memory that they keep.
        for _ in range(_WARM):
            work()
            between()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = work()
    return graph, found


class RecordedStep:
    """``work`` and the backward pass of its loss on a CUDA device, for batches of the shapes of ``batch``.

    Recording runs ``work`` a few times without leaving a trace: gradients and random states are as before. The
    parameters must stay where they are in memory, which each call checks; their values may change. What a step takes of
    the device's memory stays taken.
    """

    def __init__(self, model: nn.Module, work: Work, batch: Mapping[str, Tensor]) -> None:
        self._batch = {name: value.clone() for name, value in batch.items()}
        self._parameters = list(model.parameters())
        self._trained = [parameter for parameter in self._parameters if parameter.requires_grad]
        self._places = self._addresses()
        self._flags = [module.training for module in model.modules()]
        self._modules = list(model.modules())
        device = self._trained[0].device
        state = torch.cuda.get_rng_state(device)
        self._drop_gradients()
        try:
            self._graph, self._found = recorded(self._both_passes(work), device, self._drop_gradients)
            self._gradients = [parameter.grad for parameter in self._trained]
        finally:
            self._drop_gradients()
            torch.cuda.set_rng_state(state, device)

    def __call__(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """What ``work`` makes of ``batch``; gradients are left in the parameters, as ``backward`` leaves them.

        The tensors that come back are overwritten by the next call. Raises RuntimeError where the parameters were moved,
        or a part of the model changed its mode, since it was recorded: what was recorded is another computation then.
        """
        if self._places != self._addresses() or self._flags != [module.training for module in self._modules]:
            raise RuntimeError(
                "the model's parameters were replaced, or parts of it changed between training and evaluation, after its "
                "step was recorded; run with `cuda_graphs: false`"
            )
        for name, value in batch.items():
            self._batch[name].copy_(value, non_blocking=True)
        self._graph.replay()
        for parameter, gradient in zip(self._trained, self._gradients, strict=True):
            parameter.grad = gradient
        return self._found

    @classmethod
    def if_there_is_room(cls, model: nn.Module, work: Work, batch: Mapping[str, Tensor]) -> RecordedStep | None:
        """One that leaves as much of the device's memory free as it takes; None where it cannot.

        Beside it a smaller batch, which is no replay, needs what a step needs once more.
        """
        device = next(iter(batch.values())).device
        free = _free_memory(device)
        try:
            step = cls(model, work, batch)
        except torch.OutOfMemoryError:
            step = None
        left = _free_memory(device)
        if step is None or left < free - left:
            del step
            torch.cuda.empty_cache()
            return None
        return step

    def _both_passes(self, work: Work) -> Callable[[], tuple[Tensor, ...]]:
        def forward_and_backward() -> tuple[Tensor, ...]:
            found = work(self._batch)
            found[0].backward()
            return found

        return forward_and_backward

    def _addresses(self) -> list[int]:
        return [parameter.data_ptr() for parameter in self._parameters]

    def _drop_gradients(self) -> None:
        for parameter in self._trained:
            parameter.grad = None


def _free_memory(device: torch.device) -> int:
    """Bytes that nobody has taken."""
    return int(torch.cuda.mem_get_info(device)[0])
