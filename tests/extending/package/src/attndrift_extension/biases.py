"""A method: the biases of the last blocks are trained."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from attndrift.methods.registry import Method, method
from attndrift.own_settings import OwnSettings, setting


class BiasSettings(OwnSettings):
    """Which biases."""

    bias_blocks: Annotated[int, Field(ge=1)] = setting(
        2, "blocks whose biases are trained, from the output", label="blocks=", sweep="Blocks with trained biases"
    )
    bias_norms: bool = setting(True, "whether the layer norms of these blocks are trained too")


@method
class Biases(Method):
    """The biases of the last blocks, and the classifier, are trained."""

    name, label, color, order = "biases", "last biases", "#882255", 5
    source = "Ben Zaken et al. 2022"
    trains = "the biases of the last blocks, and the classifier"
    Settings = BiasSettings
    projection = False
    cost = 2.0

    def apply(self, backbone: Any, settings: Any, seed: int) -> Any:
        """Mark the biases; everything else stays frozen."""
        for block in backbone.blocks[-settings.bias_blocks :]:
            for name, parameter in block.named_parameters():
                norm = settings.bias_norms and "layer_norm" in name
                parameter.requires_grad_(name.endswith("bias") or norm)
        return backbone.model
