"""Embeddings that several transfer sets and measures share: one pass of one model over the images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from attndrift.data.pixels import PixelStore
from attndrift.models.embedding import image_embeddings
from attndrift.models.evaluation import evaluation_mode
from attndrift.models.input_images import checked_images
from attndrift.process_group import Processes
from attndrift.retention.zero_shot import TextFeatures


class SharedEmbeddings:
    """What ``model``, as it is now, makes of images and class names, each once.

    A store and the stores that are parts of it (:meth:`~attndrift.data.PixelStore.subset`) are embedded together. Make
    another one once the weights have changed.
    """

    def __init__(self, model: nn.Module, *, batch_size: int = 200, processes: Processes | None = None) -> None:
        self.model, self.batch_size, self.processes = model, batch_size, processes or Processes()
        self._images: dict[int, tuple[Tensor, PixelStore]] = {}
        self._texts: dict[tuple[object, ...], TextFeatures] = {}

    def of(self, store: PixelStore) -> Tensor:
        """Embeddings of the images of ``store``: (images, dimensions), float32, on the CPU, not normalised.

        Raises ``FloatingPointError`` where one is not finite.
        """
        whole, rows = store.part_of()
        if id(whole) not in self._images:
            # Held too, so that nothing else gets its id.
            self._images[id(whole)] = (self._embed(whole, range(0, len(whole), self.batch_size)), whole)
        found = self._images[id(whole)][0]
        return found if rows is None else found[rows]

    def first_of(self, store: PixelStore, count: int) -> Tensor:
        """The first ``count`` of them, embedded in the batches in which :meth:`of` embeds them, and not kept."""
        whole, rows = store.part_of()
        wanted = np.arange(count) if rows is None else rows[:count]
        batches, place = np.unique(wanted // self.batch_size, return_inverse=True)
        found = self._embed(whole, (batches * self.batch_size).tolist())
        return found[torch.from_numpy(self._row_of(place, wanted))]

    def _row_of(self, place: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
        # All batches but the last of the store are whole.
        return np.asarray(place * self.batch_size + wanted % self.batch_size)

    def _embed(self, whole: PixelStore, starts: Sequence[int]) -> Tensor:
        device = next(self.model.parameters()).device
        found: list[Tensor] = []
        sizes: list[int] = []
        with evaluation_mode(self.model), self.processes.agreeing():
            for start in starts:
                batch = whole.fetch(range(start, min(start + self.batch_size, len(whole))))
                next(checked_images([batch], "images", warn=False))
                own, _ = self.processes.share(batch, sum(sizes))
                found.append(image_embeddings(self.model, own.to(device)).float().cpu())
                sizes.append(len(batch))
        embeddings = self.processes.join(torch.cat(found), sizes)
        finite = torch.isfinite(embeddings).all(dim=1)
        if not bool(finite.all()):
            raise FloatingPointError(f"the embedding of image {int((~finite).nonzero()[0])} is not finite")
        return embeddings

    def text(self, tokenizer: Any, class_names: Sequence[str], templates: Sequence[str]) -> TextFeatures:
        """Features of class names by the text tower of the model."""
        key = (tuple(class_names), tuple(templates))
        if key not in self._texts:
            self._texts[key] = TextFeatures.of(self.model, tokenizer, class_names, templates)
        return self._texts[key]
