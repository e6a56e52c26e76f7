"""Weighted k-NN of given features, as retention measures it, against sorting the whole matrix of similarities: time and memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Annotated

import torch
import typer
from torch import Tensor
from torch.nn.functional import normalize

from attndrift.retention.measures.knn import NEIGHBOURS, TEMPERATURE, knn_predictions
from benchmarks.memory import HOW, peak_bytes
from benchmarks.ratios import ratio_of, rounds, timed
from benchmarks.result import OtherPrograms, Output, Pairs, Result, say

CLASSES = 100


def features(queries: int, bank: int, dimensions: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, bank, and the labels of the bank: classes that overlap."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(CLASSES, dimensions, generator=generator)
    labels = torch.arange(bank) % CLASSES
    asked = centres[torch.arange(queries) % CLASSES] + 3 * torch.randn(queries, dimensions, generator=generator)
    return asked, centres[labels] + 3 * torch.randn(bank, dimensions, generator=generator), labels


def plain(queries: Tensor, bank: Tensor, labels: Tensor) -> Tensor:
    """The same vote from the whole matrix of similarities, sorted."""
    near = (normalize(queries, dim=-1) @ normalize(bank, dim=-1).T).sort(dim=-1, descending=True)
    weights = (near.values[:, :NEIGHBOURS] / TEMPERATURE).exp()
    votes = torch.zeros(len(queries), CLASSES).scatter_add_(1, labels[near.indices[:, :NEIGHBOURS]], weights)
    return votes.argmax(-1)


def knn(queries: int, bank: int, dimensions: int, pairs: int, progress: Callable[[str], object] = say) -> Result:
    """Seconds and memory of k-NN retention with features given."""
    others = OtherPrograms()
    given = features(queries, bank, dimensions)
    works = {"k-NN": partial(knn_predictions, *given, CLASSES), "whole matrix": partial(plain, *given)}
    equal = float((works["k-NN"]() == works["whole matrix"]()).float().mean())
    found = rounds(works, pairs, progress)
    case = f"{queries:,} queries, bank of {bank:,}, {dimensions} dimensions, {torch.get_num_threads()} threads"
    ratio = ratio_of(
        "weighted 20-NN, features given", "the whole matrix of similarities, sorted", found["k-NN"], found["whole matrix"],
        case=case,
    )  # fmt: skip
    threads = torch.get_num_threads()
    processor = min(timed(works["k-NN"], time.process_time) for _ in range(pairs)) / threads
    memory = [{"what": name, "peak MB": round(peak_bytes(work) / 2**20, 1)} for name, work in works.items()]
    notes = [
        f"Seconds of the k-NN: median {ratio.seconds:.2f}, fastest {min(found['k-NN']):.2f}; of processor time {processor:.2f} a "
        f"thread, which other programs change little. The target is 1 s on two cores that are free.",
        f"Share of queries with equal predictions: {equal:.4f}. {HOW}",
    ]
    return Result("knn", [ratio], {"memory beside the features": memory}, notes, others.percent())


def main(
    queries: Annotated[int, typer.Option(min=1, help="Images that are asked about.")] = 5_000,
    bank: Annotated[int, typer.Option(min=20, help="Images that vote.")] = 10_000,
    dimensions: Annotated[int, typer.Option(min=2, help="Of the features.")] = 512,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
    pairs: Pairs = 5,
    output: Output = None,
) -> None:
    """Seconds and memory of k-NN retention with features given."""
    torch.set_num_threads(threads)
    knn(queries, bank, dimensions, pairs).deliver(output)


if __name__ == "__main__":
    typer.run(main)
