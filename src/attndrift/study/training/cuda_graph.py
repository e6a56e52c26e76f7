"""A training step's forward and backward pass as a CUDA graph: captured once, replayed for every batch of its size.

A step of ViT-B/32 on 64 images launches 1,200 kernels, which takes a processor longer than the GPU needs to run them. A
replay is one launch. It runs the very same kernels on the very same memory, so nothing else about a run changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

Losses = TypeVar("Losses", bound=tuple[Any, ...])
Found = TypeVar("Found")

WARM_UPS = 3


def capture(
    work: Callable[[], Found], device: torch.device, between: Callable[[], None] = lambda: None
) -> tuple[torch.cuda.CUDAGraph, Found]:
    """The kernels that ``work`` launches as a graph to replay, and what it returned when they were captured.

    ``work`` must read nothing, wait for nothing, and take its input where it took it before; it runs a few times first, with
    ``between`` after each. What it returned is overwritten by every replay, and must be kept as long as the graph.
    """
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        # Libraries choose their algorithms, and take the memory that they keep.
        for _ in range(WARM_UPS):
            work()
            between()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = work()
    return graph, found


class CUDAGraphStep(Generic[Losses]):
    """``losses`` of a batch and the backward pass of the first on a CUDA device, for batches of the shapes of ``batch``.

    Capturing runs ``losses`` a few times without leaving a trace: gradients and random states are as before. The
    parameters must stay where they are in memory, which each call checks; their values may change. What a step takes of
    the device's memory stays taken.

    ``losses``: of a batch's tensors the loss, which is differentiated, and whatever else is to be known. Nothing in it may
    wait for the device, and it must do the same for every batch.
    """

    def __init__(
        self, model: nn.Module, losses: Callable[[Mapping[str, Tensor]], Losses], batch: Mapping[str, Tensor]
    ) -> None:
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
            self._graph, self._losses = capture(self._both_passes(losses), device, self._drop_gradients)
            self._gradients = [parameter.grad for parameter in self._trained]
        finally:
            self._drop_gradients()
            torch.cuda.set_rng_state(state, device)

    def __call__(self, batch: Mapping[str, Tensor]) -> Losses:
        """``losses`` of ``batch``; gradients are left in the parameters, as ``backward`` leaves them.

        The tensors that come back are overwritten by the next call. Raises RuntimeError where the parameters were moved,
        or a part of the model changed its mode, since the capture: what was captured is another computation then.
        """
        if self._places != self._addresses() or self._flags != [module.training for module in self._modules]:
            raise RuntimeError(
                "the model's parameters were replaced, or parts of it changed between training and evaluation, after its "
                "step was captured as a CUDA graph; run with `cuda_graphs: false`"
            )
        for name, value in batch.items():
            self._batch[name].copy_(value, non_blocking=True)
        self._graph.replay()
        for parameter, gradient in zip(self._trained, self._gradients, strict=True):
            parameter.grad = gradient
        return self._losses

    @classmethod
    def if_there_is_room(
        cls, model: nn.Module, losses: Callable[[Mapping[str, Tensor]], Losses], batch: Mapping[str, Tensor]
    ) -> CUDAGraphStep[Losses] | None:
        """One that leaves as much of the device's memory free as it takes; None where it cannot.

        Beside it a smaller batch, which is no replay, needs what a step needs once more.
        """
        device = next(iter(batch.values())).device
        free = _free_memory(device)
        try:
            step = cls(model, losses, batch)
        except torch.OutOfMemoryError:
            step = None
        left = _free_memory(device)
        if step is None or left < free - left:
            del step
            torch.cuda.empty_cache()
            return None
        return step

    def _both_passes(self, losses: Callable[[Mapping[str, Tensor]], Losses]) -> Callable[[], Losses]:
        def forward_and_backward() -> Losses:
            found = losses(self._batch)
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
