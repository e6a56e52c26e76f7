"""Times as users write and read them: ``90s``, ``30 min``, ``2 h``."""

from __future__ import annotations

import re


def spoken(seconds: float) -> str:
    """A time as it is given: ``90 s``, ``30 min``, ``2 h``."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"


def parse_time(text: str) -> float:
    """Seconds from ``90s``, ``30m``, ``2h``; a bare number is minutes. Raises ``ValueError``."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(s|m|min|h|)\s*", text)
    seconds = float(match[1]) * {"s": 1, "h": 3600}.get(match[2], 60) if match else 0.0
    if not 0 < seconds < 1e9:
        raise ValueError(f"a time limit of {text!r}: write it as 90s, 30m or 2h")
    return seconds
