"""The linear probe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attndrift.methods.registry import Method, method


@method
class LinearProbe(Method):
    """The classifier alone is trained."""

    name, label, color, order = "linear_probe", "linear probe", "#CC79A7", 3
    source = "Alain and Bengio 2016"
    trains = "the classifier alone"
    projection = None
    moves_encoder = False
    keeps_activations = False
    cost, work = 1.0, 0.6

    def apply(self, backbone: Any, settings: Any, seed: int) -> Any:
        """Train nothing of the backbone."""
        return backbone.model

    def recognise(self, tower: Any, blocks: Sequence[Sequence[bool]]) -> dict[str, Any] | None:
        """No block is trained."""
        return None if any(any(block) for block in blocks) else {}
