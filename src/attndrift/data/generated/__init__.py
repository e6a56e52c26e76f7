"""Pictures generated on demand, a function of (set, seed, index) and of nothing else."""

from __future__ import annotations

from typing import Final

from attndrift.data.generated.canvas import GeneratedSet
from attndrift.data.generated.critters import CRITTERS
from attndrift.data.generated.objects import OBJECTS
from attndrift.data.generated.tiles import TILES

GENERATED: Final[dict[str, GeneratedSet]] = {generated.name: generated for generated in (OBJECTS, TILES, CRITTERS)}
"""The generated sets by name."""

__all__ = ["GENERATED", "GeneratedSet"]
