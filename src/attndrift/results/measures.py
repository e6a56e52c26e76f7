"""The registry of retention measures: how well a model could do something before, and can still do it.

Tables, study files and messages have their names and words from here; the functions are in
:mod:`attndrift.retention.measures`. Nothing here imports torch.

    MEASURES.register(RetentionMeasure(name="mine", label="mine accuracy", evaluate=mine, meaning="...", source="..."))
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from attndrift.registry import Registry


@dataclass(frozen=True)
class RetentionMeasure:
    """One retention measure: an accuracy of a model on images that it was not fine-tuned on.

    Attributes:
        name: in study files and in columns ``transfer_SET_NAME_...``.
        label: of its accuracy, in tables and figures.
        meaning: what it measures, in one phrase; ``source`` says where the protocol comes from.
        evaluate: (model, :class:`~attndrift.retention.task.RetentionTask`) to a
            :class:`~attndrift.retention.task.RetentionResult`, or ``module:name`` of it.
        needs_text: whether the model must have a text tower.
        needs_bank: whether the set must have training images, which the measure learns from.
        cost: what it takes beside embedding the images.
    """

    name: str
    label: str
    meaning: str
    source: str
    evaluate: Callable[..., Any] | str
    needs_text: bool = False
    needs_bank: bool = False
    cost: str = "none"

    @property
    def function(self) -> Callable[..., Any]:
        """The function itself."""
        if not isinstance(self.evaluate, str):
            return self.evaluate
        module, _, name = self.evaluate.partition(":")
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return found


MEASURES: Registry[RetentionMeasure] = Registry(
    "retention measure", "attndrift.retention.measures", group="attndrift.measures"
)
"""All measures: those of :mod:`attndrift.retention.measures`, of installed packages, and of this process."""
