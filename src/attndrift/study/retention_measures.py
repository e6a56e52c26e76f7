"""Retention measures besides zero-shot accuracy, on the transfer sets of a run."""

from __future__ import annotations

from functools import cache

from attndrift.data.splits import refuse_overlap
from attndrift.results.measures import MEASURES, ZERO_SHOT
from attndrift.retention.shared_embeddings import SharedEmbeddings
from attndrift.retention.task import Labelled, RetentionTask
from attndrift.study.pretrained import Pretrained
from attndrift.study.run_images import TransferSet
from attndrift.study.set_descriptions import measures_of
from attndrift.study.settings import RunSettings


def bank_of(item: TransferSet) -> Labelled:
    """Training images of a transfer set that measures learn from."""
    images = item.bank()
    # A set may have one split alone.
    refuse_overlap([images.part, *(one.part for one in (item.evaluation, item.guard) if one is not None)])
    return Labelled(images.store, images.part.labels)


def retention_task(
    item: TransferSet, shared: SharedEmbeddings, pretrained: Pretrained, settings: RunSettings
) -> RetentionTask:
    """A transfer set as the measures of the model of ``shared`` see it."""
    # Zero-shot accuracy has the set's own way.
    by_text = any(MEASURES[name].needs_text for name in measures_of(settings, item.name) if name != ZERO_SHOT)
    return RetentionTask(
        dataset=item.dataset.name,
        split=item.evaluation.part.split,
        queries=Labelled(item.evaluation.store, item.evaluation.part.labels),
        class_names=item.dataset.class_names,
        text=item.text_of(shared, pretrained, settings) if by_text else item.text,
        bank=cache(lambda: bank_of(item)),
        batch_size=settings.evaluation_batch_size,
        preprocessing=pretrained.preprocessing,
        processes=shared.processes,
        shared=shared,
    )
