"""The zero-shot classifier of the text tower as it is at every step, under cross-entropy."""

from __future__ import annotations

from typing import Any, ClassVar

from attndrift.methods.registry import Head, head


@head
class LiveText(Head):
    """Class prompts are encoded anew at every pass, with gradients where the text tower is trained; no parameters of its own."""

    name, label, order = "live_text", "live text head", 4
    source = "cross-entropy baseline of FLYP (Goyal et al. 2023); CLIP-LoRA (Zanella and Ben Ayed 2024)"
    starts = "the class prompts through the text tower as it is, with its own temperature"
    trained, live = False, True
    contrastive: ClassVar[bool] = False

    def make(self, backbone: Any, n_classes: int, seed: int, settings: Any, text_features: Any) -> Any:
        """Of the token ids of the class prompts."""
        # Imported here: the facts of a head are read without torch.
        from attndrift.methods.live_text import LiveTextClassifier

        return LiveTextClassifier(text_features, backbone.dimensions, contrastive=self.contrastive)
