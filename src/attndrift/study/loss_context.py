"""What the preservation losses of a run are told of the pretrained model, in one place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from attndrift.losses.base import StudyContext
from attndrift.losses.registry import LOSSES
from attndrift.study.pretrained_results import PretrainedResults
from attndrift.study.reference_images import ReferenceSet
from attndrift.study.run_inputs import RunInputs


@dataclass(frozen=True)
class _Reference:
    """Reference images, and what the pretrained model comes to on them."""

    images: ReferenceSet
    results: PretrainedResults

    @property
    def pixels(self) -> Tensor:
        return self.images.pixels

    @property
    def text_features(self) -> Tensor:
        return self.images.text_features

    def fisher(self) -> Mapping[str, Tensor]:
        return self.results.fisher(self.images)


def loss_context(inputs: RunInputs, phase: Callable[[str], None]) -> StudyContext:
    """The context of a run's losses; those of weight 0 are not made, and need nothing.

    ``phase``: told what is measured.
    """
    settings, results = inputs.settings, inputs.results
    teachers: dict[str, Callable[..., Any]] = {}
    for name, weight in settings.losses.items():
        view_of = getattr(LOSSES[name].cls, "cached_view", None)
        if weight and view_of is not None:
            view = view_of(**dict(settings.settings_of(LOSSES[name])))
            phase(f"pretrained {view.name.partition('-')[0]} of the training images")
            teachers[view.name] = results.teacher(view)

    def class_texts() -> Tensor:
        return inputs.resources.text(settings, inputs.pretrained, inputs.target.dataset).features

    reference = None if inputs.reference is None else _Reference(inputs.reference, results)
    return StudyContext(inputs.baseline.structure.layers("entropy"), teachers, class_texts, reference)
