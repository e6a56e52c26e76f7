"""Kernels for CUDA devices, where the plain operations would cost more in launches and traffic than in arithmetic.

Each has a plain form beside it where it is used, which runs everywhere else and says what the kernel computes. They are
written in Triton, which comes with torch's CUDA builds for Linux; without it, or without the C compiler that it needs, the
plain forms are used there too, and a warning says so once.
"""

from __future__ import annotations

import importlib.util
import math
import os
import warnings

import torch
from torch import Tensor

SWITCH = "ATTNDRIFT_KERNELS"
"""Environment variable: 0 leaves the kernels out."""

LONGEST = 2048
"""Most tokens of a row that a kernel holds at once."""


def usable(*tensors: Tensor) -> bool:
    """Whether kernels can run on these tensors, which must be on one device."""
    device = tensors[0].device
    return (
        device.type == "cuda"
        and all(tensor.device == device for tensor in tensors)
        and not torch.compiler.is_compiling()
        and _works(device.index or 0)
    )


_working: dict[int, bool] = {}


def _works(index: int) -> bool:
    """Whether a kernel can be compiled for the device and gives what it should; a warning if not."""
    if index not in _working:
        if torch.cuda.is_current_stream_capturing():
            return False  # nothing can be tried here; the next time will tell
        _working[index] = _tried(index)
    return _working[index]


def _tried(index: int) -> bool:
    if os.environ.get(SWITCH, "1") == "0" or torch.version.cuda is None or importlib.util.find_spec("triton") is None:
        return False
    if torch.cuda.get_device_capability(index) < (7, 0):  # older than Triton compiles for
        return False
    try:
        from attndrift.metrics.kernels.row_structure import structure_of_rows
        from attndrift.metrics.kernels.rows import read_rows, row_logits

        ones = torch.ones(1, 2, 3, 16, device=torch.device("cuda", index))
        _, attention, mass = read_rows(row_logits(ones[:, :, 0], ones, 0.5), 1)
        _, (entropy, field, gini) = structure_of_rows(attention, 0.95)
        found = torch.stack([mass, entropy, field, gini]).flatten(1)[:, 0].tolist()
        expected = [1 / 3, math.log(2), 1.0, 0.0]
        if any(abs(one - other) > 1e-5 for one, other in zip(found, expected, strict=True)):
            raise ArithmeticError(f"a test gave {found} and not {expected}")
    except Exception as error:  # of a compiler or a driver, whatever it may be
        warnings.warn(
            f"attndrift's kernels cannot be used on this device ({type(error).__name__}: {error}); the same is computed "
            f"without them, and observing costs more. {SWITCH}=0 leaves them out without this warning",
            stacklevel=2,
        )
        return False
    return True
