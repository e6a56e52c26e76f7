"""BitFit: the biases alone."""

from __future__ import annotations

import re
from typing import Any

from attndrift.methods.registry import Method, method


@method
class BitFit(Method):
    """Every bias of the visual encoder and the classifier are trained; the projection on request."""

    name, label, color, order = "bitfit", "BitFit", "#661100", 2.1
    source = "Ben Zaken et al. 2022"
    trains = "the biases of the visual encoder, and the classifier"
    projection = False
    freezes_blocks = True
    cost = 2.0

    def apply(self, backbone: Any, settings: Any, seed: int) -> Any:
        """Mark the biases."""
        for name, parameter in backbone.tower.named_parameters():
            # `in_proj_bias` of torch's attention and `q_bias` of timm's are biases too.
            if re.fullmatch(r"(.*_)?bias", name.rpartition(".")[2]):
                parameter.requires_grad_(True)
        return backbone.model
