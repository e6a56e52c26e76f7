"""rsLoRA: LoRA with a scale that stays the same as the rank grows."""

from __future__ import annotations

from typing import Any

from attndrift.methods.known.lora import LoRA, LoRASettings
from attndrift.methods.registry import method


class RankStabilisedSettings(LoRASettings):
    """As LoRA's, with the alpha of the paper."""

    def usual_alpha(self) -> float:
        """Whatever the rank."""
        return 16.0


@method
class RankStabilisedLoRA(LoRA):
    """Low-rank adapters whose scale is alpha / sqrt(rank)."""

    name, label, color, order = "rslora", "rsLoRA", "#004B7A", 1.2
    source = "Kalajdzievski 2023"
    trains = "low-rank adapters scaled by alpha / sqrt(rank), the projection and the classifier"
    Settings = RankStabilisedSettings

    def variant(self) -> dict[str, Any]:
        """The other scale."""
        return {"use_rslora": True}

    def is_of(self, layer: Any, adapter: str) -> bool:
        """Whether it has that scale."""
        return bool(layer.use_rslora.get(adapter)) and not layer.use_dora.get(adapter)
