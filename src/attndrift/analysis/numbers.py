"""Plain numbers from foreign values, and learning rates as text."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def number(value: Any) -> float | None:
    """``value`` as a Python float; None for null, NaN and infinities."""
    if value is None:
        return None
    try:
        result = float(value)
    except (TypeError, ValueError):
        return None
    return result if math.isfinite(result) else None


def format_rate(value: Any) -> str:
    """3e-6 for 3e-06, 0.01 for 0.01; `rate not given` for null."""
    rate = number(value)
    if rate is None:
        return "rate not given"
    text = f"{rate:.6g}" if rate >= 0.001 or rate == 0 else f"{rate:.6e}"
    if "e" in text:
        mantissa, exponent = text.split("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        text = f"{mantissa}e{int(exponent)}"
    return text
