"""A preservation loss: L1-SP, the absolute distance of the image tower's weights from the pretrained ones."""

from __future__ import annotations

from typing import Any

from attndrift.attention.families import find_vision_tower
from attndrift.losses.base import Batch, PreservationLoss
from attndrift.losses.registry import LOSSES, Loss
from attndrift.own_settings import OwnSettings, setting


class L1SPSettings(OwnSettings):
    """Which parameters."""

    l1_sp_norms: bool = setting(True, "whether vectors (biases, layer norms) are held too", label="norms ")


class L1SP(PreservationLoss):
    """``weight`` times the absolute distance of the image tower's trained weights from where they started."""

    name = "l1_sp"

    def __init__(self, model: Any, weight: float, *, l1_sp_norms: bool = True) -> None:
        super().__init__(model, weight)
        # The tower alone: a classifier has no pretrained weights, and a text tower that no step trains must get no gradient.
        live = [p for p in find_vision_tower(self.model).module.parameters() if p.requires_grad]
        self._pairs = [(p, p.detach().clone()) for p in live if l1_sp_norms or p.dim() > 1]

    def value(self, batch: Batch) -> Any:
        """The distance without the weight; ``batch`` tells the images, which this loss does not need."""
        return sum((live - start).abs().sum() for live, start in self._pairs)


LOSSES.register(
    Loss(
        name="l1_sp",
        make=L1SP,
        label="L1-SP",
        short_label="L1-SP",
        meaning="absolute distance of the image tower's weights from the pretrained ones",
        source="Li et al. 2018",
        Settings=L1SPSettings,
    )
)
