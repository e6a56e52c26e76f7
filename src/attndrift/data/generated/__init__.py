"""Pictures drawn on demand, a function of (set, seed, index) and of nothing else."""

from __future__ import annotations

from typing import Final

from attndrift.data.generated.canvas import DrawnSet
from attndrift.data.generated.critters import CRITTERS
from attndrift.data.generated.objects import OBJECTS
from attndrift.data.generated.tiles import TILES

DRAWN: Final[dict[str, DrawnSet]] = {drawn.name: drawn for drawn in (OBJECTS, TILES, CRITTERS)}
"""The drawn sets by name."""

__all__ = ["DRAWN", "DrawnSet"]
