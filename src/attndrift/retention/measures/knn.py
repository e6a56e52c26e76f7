"""k-NN accuracy: a weighted vote of the nearest images of the set's own training split."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from attndrift.own_settings import OwnSettings, setting
from attndrift.results.measures import MEASURES, RetentionMeasure

if TYPE_CHECKING:
    from torch import Tensor

    from attndrift.retention.task import RetentionResult, RetentionTask

# Imports inside functions: these packages take time to load, which only who needs them pays.

NEIGHBOURS, TEMPERATURE = 20, 0.07


class Settings(OwnSettings):
    """The vote."""

    knn_k: Annotated[int, Field(ge=1)] = setting(NEIGHBOURS, "neighbours that vote in k-NN retention")
    knn_temperature: Annotated[float, Field(gt=0)] = setting(
        TEMPERATURE, "temperature of the weights exp(cosine / temperature) in k-NN retention"
    )


def knn_predictions(
    queries: Tensor,
    bank: Tensor,
    labels: Tensor,
    n_classes: int,
    k: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
    *,
    largest: int = 2**24,
) -> Tensor:
    """The class of each query by a weighted vote of its ``k`` nearest neighbours: (queries,).

    Args:
        queries: (queries, dimensions); ``bank``: (images, dimensions). Both are normalised here.
        labels: (images,), classes of the bank, 0 .. ``n_classes`` - 1.
        temperature: of the weights ``exp(cosine / temperature)``.
        largest: numbers in the largest matrix that is made; 2^24 are 64 MB. Queries and bank are taken in parts.

    >>> import torch
    >>> bank = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> knn_predictions(torch.tensor([[0.9, 0.1]]), bank, torch.tensor([1, 0]), 2, k=1).tolist()
    [1]
    """
    # Imported here, so that a list of measures needs no torch.
    import torch
    from torch.nn.functional import normalize

    k = min(k, len(bank))
    images = max(k, min(len(bank), largest // bank.shape[1]))
    found = []
    for part in queries.split(max(1, largest // max(images, n_classes, bank.shape[1]))):
        asked = normalize(part.float(), dim=-1)
        nearest, voters = torch.empty(len(part), 0), torch.empty(len(part), 0, dtype=torch.int64)
        for known, classes in zip(bank.split(images), labels.split(images), strict=True):
            near = (asked @ normalize(known.float(), dim=-1).T).topk(min(k, len(known)), dim=-1)
            nearest, voters = torch.cat([nearest, near.values], 1), torch.cat([voters, classes[near.indices]], 1)
            if nearest.shape[1] > k:
                nearest, kept = nearest.topk(k, dim=-1)
                voters = voters.gather(1, kept)
        # The largest cosine as zero: at small temperatures the weights would overflow.
        weights = ((nearest - nearest[:, :1]) / temperature).exp()
        votes = torch.zeros(len(part), n_classes).scatter_add_(1, voters, weights)
        found.append(votes.argmax(dim=-1))
    return torch.cat(found)


def knn(model: Any, task: RetentionTask) -> RetentionResult:
    """k-NN accuracy of ``model`` on the queries, with the bank of the task."""
    import torch

    from attndrift.retention.task import RetentionResult

    assert task.bank is not None
    assert isinstance(task.settings, Settings)
    bank, k, temperature = task.bank(), task.settings.knn_k, task.settings.knn_temperature
    predicted = knn_predictions(
        task.embed(model, task.queries), task.embed(model, bank), torch.from_numpy(bank.labels), len(task.class_names),
        k, temperature,
    ).numpy()  # fmt: skip
    detail = {"k": min(k, len(bank.labels)), "temperature": temperature, "bank": len(bank.labels)}
    return RetentionResult(predicted == task.queries.labels, predicted, detail)


MEASURES.register(
    RetentionMeasure(
        name="knn",
        label="k-NN accuracy",
        meaning=f"top-1 accuracy by a weighted vote of the nearest neighbours, {NEIGHBOURS} by default",
        source="Wu et al. 2018; Oquab et al. 2023",
        evaluate=knn,
        needs_bank=True,
        cost="embeds the bank too",
        operations=lambda queries, bank, dimensions, classes: 2.0 * queries * bank * dimensions,
        Settings=Settings,
    )
)
