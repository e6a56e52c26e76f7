"""Classifiers of a text tower that is trained: class prompts are encoded anew at every pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid, normalize

from attndrift.metrics.attention import wide_dtype
from attndrift.models.backbone import Backbone


class ClassLogits(NamedTuple):
    """Logits (images, classes), and the loss where labels were given."""

    logits: Tensor
    loss: Tensor | None


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor | float) -> Tensor:
    """CLIP's loss of a batch: cross-entropy of each image over all texts, and of each text over all images, halved.

    The pair of a row is its own text alone, as in CLIP and FLYP: the texts of other images of its class count as negatives.
    Where equal classes have equal texts, this is the loss whose targets are shared by all of the class.

    Args:
        images, texts: embeddings (images, dimensions), of any norm; row i of one belongs to row i of the other.
        scale: the inverse temperature.
    """
    logits = scale * normalize(images, dim=-1) @ normalize(texts, dim=-1).T
    logits = logits.to(wide_dtype(logits))
    own = torch.arange(len(images), device=images.device)
    return 0.5 * (cross_entropy(logits, own) + cross_entropy(logits.T, own))


def sigmoid_loss(images: Tensor, texts: Tensor, scale: Tensor | float, bias: Tensor | float, same: Tensor) -> Tensor:
    """SigLIP's loss of a batch: every image and text is a question of its own, whether they belong together.

    Args:
        images, texts: embeddings (images, dimensions) and (texts, dimensions), of any norm.
        scale, bias: the inverse temperature, and what is added to the logits.
        same: (images, texts), true where a text is one of the image's class. In a batch with one class twice, its texts are
            positives of both images: they may be the same text, which cannot be right and wrong.
    """
    logits = scale * normalize(images, dim=-1) @ normalize(texts, dim=-1).T + bias
    logits = logits.to(wide_dtype(logits))
    return -logsigmoid(torch.where(same, logits, -logits)).sum(-1).mean()


class LiveTextClassifier(nn.Module):
    """The zero-shot classifier of the text tower as it is: it has no parameters of its own.

    Args:
        tokens: token ids of the class prompts, int64 (classes, templates, tokens). Features are means over templates.
        dimensions: of the embeddings.
        contrastive: in training the loss is that of the pretraining over the batch, each image beside a prompt of its class
            in a template that is drawn from the global generator: :func:`contrastive_loss`, or :func:`sigmoid_loss` for a
            model with a logit bias. Otherwise it is cross-entropy over all classes.
    """

    tokens: Tensor

    def __init__(self, tokens: Tensor, dimensions: int, *, contrastive: bool = False) -> None:
        super().__init__()
        self.register_buffer("tokens", tokens)
        self.in_features, self.out_features = dimensions, len(tokens)
        self.contrastive = contrastive
        self._kept: Tensor | None = None

    def prompts(self, text: Backbone) -> Tensor:
        """Embeddings of the class prompts through the tower ``text``: (classes, templates, dimensions), normalised."""
        return normalize(text.embed(self.tokens.flatten(0, 1)), dim=-1).unflatten(0, self.tokens.shape[:2])

    def features(self, text: Backbone) -> Tensor:
        """Features of the classes: (classes, dimensions), normalised."""
        return normalize(self.prompts(text).mean(1), dim=-1)

    @contextmanager
    def encoded_once(self, text: Backbone) -> Iterator[None]:
        """Within this the tower does not change: the prompts are encoded here, and not at every pass."""
        with torch.no_grad():
            self._kept = self.features(text)
        try:
            yield
        finally:
            self._kept = None

    def forward(self, embeddings: Tensor, backbone: Backbone, labels: Tensor | None = None) -> ClassLogits:
        """Logits of image embeddings (images, dimensions), of any norm, and the loss of ``labels`` (images,)."""
        text, scale = backbone.text, backbone.temperature
        assert text is not None
        assert scale is not None
        bias = backbone.logit_bias
        if self.contrastive and self.training and labels is not None:
            return self._contrast(embeddings, text, scale.exp(), bias, labels)
        features = self.features(text) if self._kept is None else self._kept
        logits = scale.exp() * normalize(embeddings, dim=-1) @ features.T
        logits = logits if bias is None else logits + bias
        return ClassLogits(logits, None if labels is None else cross_entropy(logits.float(), labels))

    def _contrast(
        self, embeddings: Tensor, text: Backbone, scale: Tensor, bias: Tensor | None, labels: Tensor
    ) -> ClassLogits:
        classes, templates, _ = self.tokens.shape
        drawn = (
            torch.randint(templates, labels.shape, device=labels.device) if templates > 1 else torch.zeros_like(labels)
        )
        if classes * templates <= len(labels):  # all of them are fewer texts than those of the batch
            texts = self.prompts(text)[labels, drawn]
        else:
            texts = text.embed(self.tokens[labels, drawn])
        # How alike an image is to a class: to the nearest of the class's texts in the batch, as far as it holds any.
        with torch.no_grad():
            alike = scale * normalize(embeddings, dim=-1) @ normalize(texts, dim=-1).T
            logits = alike.new_full((len(labels), classes), -torch.inf)
            logits = logits.scatter_reduce(1, labels.expand(len(labels), -1), alike, "amax")
        if bias is None:
            return ClassLogits(logits, contrastive_loss(embeddings, texts, scale))
        same = labels[:, None] == labels[None, :]
        return ClassLogits(logits + bias, sigmoid_loss(embeddings, texts, scale, bias, same))
