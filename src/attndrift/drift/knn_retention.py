"""k-NN accuracy of a model in training, on labelled images that it is not trained on: retention without a text tower."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from attndrift.models.evaluation import preserve_state, unwrapped
from attndrift.models.input_images import checked_images
from attndrift.models.parameters import bare
from attndrift.process_group import DivergedError, Processes
from attndrift.results.measures import MEASURES
from attndrift.retention.bank import refuse_bank_labels, refuse_shared_images
from attndrift.retention.measures.knn import NEIGHBOURS, TEMPERATURE
from attndrift.retention.retained import retention, why_no_retention
from attndrift.retention.task import Labelled, RetentionTask
from attndrift.retention.zero_shot import checked_labels

ACCURACY, RETENTION = "knn_accuracy", "knn_retention_pct"


class _Held:
    """Images in memory, by position."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def fetch(self, positions: range) -> Tensor:
        return self.images[positions.start : positions.stop]


class KNNRetention:
    """Measures k-NN accuracy against what it was, for a :class:`~attndrift.DriftMonitor`.

    ::

        knn = KNNRetention(model, (queries, labels), (bank, bank_labels))         # before the first step
        monitor = DriftMonitor(model, probe_images, knn=knn)
        monitor.measure().knn_retention_pct

    A registered measure: ``knn``, with the bank embedded anew by the model as it is at each measurement.

    Args:
        model: the model in training, or a wrapper of it.
        queries: normalised images (images, 3, height, width) that the model is not trained on, and their labels.
        bank: other images, of every class of the queries, and their labels. Chance is 1 / its number of classes.
        k, temperature: neighbours that vote, and the temperature of their weights exp(cosine / temperature).
        reference: the pretrained model; by default ``model`` as it is now, without its ``peft`` adapters.
        batch_size: images a forward pass.

    Attributes:
        pretrained: the accuracy of the reference, 0..1.

    Raises:
        TypeError: images that are not normalised.
        ValueError: labels that do not go with the images, a bank that lacks a class or has one class or no image, an
            image that is a query and in the bank, or a ``k``, temperature or batch size that cannot be.
    """

    def __init__(
        self,
        model: nn.Module,
        queries: tuple[Tensor, ArrayLike],
        bank: tuple[Tensor, ArrayLike],
        *,
        k: int = NEIGHBOURS,
        temperature: float = TEMPERATURE,
        reference: nn.Module | None = None,
        batch_size: int = 200,
    ) -> None:
        _refuse_count("k", k)
        _refuse_count("batch_size", batch_size)
        if not isinstance(temperature, (int, float, np.number)) or not (math.isfinite(temperature) and temperature > 0):
            raise ValueError(f"temperature is {temperature!r}; it must be a number above 0")
        self._model, self._batch_size = unwrapped(model), int(batch_size)
        self._own = {"knn_k": int(k), "knn_temperature": float(temperature)}
        asked, known = _labels("queries", *queries), _labels("bank", *bank)
        refuse_bank_labels("k-NN accuracy", asked, known)
        refuse_shared_images("queries", queries[0], bank[0])
        # Labels may have gaps; the vote counts classes from 0.
        classes = np.unique(known)
        self._classes = len(classes)
        self._queries = Labelled(_Held(queries[0]), np.searchsorted(classes, asked))
        self._bank = Labelled(_Held(bank[0]), np.searchsorted(classes, known))
        origin = self._model if reference is None else unwrapped(reference)
        with bare(origin):
            self.pretrained = self._accuracy(origin, Processes.current())

    def __call__(self, processes: Processes | None = None) -> tuple[dict[str, float | None], dict[str, str]]:
        """Accuracy (0..1) and retention (percent) now, and why the retention is None; ``processes`` share the images."""
        accuracy = self._accuracy(self._model, processes or Processes())
        reason = why_no_retention(self.pretrained, self._classes, len(self._queries.labels))
        kept = retention(accuracy, self.pretrained, self._classes, len(self._queries.labels))
        return {ACCURACY: accuracy, RETENTION: kept}, {} if reason is None else {RETENTION: reason}

    def _accuracy(self, model: nn.Module, processes: Processes) -> float:
        task = RetentionTask(
            dataset="k-NN retention",
            split="probe",
            queries=self._queries,
            class_names=tuple(f"class {number}" for number in range(self._classes)),
            bank=lambda: self._bank,
            batch_size=self._batch_size,
            processes=processes,
        )
        try:
            with preserve_state(model):
                return float(MEASURES["knn"].measure(model, task, self._own).accuracy)
        except FloatingPointError as error:
            raise DivergedError(str(error)) from error


def _refuse_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{name} is {value!r}; it must be a whole number of at least 1")


def _labels(name: str, images: Tensor, labels: ArrayLike) -> NDArray[np.int64]:
    """The labels of ``images``, both checked."""
    try:
        wanted = checked_labels(labels, np.iinfo(np.int64).max)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if not isinstance(images, Tensor) or len(images) != len(wanted):
        shape = f"{len(images)} images" if isinstance(images, Tensor) else f"a {type(images).__name__}"
        raise ValueError(f"{name}: {len(wanted)} labels for {shape}; give one tensor of images, and one label an image")
    list(checked_images([images], name))
    return wanted
