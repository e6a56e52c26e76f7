"""The pretrained model, a row of its own."""

from __future__ import annotations

from typing import Any

from attndrift.methods.registry import Method, method


@method
class Pretrained(Method):
    """Nothing is trained: the pretrained model."""

    name, label, color, order = "none", "pretrained", "#000000", 9
    source = "the model as it was published"
    trains = "nothing"
    projection = None
    adapts = False
    moves_encoder = False
    keeps_activations = False
    cost, work = 0.0, 0.0

    def apply(self, backbone: Any, settings: Any, seed: int) -> Any:
        """Train nothing."""
        return backbone.model
