"""A frozen classifier: the cosine to the text features of the classes, times the pretrained temperature."""

from __future__ import annotations

from typing import Any

from attndrift.methods.registry import Head, head


@head
class Cosine(Head):
    """The zero-shot classifier itself, frozen: what FusionBench and CLIP-LoRA train behind."""

    name, label, order = "cosine", "cosine head", 2
    source = "Radford et al. 2021; the head of FusionBench and CLIP-LoRA"
    starts = "the normalised text features of the classes and the pretrained temperature, all frozen"
    needs_text, trained = True, False

    def make(self, backbone: Any, n_classes: int, seed: int, settings: Any, text_features: Any) -> Any:
        """The zero-shot classifier, the norm of the image embedding taken away."""
        # Imported here: the facts of a head are read without torch.
        from attndrift.methods.classifier import CosineClassifier

        return CosineClassifier.of_text(text_features, backbone.logit_scale)
