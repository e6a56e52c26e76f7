"""Seeing attention, mostly the class token's, inside a model, without full maps and without switching anything."""

from attndrift.observing.errors import ObservationError
from attndrift.observing.families import FAMILIES, TEXT_FAMILIES, Family, VisionTower, find_vision_tower
from attndrift.observing.observation import Observation
from attndrift.observing.observer import observe
from attndrift.observing.rows import FullMaps

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
