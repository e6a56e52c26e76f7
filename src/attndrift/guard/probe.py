"""The labelled images that a budget on retention is measured on, by any registered measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import ValidationError
from torch import Tensor, nn

from attndrift.models.evaluation import preserve_state
from attndrift.models.input_images import checked_images
from attndrift.own_settings import problem_in, validated
from attndrift.process_group import Processes
from attndrift.results.measures import MEASURES, RetentionMeasure
from attndrift.retention.bank import refuse_bank_labels, refuse_shared_images
from attndrift.retention.task import Labelled, RetentionTask
from attndrift.retention.text_encoder import trained_text_parameters
from attndrift.retention.zero_shot import Images, TextFeatures, checked_labels, text_features_of


@dataclass(frozen=True)
class _Fetched:
    """Images that have been looked at."""

    images: Tensor

    def fetch(self, positions: Any) -> Tensor:
        """A slice of them."""
        return self.images[positions.start : positions.stop]


@dataclass(frozen=True)
class RetentionProbe:
    """Images, labels, and what the measure needs besides: text, or a bank.

    Attributes:
        bank: images and labels that the measure learns from, none of which may be among ``images``.
        settings: own settings of the measure, by name.

    Raises:
        ValueError: something is missing, or does not go together: whatever can be told without the model.
    """

    measure: str
    images: Images | Tensor
    labels: ArrayLike | None
    class_names: Sequence[str] | None = None
    text_features: TextFeatures | ArrayLike | None = None
    tokenizer: Any = None
    templates: Sequence[str] = ()
    batch_size: int = 200
    bank: tuple[Images | Tensor, ArrayLike] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        facts = self.facts
        if self.labels is None:
            raise ValueError(
                f"labels: a budget on {self.measure} needs the labels of its images. A budget on drift needs none: "
                'Budget("embedding_drift", at_most=0.1)'
            )
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; it must be at least 1")
        if facts.needs_bank and self.bank is None:
            raise ValueError(
                f"bank: {self.measure} learns from labelled images beside those of the probe; give bank=(images, labels)"
            )
        unknown = [name for name in self.settings if name not in facts.Settings.model_fields]
        if unknown:
            has = ", ".join(facts.Settings.model_fields) or "none"
            raise ValueError(f"settings: {self.measure} has no setting `{unknown[0]}`; it has {has}")
        try:
            validated(facts, self.settings)
        except ValidationError as error:
            raise ValueError(f"settings: {problem_in(error)}") from None
        text = self._text(None) if facts.needs_text else None
        named = self.class_names if text is None else text.class_names
        classes = len(named) if named is not None else np.iinfo(np.int64).max
        labels = checked_labels(self.labels, classes)
        _check("images", self.images, labels, self.batch_size)
        if self.bank is not None:
            bank, of_bank = self.bank[0], checked_labels(self.bank[1], classes)
            _check("bank", bank, of_bank, self.batch_size)
            if facts.needs_bank:
                refuse_bank_labels(self.measure, labels, of_bank)
            if isinstance(self.images, Tensor) and isinstance(bank, Tensor):
                refuse_shared_images("images", self.images, bank)

    @property
    def facts(self) -> RetentionMeasure:
        """Of the measure."""
        return MEASURES[self.measure]

    def _text(self, model: nn.Module | None) -> TextFeatures | None:
        return text_features_of(model, self.class_names, self.text_features, self.tokenizer, self.templates)

    def encoded(self, model: nn.Module) -> TextFeatures | None:
        """The text features that are given, or those of ``model`` as it is now; None for a measure without text."""
        return self._text(model) if self.facts.needs_text else None

    def text_parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The trained parameters that the text features depend on, by name; none where no text is encoded."""
        if not self.facts.needs_text or self.text_features is not None:
            return {}
        return trained_text_parameters(model, self.tokenizer)

    def classes(self, text: TextFeatures | None) -> int:
        """How many there are: named, or the different labels."""
        if text is not None:
            return len(text.class_names)
        if self.class_names is not None:
            return len(self.class_names)
        return len(np.unique(self._all_labels()))

    def _all_labels(self) -> NDArray[np.int64]:
        labels = [self.labels] if self.bank is None else [self.labels, self.bank[1]]
        return np.concatenate([np.asarray(one, dtype=np.int64) for one in labels])

    def correct(
        self, model: nn.Module, text: TextFeatures | None, processes: Processes | None = None
    ) -> NDArray[np.float64]:
        """Whether the model classifies each image rightly, 1 or 0: (images,). Leaves no trace in the model."""
        assert self.labels is not None
        queries = _labelled(self.images, self.labels)
        bank = None if self.bank is None else _labelled(*self.bank)
        task = RetentionTask(
            dataset="the guard's probe",
            split="probe",
            queries=queries,
            class_names=self._names(text),
            text=text,
            bank=None if bank is None else lambda: bank,
            batch_size=self.batch_size,
            processes=processes or Processes(),
        )
        with preserve_state(model):
            result = self.facts.measure(model, task, self.settings)
        found: NDArray[np.float64] = result.correct.astype(np.float64)
        return found

    def _names(self, text: TextFeatures | None) -> tuple[str, ...]:
        if text is not None:
            return text.class_names
        # Labels may have gaps.
        return tuple(self.class_names or (f"class {number}" for number in range(1 + int(self._all_labels().max()))))


def _labelled(images: Images | Tensor, labels: ArrayLike) -> Labelled:
    return Labelled(_Fetched(images) if isinstance(images, Tensor) else images, np.asarray(labels, dtype=np.int64))


def _check(name: str, images: Images | Tensor, labels: NDArray[np.int64], batch_size: int) -> None:
    """Raise ValueError or TypeError for images that cannot be read again and again, are not normalised, or too few."""
    if isinstance(images, Tensor):
        if len(images) != len(labels):
            raise ValueError(
                f"{'labels' if name == 'images' else name}: {len(labels)} for {len(images)} images; give one an image"
            )
        list(checked_images(images.split(batch_size), name))
    elif hasattr(images, "fetch"):
        list(checked_images([images.fetch(range(min(len(labels), batch_size)))], name))
    else:
        raise ValueError(
            f"{name}: a {type(images).__name__}; the probe is read again at every measurement, so give one tensor "
            "(images, 3, height, width) or something with `fetch(positions)`"
        )
