"""Seeing attention, mostly the class token's, inside a model, without full maps and without switching anything."""

from attndrift.attention.errors import ObservationError
from attndrift.attention.families import FAMILIES, TEXT_FAMILIES, VisionTower, find_vision_tower
from attndrift.attention.families.family import Family
from attndrift.attention.observation import Observation
from attndrift.attention.observer import observe
from attndrift.attention.rows import FullMaps

__all__ = [
    "FAMILIES",
    "TEXT_FAMILIES",
    "Family",
    "FullMaps",
    "Observation",
    "ObservationError",
    "VisionTower",
    "find_vision_tower",
    "observe",
]
