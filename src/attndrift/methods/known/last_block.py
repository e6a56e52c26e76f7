"""Fine-tuning of the last block."""

from __future__ import annotations

from typing import Any

from attndrift.methods.registry import Method, method


@method
class LastBlock(Method):
    """The last block, the final layer norm and the classifier are trained; the projection on request."""

    name, label, color, order = "last_block", "last block", "#009E73", 2
    source = "partial fine-tuning; Yosinski et al. 2014"
    trains = "the last block, the final layer norm and the classifier"
    projection = False
    keeps_activations = False
    cost, work = 1.2, 0.6

    def apply(self, backbone: Any, settings: Any, seed: int) -> Any:
        """Train the last block and the layer norm behind it."""
        backbone.blocks[-1].requires_grad_(True)
        if backbone.final_norm is not None:
            backbone.final_norm.requires_grad_(True)
        return backbone.model

    def least_trained(self, *, embeddings: int, block: int, blocks: int) -> int:
        """One block."""
        return block
