"""The device that a benchmark runs on."""

from __future__ import annotations

from collections.abc import Callable

import torch


def device_named(name: str) -> torch.device:
    """``cpu``, ``cuda``, ...; ``auto`` is an accelerator where there is one. Raises ValueError where it is absent."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: torch sees no such accelerator here; choose cpu or auto")
    return device


def wait_for(device: torch.device) -> Callable[[], None]:
    """Returns once ``device`` has done everything that was asked of it."""
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None
