"""Zero-shot logits of image embeddings: what the losses on logits compare."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import normalize


class ZeroShotLogits:
    """Cosines of image embeddings to fixed text features, times the pretrained inverse temperature.

    Args:
        logit_scale: its logarithm, a scalar; None is a model without text tower, which raises ValueError.
        text_features: (texts, dimensions), normalised or not.
    """

    def __init__(self, logit_scale: Tensor | None, text_features: Tensor) -> None:
        if logit_scale is None:
            raise ValueError(
                "the model has no text tower, and zero-shot logits need one; use ldifs or embedding_cosine"
            )
        if text_features.ndim != 2 or len(text_features) == 0:
            shape = tuple(text_features.shape)
            raise ValueError(f"text_features have the shape {shape}; expected (texts, dimensions)")
        self.text_features = normalize(text_features.detach().float().to(logit_scale.device), dim=-1)
        self.scale = logit_scale.detach().float().exp()

    def __call__(self, embeddings: Tensor) -> Tensor:
        """(images, dimensions), not normalised, to (images, texts), in float32."""
        if embeddings.shape[-1] != self.text_features.shape[-1]:
            raise ValueError(
                f"text_features have {self.text_features.shape[-1]} dimensions, and the image embeddings "
                f"{embeddings.shape[-1]}; take those of the same model"
            )
        return self.scale * normalize(embeddings.float(), dim=-1) @ self.text_features.T
