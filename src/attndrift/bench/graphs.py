"""Work of an accelerator recorded once and replayed: what it takes without the launches, which bind small batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_WARM = 3


def captured(work: Callable[[], Any]) -> Callable[[], None]:
    """``work`` as a CUDA graph. It must wait for nothing, read nothing, and take its input where it took it before.

    The functions that it calls run once, here; a replay only repeats what they asked of the device.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = work()

    def replay(_: Any = output) -> None:  # what was made is overwritten, and must stay where it is
        graph.replay()

    return replay
