"""k-NN accuracy: a weighted vote of the nearest images of the set's own training split."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attndrift.results.measures import MEASURES, RetentionMeasure

if TYPE_CHECKING:
    from torch import Tensor

    from attndrift.retention.task import RetentionResult, RetentionTask

# Imports inside functions: these packages take time to load, which only who needs them pays.

NEIGHBOURS, TEMPERATURE = 20, 0.07
_ROWS = 2**24
"""Similarities held at a time: 64 MB."""


def knn_predictions(
    queries: Tensor, bank: Tensor, labels: Tensor, n_classes: int, k: int = NEIGHBOURS, temperature: float = TEMPERATURE
) -> Tensor:
    """The class of each query by a weighted vote of its ``k`` nearest neighbours: (queries,).

    Args:
        queries: (queries, dimensions); ``bank``: (images, dimensions). Both are normalised here.
        labels: (images,), classes of the bank, 0 .. ``n_classes`` - 1.
        temperature: of the weights ``exp(cosine / temperature)``.

    >>> import torch
    >>> bank = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> knn_predictions(torch.tensor([[0.9, 0.1]]), bank, torch.tensor([1, 0]), 2, k=1).tolist()
    [1]
    """
    # Imported here, so that a list of measures needs no torch.
    import torch
    from torch.nn.functional import normalize

    k = min(k, len(bank))
    bank = normalize(bank, dim=-1)
    found = []
    for part in normalize(queries, dim=-1).split(max(1, _ROWS // len(bank))):
        near = (part @ bank.T).topk(k, dim=-1)
        # The largest cosine as zero: at small temperatures the weights would overflow.
        weights = ((near.values - near.values[:, :1]) / temperature).exp()
        votes = torch.zeros(len(part), n_classes, dtype=weights.dtype).scatter_add_(1, labels[near.indices], weights)
        found.append(votes.argmax(dim=-1))
    return torch.cat(found)


def knn(model: Any, task: RetentionTask) -> RetentionResult:
    """k-NN accuracy of ``model`` on the queries, with the bank of the task."""
    import torch

    from attndrift.retention.task import RetentionResult

    assert task.bank is not None
    bank = task.bank()
    predicted = knn_predictions(
        task.embed(model, task.queries), task.embed(model, bank), torch.from_numpy(bank.labels), len(task.class_names)
    ).numpy()
    detail = {"k": NEIGHBOURS, "temperature": TEMPERATURE, "bank": len(bank.labels)}
    return RetentionResult(predicted == task.queries.labels, predicted, detail)


MEASURES.register(
    RetentionMeasure(
        name="knn",
        label="k-NN accuracy",
        meaning=f"top-1 accuracy by a weighted vote of {NEIGHBOURS} nearest neighbours, temperature {TEMPERATURE}",
        source="Wu et al. 2018; Oquab et al. 2023",
        evaluate=knn,
        needs_bank=True,
        cost="embeds the bank too",
    )
)
