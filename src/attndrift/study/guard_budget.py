"""The budget of a guarded run on retention: by any registered measure, on images that no run is evaluated on."""

from __future__ import annotations

from typing import Any

from attndrift.guard.budget import Budget, RetentionBudget
from attndrift.results.measures import MEASURES
from attndrift.study.retention_measures import bank_of
from attndrift.study.run_inputs import RunInputs


def retention_budget(measure: str, inputs: RunInputs) -> RetentionBudget:
    """The budget on the retention by a measure, on the guard's images of the first transfer set.

    Raises ``ValueError`` where the set, or what the measure needs, is not there.
    """
    settings = inputs.settings
    # Without the set the guard cannot measure its budget, and an unguarded run must not be recorded as guarded.
    if settings.transfer[0] in inputs.absent:
        raise ValueError(f"`guard`: {inputs.absent[settings.transfer[0]]}")
    item, facts = inputs.transfer[0], MEASURES[measure]
    assert item.guard is not None
    reason = facts.impossible(text=item.text is not None, bank=True)
    if reason is not None:
        raise ValueError(f"`guard`: {reason}; `guard: knn_retention_pct` needs none")
    needed: dict[str, Any] = {"text_features": item.text} if facts.needs_text else {}
    if facts.needs_text and settings.trains_text and item.text is not None:  # encoded anew at every check
        needed = {"templates": item.text.templates, "tokenizer": inputs.pretrained.tokenizer}
    if "text_features" not in needed:
        needed["class_names"] = item.dataset.class_names
    if facts.needs_bank:
        bank = bank_of(item)
        needed["bank"] = (bank.images, bank.labels)
    return Budget.retention(
        (settings.guard_at_least or 0.0) / 100, item.guard.store, item.guard.part.labels, measure=measure,
        settings=dict(settings.settings_of(facts)), confidence=settings.guard_confidence,
        batch_size=settings.evaluation_batch_size, **needed,
    )  # fmt: skip
