"""Retention measures besides zero-shot accuracy, on the transfer sets of a run."""

from __future__ import annotations

from pathlib import Path

import torch

from attndrift.data.splits import evaluation_part, refuse_overlap
from attndrift.process_group import Processes
from attndrift.results.measures import MEASURES
from attndrift.retention.task import Labelled, RetentionResult, RetentionTask
from attndrift.study.pretrained import Pretrained
from attndrift.study.run_images import TransferSet, pixels_of
from attndrift.study.settings import RunSettings


def measure_retention(
    measure: str, item: TransferSet, model: torch.nn.Module, pretrained: Pretrained, settings: RunSettings, cache: Path
) -> RetentionResult:
    """What ``model`` comes to by a registered measure. ``cache`` keeps decoded pixels of the bank.

    Raises ``ValueError`` where the measure needs what the model or the set does not have.
    """
    facts = MEASURES[measure]
    if facts.needs_text and item.text is None:
        raise ValueError(f"`measures`: {measure} needs class names as text, and the model has no text tower")

    def bank() -> Labelled:
        part, _ = evaluation_part(
            item.dataset, limit=settings.bank_limit, data_seed=settings.data_seed, unreadable=settings.unreadable,
            name="bank", split="train",
        )  # fmt: skip
        refuse_overlap([part, item.evaluation.part])  # a set may have one split alone
        return Labelled(pixels_of(item.dataset, part, pretrained, cache), part.labels)

    task = RetentionTask(
        dataset=item.dataset.name,
        split=item.evaluation.part.split,
        queries=Labelled(item.evaluation.store, item.evaluation.part.labels),
        class_names=item.dataset.class_names,
        text=item.text_of(model, pretrained, settings) if facts.needs_text else item.text,
        bank=bank,
        batch_size=settings.evaluation_batch_size,
        preprocessing=pretrained.preprocessing,
        processes=Processes.current(),
    )
    found: RetentionResult = facts.function(model, task)
    return found
