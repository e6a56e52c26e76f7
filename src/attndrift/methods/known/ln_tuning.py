"""LN tuning: the layer norms alone."""

from __future__ import annotations

from typing import Any

from attndrift.methods.registry import Method, method


@method
class NormTuning(Method):
    """Scales and shifts of every layer norm of the visual encoder and the classifier are trained; the projection on request."""

    name, label, color, order = "ln_tuning", "LN tuning", "#882255", 2.2
    source = "Zhao et al. 2024"
    trains = "the layer norms of the visual encoder, and the classifier"
    projection = False
    freezes_blocks = True
    cost = 2.0

    def apply(self, backbone: Any, settings: Any, seed: int) -> Any:
        """Mark the norms: modules called so, of any library."""
        norms = [part for part in backbone.tower.modules() if "Norm" in type(part).__name__]
        if not norms:
            raise ValueError(f"method ln_tuning: {type(backbone.model).__name__} has no layer norms in this tower")
        for norm in norms:
            norm.requires_grad_(True)
        return backbone.model
