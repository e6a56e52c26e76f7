"""Bringing values from the host to an accelerator without waiting for what it has yet to do."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_device(values: NDArray[Any] | Tensor, device: torch.device) -> Tensor:
    """``values`` on ``device``; on a CPU they share their memory.

    A copy to CUDA out of ordinary memory makes the host wait until the device has done all that came before; one
    out of pinned memory is queued behind it. Torch keeps the pinned memory until the copy is over.
    """
    tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
