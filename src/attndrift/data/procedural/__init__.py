"""Pictures drawn on demand, a function of (set, seed, index) and of nothing else."""

from __future__ import annotations

from typing import Final

from attndrift.data.procedural.canvas import DrawnSet
from attndrift.data.procedural.objects import OBJECTS

DRAWN: Final[dict[str, DrawnSet]] = {drawn.name: drawn for drawn in (OBJECTS,)}
"""The drawn sets by name."""

__all__ = ["DRAWN", "DrawnSet"]
