"""A linear classifier that starts as the zero-shot one."""

from __future__ import annotations

from typing import Any

from attndrift.methods.registry import Head, head


@head
class Text(Head):
    """Linear, from the text features of the classes, and trained."""

    name, label, order = "text", "text head", 1
    source = "Wortsman et al. 2022"
    starts = "the text features of the classes, times the pretrained temperature"
    needs_text = True

    def make(self, backbone: Any, n_classes: int, seed: int, settings: Any, text_features: Any) -> Any:
        """The zero-shot classifier, up to the norm of the image embedding."""
        # Imported here: the facts of a head are read without torch.
        from attndrift.methods.classifier import classifier_from_text, new_classifier

        if backbone.logit_scale.is_meta:  # parameters are counted: there are no values to start from
            return new_classifier(backbone.dimensions, n_classes, seed)
        return classifier_from_text(text_features.cpu(), backbone.logit_scale.cpu(), backbone.logit_bias)
