"""Seeing the class token's attention inside a model, without full maps and without switching anything."""

from attndrift.observe.errors import ObservationError
from attndrift.observe.families import FAMILIES, Family, VisionTower, find_vision_tower
from attndrift.observe.observation import Observation
from attndrift.observe.observer import observe
from attndrift.observe.rows import FullMaps

__all__ = [
    "FAMILIES",
    "Family",
    "FullMaps",
    "Observation",
    "ObservationError",
    "VisionTower",
    "find_vision_tower",
    "observe",
]
