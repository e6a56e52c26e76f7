"""Embedding distillation: image embeddings held to the pretrained ones, in three forms."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import normalize

from attndrift.losses.teacher_loss import TeacherLoss
from attndrift.losses.views import EmbeddingView


def embedding_mse(current: Tensor, reference: Tensor) -> Tensor:
    """Squared difference of embeddings (images, dimensions), mean over images and dimensions: a scalar >= 0."""
    return (current.float() - reference.to(current.device).float()).square().mean()


def embedding_cosine(current: Tensor, reference: Tensor) -> Tensor:
    """One minus the cosine of embeddings (images, dimensions), mean over images: a scalar in [0, 2]."""
    # Half the squared distance of the directions is the same number, exactly 0 for equal ones.
    difference = normalize(current.float(), dim=-1) - normalize(reference.to(current.device).float(), dim=-1)
    return 0.5 * difference.square().sum(-1).mean()


def embedding_similarity(current: Tensor, reference: Tensor) -> Tensor:
    """Squared difference of the cosines between all pairs of images, mean over the pairs: a scalar in [0, 4].

    ``current`` and ``reference``: embeddings (images, dimensions) of one batch; the dimensions may differ.
    """
    now, before = normalize(current.float(), dim=-1), normalize(reference.to(current.device).float(), dim=-1)
    return (now @ now.T - before @ before.T).square().mean()


class EmbeddingMSE(TeacherLoss):
    """Embedding distillation by the squared difference; arguments are those of :class:`~attndrift.losses.teacher_loss.TeacherLoss`."""

    name, sees = "embedding_mse", "the embedding"
    view = EmbeddingView()

    def _compare(self, current: list[Tensor], reference: Sequence[Tensor] | Tensor) -> Tensor:
        return embedding_mse(current[0], reference[0])


class EmbeddingCosine(TeacherLoss):
    """Embedding distillation by the cosine; arguments are those of :class:`~attndrift.losses.teacher_loss.TeacherLoss`."""

    name, sees = "embedding_cosine", "the embedding"
    view = EmbeddingView()

    def _compare(self, current: list[Tensor], reference: Sequence[Tensor] | Tensor) -> Tensor:
        return embedding_cosine(current[0], reference[0])


class EmbeddingSimilarity(TeacherLoss):
    """Embedding distillation by the similarity matrix (Tung and Mori 2019) of the batch.

    In several processes, or with accumulated gradients, the pairs are those of each one's images. Arguments are those of
    :class:`~attndrift.losses.teacher_loss.TeacherLoss`.
    """

    name, sees = "embedding_similarity", "the embedding"
    view = EmbeddingView()

    def _compare(self, current: list[Tensor], reference: Sequence[Tensor] | Tensor) -> Tensor:
        return embedding_similarity(current[0], reference[0])
