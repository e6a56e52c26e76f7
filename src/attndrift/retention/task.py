"""What a retention measure is given, and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from attndrift.data.pixels import PixelStore
from attndrift.models.embedding import image_embeddings
from attndrift.models.evaluation import evaluation_mode
from attndrift.models.input_images import checked_images
from attndrift.own_settings import OwnSettings
from attndrift.process_group import Processes
from attndrift.retention.shared_embeddings import SharedEmbeddings
from attndrift.retention.zero_shot import Images, TextFeatures


@dataclass(frozen=True)
class Labelled:
    """Images and their labels.

    Attributes:
        images: with ``fetch(positions)``: normalised images (images, 3, height, width).
        labels: (images,), indices into the class names.
    """

    images: Images
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class RetentionTask:
    """One transfer set, as measures of one state of a model see it: what one of them embeds, the next one need not.

    Attributes:
        dataset, split: their names.
        queries: what the model is evaluated on.
        class_names: in label order.
        text: features of the class names; None without a text tower.
        bank: gives images of the set's own training split, none of which is a query; None where it has none.
        batch_size: images a forward pass.
        pretrained_embeddings: of the first queries, and ``weight_drift``, how far the weights have moved: a model whose
            adapted weights do not take part is told by them.
        preprocessing: of the images, for the record.
        processes: that share the images of every batch.
        settings: own settings of the measure that sees it.
        shared: embeddings that this set shares with others; None where it has its own.
    """

    dataset: str
    split: str
    queries: Labelled
    class_names: tuple[str, ...]
    text: TextFeatures | None = None
    bank: Callable[[], Labelled] | None = None
    batch_size: int = 200
    pretrained_embeddings: Tensor | None = None
    weight_drift: float | None = None
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    processes: Processes = field(default_factory=Processes)
    settings: OwnSettings = field(default_factory=OwnSettings)
    shared: SharedEmbeddings | None = None
    _embedded: dict[tuple[int, int], tuple[Any, ...]] = field(default_factory=dict, repr=False)

    def embed(self, model: nn.Module, part: Labelled) -> Tensor:
        """Embeddings of the images of ``part``: (images, dimensions), float32, on the CPU, not normalised.

        Raises:
            FloatingPointError: an embedding is not finite.
        """
        if self.shared is not None and model is self.shared.model and isinstance(part.images, PixelStore):
            return self.shared.of(part.images)
        key = (id(model), id(part))
        if key not in self._embedded:
            # Held too, so that nothing else gets the ids of these two.
            self._embedded[key] = (self._embed(model, part), model, part)
        embeddings: Tensor = self._embedded[key][0]
        return embeddings

    def _embed(self, model: nn.Module, part: Labelled) -> Tensor:
        device = next(model.parameters()).device
        found: list[Tensor] = []
        sizes: list[int] = []
        with evaluation_mode(model), self.processes.agreeing():
            for start in range(0, len(part.labels), self.batch_size):
                batch = part.images.fetch(range(start, min(start + self.batch_size, len(part.labels))))
                next(checked_images([batch], f"images of {self.dataset}", warn=False))
                own, _ = self.processes.share(batch, start)
                found.append(image_embeddings(model, own.to(device)).float().cpu())
                sizes.append(len(batch))
        embeddings = self.processes.join(torch.cat(found), sizes)
        finite = torch.isfinite(embeddings).all(dim=1)
        if not bool(finite.all()):
            raise FloatingPointError(f"the embedding of image {int((~finite).nonzero()[0])} is not finite")
        return embeddings


@dataclass(frozen=True)
class RetentionResult:
    """An accuracy, and which images were right.

    Attributes:
        correct: (queries,), bool.
        predictions: (queries,), class indices.
        detail: plain values for the record.
    """

    correct: NDArray[np.bool_]
    predictions: NDArray[np.int64]
    detail: Mapping[str, Any] = field(default_factory=dict)

    @property
    def accuracy(self) -> float:
        """Share of right predictions, 0..1."""
        return float(self.correct.mean())

    def to_json(self) -> dict[str, Any]:
        """Plain values for a record, without the per-image arrays."""
        return {"accuracy": self.accuracy, "n": self.n, **self.detail}

    @property
    def n(self) -> int:
        """Number of queries."""
        return len(self.correct)
