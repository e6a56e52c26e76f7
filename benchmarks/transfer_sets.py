"""What eight transfer sets cost that share images and class names, evaluated together, against one at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from attndrift.data import load_dataset
from attndrift.data.dataset import ImageDataset
from attndrift.retention.shared_embeddings import SharedEmbeddings
from attndrift.retention.zero_shot import TextFeatures
from attndrift.study.pretrained import Pretrained
from attndrift.study.run_images import TransferSet
from attndrift.study.settings import RunSettings
from attndrift.study.transfer_images import divide, open_sets
from benchmarks.ratios import ratio_of, rounds
from benchmarks.result import OtherPrograms, Output, Pairs, Result, say

AT_MOST = 0.6

STEPS = ("", "+base", "+new", "+base+base", "+base+new", "+new+base", "+new+new", "+base+base+base")
"""The set itself, its halves, their halves, and one half of these."""


def transfer_sets(model: str, dataset: str, limit: int, pairs: int, progress: Callable[[str], object] = say) -> Result:
    """Zero-shot accuracy of ``model`` on ``dataset`` and seven class subsets of it, of at most ``limit`` images each."""
    others = OtherPrograms()
    pretrained = Pretrained.load(model, torch.device("cpu"))
    sets = [load_dataset(f"{dataset}{steps}") for steps in STEPS]
    settings = RunSettings.model_validate(
        {
            "dataset": "tiles",
            "model": model,
            "transfer": (dataset,),
            "transfer_limit": limit,
            "monitor_zero_shot_images": 0,
        }
    )
    accuracies: dict[str, list[float]] = {}

    def evaluated(items: list[TransferSet], texts: list[TextFeatures], shared: SharedEmbeddings) -> list[float]:
        both = zip(items, texts, strict=True)
        return [replace(one, text=text).evaluate(shared, pretrained, settings).accuracy for one, text in both]

    def encoded(one: ImageDataset) -> TextFeatures:
        return TextFeatures.of(pretrained.model, pretrained.tokenizer, one.class_names, settings.prompts)

    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        opened = open_sets([divide(one, settings, first=False) for one in sets], settings, pretrained, cache)
        alone = [open_sets([divide(one, settings, first=False)], settings, pretrained, cache)[0] for one in sets]

        def together() -> None:
            whole = encoded(sets[0])
            texts = [whole.subset(one.class_names) for one in sets]
            accuracies["together"] = evaluated(opened, texts, SharedEmbeddings(pretrained.model))

        def one_at_a_time() -> None:
            found = [evaluated([item], [encoded(item.dataset)], SharedEmbeddings(pretrained.model)) for item in alone]
            accuracies["alone"] = [value for one in found for value in one]

        found = rounds({"one at a time": one_at_a_time, "together": together}, pairs, progress)
    rows = [
        {"set": one.name, "images": len(item.evaluation.part), "together": a, "one at a time": b}
        for one, item, a, b in zip(sets, opened, accuracies["together"], accuracies["alone"], strict=True)
    ]
    case = f"{model.removeprefix('config:')}, {dataset} and seven class subsets, at most {limit:,} images each, float32"
    what = "eight transfer sets, images and text features shared"
    return Result(
        "transfer_sets",
        [ratio_of(what, "one at a time", found["together"], found["one at a time"], case=case, at_most=AT_MOST)],
        {"accuracy by either way": rows},
        notes=["Pixels are decoded before, in both ways. Both encode the class names; one at a time, for each set."],
        others_pct=others.percent(),
    )


def main(
    model: Annotated[str, typer.Option(help="As attndrift.models.load_model takes it.")] = "embedded",
    dataset: Annotated[str, typer.Option(help="Whose class subsets are evaluated.")] = "critters",
    limit: Annotated[int, typer.Option(min=40, help="Images a set.")] = 1480,
    pairs: Pairs = 5,
    output: Output = None,
) -> None:
    """Print the ratio and the accuracies."""
    transfer_sets(model, dataset, limit, pairs).deliver(output)


if __name__ == "__main__":
    typer.run(main)
