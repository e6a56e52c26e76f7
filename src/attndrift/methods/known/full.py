"""Full fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attndrift.methods.registry import Method, method


@method
class Full(Method):
    """Visual encoder, projection and classifier are trained, the first ``freeze_layers`` blocks excepted."""

    name, label, color, order = "full", "full", "#D55E00", 0
    source = "the usual fine-tuning; Radford et al. 2021"
    trains = "the visual encoder, the projection and the classifier"
    freezes_blocks = True
    cost = 3.0

    def apply(self, backbone: Any, settings: Any, seed: int) -> Any:
        """Train the whole visual encoder."""
        backbone.tower.requires_grad_(True)
        return backbone.model

    def least_trained(self, *, embeddings: int, block: int, blocks: int) -> int:
        """The embeddings and every block."""
        return embeddings + blocks * block

    def recognise(self, tower: Any, blocks: Sequence[Sequence[bool]]) -> dict[str, Any] | None:
        """All blocks from the first one that is trained at all."""
        frozen = next((place for place, block in enumerate(blocks) if any(block)), None)
        if frozen is None or not all(all(block) for block in blocks[frozen:]):
            return None
        return {"freeze_layers": frozen}
