"""A retention measure: the nearest class mean of the set's own training images."""

from __future__ import annotations

from typing import Any

from attndrift.results.measures import MEASURES, RetentionMeasure


def nearest_centroid(model: Any, task: Any) -> Any:
    """The share of queries whose nearest class mean, by cosine, is that of their class."""
    # Imported here, so that a list of measures needs no torch.
    import torch
    from torch.nn.functional import normalize

    from attndrift.retention.task import RetentionResult

    bank = task.bank()
    known, labels = normalize(task.embed(model, bank), dim=-1), torch.from_numpy(bank.labels)
    means = torch.stack([known[labels == label].mean(0) for label in range(len(task.class_names))])
    queries = normalize(task.embed(model, task.queries), dim=-1)
    predicted = (queries @ normalize(means, dim=-1).T).argmax(-1).numpy()
    return RetentionResult(predicted == task.queries.labels, predicted)


MEASURES.register(
    RetentionMeasure(
        name="nearest_centroid",
        label="nearest-centroid accuracy",
        meaning="top-1 accuracy by the nearest class mean",
        source="Mensink et al. 2013",
        evaluate=nearest_centroid,
        needs_bank=True,
        cost="embeds the bank too",
    )
)
