"""DoRA: LoRA on the direction of a weight, and its magnitude."""

from __future__ import annotations

from typing import Any

from attndrift.methods.known.lora import LoRA
from attndrift.methods.registry import method


@method
class DoRA(LoRA):
    """Low-rank adapters of directions, and a magnitude for each output."""

    name, label, color, order = "dora", "DoRA", "#56B4E9", 1.1
    source = "Liu et al. 2024"
    trains = "low-rank adapters of the weights' directions, their magnitudes, the projection and the classifier"
    cost, work = 2.6, 1.3

    def variant(self) -> dict[str, Any]:
        """Directions and magnitudes."""
        return {"use_dora": True}

    def is_of(self, layer: Any, adapter: str) -> bool:
        """Whether it has magnitudes."""
        return bool(layer.use_dora.get(adapter))
