"""The device that a benchmark runs on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch


def device_named(name: str) -> torch.device:
    """``cpu``, ``cuda``, ...; ``auto`` is an accelerator where there is one. Raises ValueError where it is absent."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device {name}: no such device; choose cpu, cuda or auto") from error
    if device.type not in ("cpu", "cuda"):
        # Without a way to wait for it, what is timed would be the asking and not the work.
        raise ValueError(f"--device {name}: times are taken on cpu and cuda alone; choose cpu, cuda or auto")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: torch sees no such accelerator here; choose cpu or auto")
    return device


def wait_for(device: torch.device) -> Callable[[], None]:
    """Returns once ``device`` has done everything that was asked of it."""
    return partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None


def precision_named(name: str, device: torch.device) -> torch.dtype:
    """``float32``, ``bfloat16``; ``auto`` is bfloat16 on an accelerator that has it and float32 elsewhere."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    if name not in ("float32", "bfloat16"):
        raise ValueError(f"--precision {name}: choose float32, bfloat16 or auto")
    return getattr(torch, name)
