"""A linear classifier from its default initialisation."""

from __future__ import annotations

from typing import Any

from attndrift.methods.registry import Head, head


@head
class Trained(Head):
    """Linear, from its default initialisation, and trained."""

    name, label, order = "trained", "trained head", 0
    source = "the usual classifier"
    starts = "the default initialisation of a linear layer"

    def make(self, backbone: Any, n_classes: int, seed: int, settings: Any, text_features: Any) -> Any:
        """A linear layer from ``seed`` alone."""
        # Imported here: the facts of a head are read without torch.
        from attndrift.methods.classifier import new_classifier

        return new_classifier(backbone.dimensions, n_classes, seed)
