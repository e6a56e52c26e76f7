"""A preservation loss: L2-SP, half the squared distance of the image tower's weights from the pretrained ones."""

from __future__ import annotations

from typing import Any

from attndrift.attention.families import find_vision_tower
from attndrift.losses.base import Batch, PreservationLoss
from attndrift.losses.registry import LOSSES, Loss
from attndrift.own_settings import OwnSettings, setting


class L2SPSettings(OwnSettings):
    """Which parameters."""

    l2_sp_norms: bool = setting(True, "whether vectors (biases, layer norms) are held too", label="norms ")


class L2SP(PreservationLoss):
    """``weight`` times half the squared distance of the image tower's trained weights from where they started."""

    name = "l2_sp"

    def __init__(self, model: Any, weight: float, *, l2_sp_norms: bool = True) -> None:
        super().__init__(model, weight)
        # The tower alone: a classifier has no pretrained weights, and a text tower that no step trains must get no gradient.
        live = [p for p in find_vision_tower(self.model).module.parameters() if p.requires_grad]
        self._pairs = [(p, p.detach().clone()) for p in live if l2_sp_norms or p.dim() > 1]

    def value(self, batch: Batch) -> Any:
        """The squared distance, halved, without the weight; ``batch`` tells the images, which this loss does not need."""
        return 0.5 * sum((live - start).square().sum() for live, start in self._pairs)


LOSSES.register(
    Loss(
        name="l2_sp",
        make=L2SP,
        label="L2-SP",
        short_label="L2-SP",
        meaning="half the squared distance of the image tower's weights from the pretrained ones",
        source="Li et al. 2018",
        Settings=L2SPSettings,
    )
)
