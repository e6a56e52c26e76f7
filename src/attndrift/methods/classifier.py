"""An image encoder, its projection, and a linear classifier on the image embedding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import ImageClassifierOutput

from attndrift.methods.live_text import LiveTextClassifier
from attndrift.models.backbone import Backbone, backbone_of


def unwrap(model: nn.Module) -> Any:
    """The model inside a ``peft`` model, adapters in place; any other model as it is."""
    inner: Any = model
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


class ImageClassifier(nn.Module):
    """Backbone -> image embedding (behind its projection, where it has one; not normalised) -> linear classifier.

    Attributes:
        model: the model of a registered backbone, or the ``peft`` model around it.
        classifier: ``Linear(projection, classes)`` with bias, a :class:`CosineClassifier`, or a
            :class:`~attndrift.methods.live_text.LiveTextClassifier`.
        settings: how the backbone was adapted, an :class:`~attndrift.methods.settings.AdaptationSettings`.
        start: what rebuilds weights that the method has decomposed, by name; empty where it decomposes none.
    """

    def __init__(
        self,
        model: nn.Module,
        classifier: nn.Linear | LiveTextClassifier,
        settings: object = None,
        start: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.classifier = classifier
        self.settings = settings
        self.start = dict(start or {})

    @property
    def backbone(self) -> Any:
        """The model itself, adapters inside."""
        return unwrap(self.model)

    @property
    def view(self) -> Backbone:
        """What studies see of the backbone."""
        return backbone_of(self.backbone)

    @property
    def visual(self) -> nn.Module:
        """The vision transformer, for :func:`attndrift.observe`."""
        return self.view.tower

    def embed(self, pixel_values: Tensor) -> Tensor:
        """Image embeddings of the live encoder through its live projection: (images, dimensions), not normalised."""
        return self.view.embed(pixel_values)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> ImageClassifierOutput:
        """Logits (images, classes), and the loss where ``labels`` (images,) are given: cross-entropy, or that of a live head."""
        embeddings = self.embed(pixel_values)
        if isinstance(self.classifier, LiveTextClassifier):
            return ImageClassifierOutput(**self.classifier(embeddings, self.view, labels)._asdict())
        logits = self.classifier(embeddings)
        loss = None if labels is None else nn.functional.cross_entropy(logits.float(), labels)
        return ImageClassifierOutput(loss=loss, logits=logits)

    @property
    def live_text(self) -> LiveTextClassifier | None:
        """The classifier, where it encodes class prompts at every pass."""
        return self.classifier if isinstance(self.classifier, LiveTextClassifier) else None

    def texts_encoded_once(self) -> AbstractContextManager[None]:
        """Around an evaluation, within which nothing is trained: class prompts are encoded once, where they are at all."""
        live, text = self.live_text, self.view.text
        return nullcontext() if live is None or text is None else live.encoded_once(text)


class CosineClassifier(nn.Linear):
    """The zero-shot classifier: cosines to fixed features of the classes, times the inverse temperature; no bias.

    ``weight`` holds the normalised text features times the inverse temperature, (classes, dimensions).
    """

    @classmethod
    def of_text(cls, text_features: Tensor, logit_scale: Tensor) -> CosineClassifier:
        """From normalised text features (classes, dimensions) and the logarithm of the inverse temperature.

        A logit bias is left out: it is the same for every class, so no prediction and no cross-entropy depends on it.
        """
        device = logit_scale.device if logit_scale.is_meta else torch.device("cpu")  # parameters are counted
        layer = cls(text_features.shape[1], text_features.shape[0], bias=False, device=device)
        with torch.no_grad():
            layer.weight.copy_(text_features.to(device) * logit_scale.to(device).exp())
        return layer

    def forward(self, embeddings: Tensor) -> Tensor:
        """Embeddings (images, dimensions), of any norm, to logits (images, classes)."""
        return super().forward(nn.functional.normalize(embeddings, dim=-1))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw on the CPU from ``seed`` alone; the global generator is put back afterwards."""
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also seed the accelerators, which are not put back.
        torch.default_generator.manual_seed(seed)
        yield


def new_classifier(width: int, classes: int, seed: int) -> nn.Linear:
    """A linear layer with its default initialisation, from ``seed`` alone: the global generator is not touched."""
    with seeded(seed):
        return nn.Linear(width, classes)


def classifier_from_text(text_features: Tensor, logit_scale: Tensor, logit_bias: Tensor | None = None) -> nn.Linear:
    """A classifier that starts as the zero-shot one, up to the norm of the image embedding.

    Args:
        text_features: (classes, dimensions), normalised.
        logit_scale: the logarithm of the inverse temperature.
        logit_bias: of a model that was pretrained with a sigmoid loss.
    """
    layer = nn.Linear(text_features.shape[1], text_features.shape[0])
    with torch.no_grad():
        layer.weight.copy_(text_features * logit_scale.exp().to(text_features))
        layer.bias.fill_(0.0 if logit_bias is None else float(logit_bias))
    return layer
