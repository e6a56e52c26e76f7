"""A head: the cosine to the text features of the classes, which stay as they are, at a temperature of one's own."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from attndrift.methods.registry import Head, head
from attndrift.own_settings import OwnSettings, setting


class SharpCosineSettings(OwnSettings):
    """The temperature."""

    cosine_scale: Annotated[float, Field(gt=0)] = setting(100.0, "factor of the cosines", label="scale=")


@head
class SharpCosine(Head):
    """Normalised text features, frozen."""

    name, label = "sharp_cosine", "sharp cosine head"
    source = "Radford et al. 2021"
    starts = "the text features of the classes, frozen"
    needs_text, trained = True, False
    Settings = SharpCosineSettings

    def make(self, backbone: Any, n_classes: int, seed: int, settings: Any, text_features: Any) -> Any:
        """A linear layer behind a normalisation."""
        import torch

        class CosineLayer(torch.nn.Linear):
            def forward(self, embeddings: Any) -> Any:
                return super().forward(torch.nn.functional.normalize(embeddings, dim=-1))

        layer = CosineLayer(text_features.shape[1], n_classes, bias=False)
        with torch.no_grad():
            layer.weight.copy_(text_features * settings.cosine_scale)
        return layer
