"""Zero-shot transfer: always through the live, adapted image encoder and its projection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from transformers import CLIPModel

from attndrift.monitor import evaluation_mode, image_embeddings

DEFAULT_TEMPLATES = ("a photo of a {class}.",)


class InertModelError(RuntimeError):
    """A model whose weights have drifted and which embeds images exactly as the pretrained one does."""


class Images(Protocol):
    """Normalised images by position, such as a :class:`~attndrift.data.PixelStore`."""

    def fetch(self, positions: Any) -> Tensor:
        """Images (len(positions), 3, height, width), float32."""


@dataclass(frozen=True)
class TextFeatures:
    """Features of class names through the frozen text encoder.

    Attributes:
        features: (classes, dimensions), normalised; the mean over templates, normalised again.
        class_names, templates: what was encoded. ``{class}`` in a template stands for the name.
    """

    features: Tensor
    class_names: tuple[str, ...]
    templates: tuple[str, ...]

    @classmethod
    def of(
        cls,
        model: CLIPModel,
        tokenizer: Any,
        class_names: Sequence[str],
        templates: Sequence[str] = DEFAULT_TEMPLATES,
    ) -> TextFeatures:
        """Encode every class name in every template. Raises ``ValueError`` for a template without ``{class}``."""
        for template in templates:
            if template.count("{class}") != 1:
                raise ValueError(f"templates: {template!r} must hold {{class}} exactly once")
        if not templates or not class_names:
            raise ValueError("templates and class_names must not be empty")
        device = next(model.parameters()).device
        limit = model.config.text_config.max_position_embeddings
        per_template = []
        with evaluation_mode(model):
            for template in templates:
                texts = [template.replace("{class}", name.replace("_", " ")) for name in class_names]
                tokens = tokenizer(texts, padding=True, truncation=True, max_length=limit, return_tensors="pt")
                inputs = {key: tokens[key].to(device) for key in ("input_ids", "attention_mask")}
                output = model.get_text_features(**inputs)
                pooled = output if isinstance(output, Tensor) else output.pooler_output
                per_template.append(nn.functional.normalize(pooled.float(), dim=-1))
        mean = nn.functional.normalize(torch.stack(per_template).mean(0), dim=-1)
        return cls(mean.cpu(), tuple(class_names), tuple(templates))


@dataclass(frozen=True)
class ZeroShotResult:
    """A zero-shot accuracy, and what it is an accuracy of.

    Attributes:
        accuracy: top-1, 0..1.
        predictions, correct: (images,).
        margins: (images,), cosine of the best class minus that of the second best.
        moved: how far the embeddings are from the pretrained ones, as the mean and the largest L2 distance
            over the mean pretrained norm; None where no pretrained embeddings were given.
        evidence: class names, templates, dataset, split and preprocessing.
    """

    accuracy: float
    predictions: NDArray[np.int64]
    correct: NDArray[np.bool_]
    margins: NDArray[np.float32]
    moved: tuple[float, float] | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """Number of images."""
        return len(self.predictions)

    def to_json(self) -> dict[str, Any]:
        """Plain values for a record, without the per-image arrays."""
        mean, largest = self.moved if self.moved is not None else (None, None)
        return {
            "accuracy": self.accuracy,
            "n": self.n,
            "embeddings_moved_mean": mean,
            "embeddings_moved_max": largest,
            **self.evidence,
        }


def evaluate_zero_shot(
    model: nn.Module,
    images: Images,
    labels: ArrayLike,
    class_names: Sequence[str] | None = None,
    *,
    text_features: TextFeatures | None = None,
    tokenizer: Any = None,
    templates: Sequence[str] = DEFAULT_TEMPLATES,
    batch_size: int = 200,
    pretrained_embeddings: Tensor | None = None,
    weight_drift: float | None = None,
    **evidence: Any,
) -> ZeroShotResult:
    """Top-1 accuracy of ``model`` on images that it was not fine-tuned on, by cosine with class names.

    Args:
        model: a :class:`~attndrift.models.CLIPClassifier`, or any CLIP model; its own live image encoder and
            projection embed the images.
        images: normalised images by position; position i belongs to ``labels[i]``.
        labels: (images,), indices into ``class_names``.
        text_features: cached features; otherwise ``class_names`` are encoded with ``tokenizer`` in ``templates``.
        pretrained_embeddings: (images, dimensions) of the pretrained model, for the first images.
        weight_drift: how far the weights have moved. Together with ``pretrained_embeddings`` it guards
            against evaluating a model whose adapters do not take part.
        evidence: recorded with the accuracy (dataset, split, preprocessing).

    Raises:
        InertModelError: weights have drifted, and the embeddings are bit for bit the pretrained ones.
        ValueError: labels outside the class names, no images, or neither text features nor a tokenizer.
    """
    wanted = np.asarray(labels, dtype=np.int64)
    text = text_features
    if text is None:
        if tokenizer is None or class_names is None:
            raise ValueError("give text_features, or class_names and a tokenizer to make them")
        backbone: Any = getattr(model, "backbone", model)
        text = TextFeatures.of(backbone, tokenizer, class_names, templates)
    if len(wanted) == 0:
        raise ValueError("labels: there are no images to evaluate")
    if wanted.min() < 0 or wanted.max() >= len(text.class_names):
        raise ValueError(f"labels: {wanted.max()} is outside the {len(text.class_names)} class names")
    device = next(model.parameters()).device
    features = text.features.to(device)
    predictions, margins, compared = [], [], []
    with evaluation_mode(model):
        for start in range(0, len(wanted), batch_size):
            positions = range(start, min(start + batch_size, len(wanted)))
            embedded = image_embeddings(model, images.fetch(positions).to(device)).float()
            best = (nn.functional.normalize(embedded, dim=-1) @ features.T).topk(min(2, len(features)), dim=-1)
            predictions.append(best.indices[:, 0].cpu())
            margins.append((best.values[:, 0] - best.values[:, -1]).cpu())
            if pretrained_embeddings is not None and start < len(pretrained_embeddings):
                compared.append(embedded.cpu())
    moved = None
    if pretrained_embeddings is not None:
        moved = _moved(torch.cat(compared)[: len(pretrained_embeddings)], pretrained_embeddings, weight_drift)
    predicted = torch.cat(predictions).numpy()
    correct = predicted == wanted
    described = {"class_names": list(text.class_names), "templates": list(text.templates), **evidence}
    return ZeroShotResult(float(correct.mean()), predicted, correct, torch.cat(margins).numpy(), moved, described)


def _moved(now: Tensor, before: Tensor, weight_drift: float | None) -> tuple[float, float]:
    if weight_drift and torch.equal(now, before):
        raise InertModelError(
            f"the weights have drifted by {weight_drift:.3g}, yet the first {len(before)} embeddings are exactly those "
            "of the pretrained model: the adapted weights do not take part in the evaluation"
        )
    distance = (now - before).double().norm(dim=1) / before.double().norm(dim=1).mean()
    return float(distance.mean()), float(distance.max())


def retention(accuracy: float, pretrained: float, n_classes: int) -> float | None:
    """100 x adapted / pretrained accuracy; None where the pretrained one is below twice chance."""
    return None if pretrained < 2.0 / n_classes else 100.0 * accuracy / pretrained
