"""What the retention measures of a run take, told without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from attndrift.results.measures import MEASURES
from attndrift.study.set_descriptions import measures_of
from attndrift.study.settings import RunSettings


class SetSize(NamedTuple):
    """Numbers of a transfer set: images that are evaluated, training images that measures learn from, classes.

    ``shared``: images of ``queries`` that an earlier set of the run has too; ``bank_shared``: whether it has the bank.
    """

    queries: int
    bank: int
    classes: int
    shared: int = 0
    bank_shared: bool = False


def retention_cost(settings: RunSettings, sets: Mapping[str, SetSize], dimensions: int) -> dict[str, tuple[int, float]]:
    """What the measures of one model take on each of ``sets``: forward passes, and floating-point operations beside them.

    All measures share the embeddings of a set, and sets those of images that they have in common.
    """
    found: dict[str, tuple[int, float]] = {}
    for name, one in sets.items():
        measures = [MEASURES[measure] for measure in measures_of(settings, name)]
        learning = any(measure.needs_bank for measure in measures) and not one.bank_shared
        operations = sum(
            measure.operations(*one[:2], dimensions, one.classes) for measure in measures if measure.operations
        )
        found[name] = (one.queries - one.shared + (one.bank if learning else 0), operations)
    return found
