"""Nothing of a tower is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attndrift.methods.registry import FROZEN, Method, method


@method
class Frozen(Method):
    """The image tower stays as it is, beside a text tower or a projection that is trained; so does a text tower of this name."""

    name, label, color, order = FROZEN, "frozen image tower", "#666666", 3.1
    source = "locked-image tuning; Zhai et al. 2022"
    trains = "nothing of the image tower: the text tower or the projections, as the run says"
    projection = False
    moves_encoder = False
    keeps_activations = False
    cost, work = 1.0, 0.6

    def apply(self, backbone: Any, settings: Any, seed: int) -> Any:
        """Train nothing of the tower."""
        return backbone.model

    def recognise(self, tower: Any, blocks: Sequence[Sequence[bool]]) -> dict[str, Any] | None:
        """A linear probe looks the same from the image tower."""
        return None
