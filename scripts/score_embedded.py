"""Measure the embedded model on pictures that its pretraining never saw, for its model card.

    ATTNDRIFT_DATA=DATA python scripts/score_embedded.py [FOLDER]

Prints zero-shot accuracy with `a photo of a {class}.` on CIFAR-100's test split and on `objects`, and
the accuracy of a linear probe (logistic regression on image embeddings) on `tiles` and `critters`, each
with the number of images and a 95% Wilson interval over images.
"""

from __future__ import annotations

import argparse
import io
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from statsmodels.stats.proportion import proportion_confint
from transformers import CLIPModel, CLIPProcessor

from attndrift.data.procedural import DRAWN

HOME = Path(__file__).parents[1] / "src" / "attndrift" / "models" / "embedded"
TRAIN_SEED, TEST_SEED = 1, 2
"""Series of the package's own train and test splits; pretraining drew others."""


class Scorer:
    """A model folder, and how well its embeddings do."""

    def __init__(self, folder: Path) -> None:
        self.model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
        self.processor = CLIPProcessor.from_pretrained(folder)

    @torch.no_grad()
    def embed(self, images: Iterable[Image.Image]) -> torch.Tensor:
        """Image embeddings (n, 128), not normalised."""
        parts = []
        for batch in _batches(images, 250):
            pixels = self.processor.image_processor(images=batch, return_tensors="pt")["pixel_values"]
            parts.append(self.model.get_image_features(pixels).pooler_output)
        return torch.cat(parts)

    @torch.no_grad()
    def zero_shot(self, images: Iterable[Image.Image], labels: np.ndarray, names: list[str]) -> np.ndarray:
        """Whether each image's best prompt is its own."""
        prompts = [f"a photo of a {name}." for name in names]
        tokens = self.processor.tokenizer(prompts, padding=True, return_tensors="pt")
        texts = torch.nn.functional.normalize(self.model.get_text_features(**tokens).pooler_output, dim=-1)
        return (self.embed(images) @ texts.T).argmax(dim=1).numpy() == labels

    def probe(self, name: str, train: int, test: int) -> np.ndarray:
        """Whether a logistic regression, fitted on drawn training pictures, is right on drawn test pictures."""
        drawn = DRAWN[name]
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.3, max_iter=1000))
        classifier.fit(
            self.embed(_pictures(name, TRAIN_SEED, train)), [drawn.label(TRAIN_SEED, i) for i in range(train)]
        )
        truth = np.asarray([drawn.label(TEST_SEED, i) for i in range(test)])
        return classifier.predict(self.embed(_pictures(name, TEST_SEED, test)).numpy()) == truth


def _batches(images: Iterable[Image.Image], size: int) -> Iterator[list[Image.Image]]:
    batch: list[Image.Image] = []
    for image in images:
        batch.append(image)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _pictures(name: str, seed: int, count: int) -> Iterator[Image.Image]:
    return (Image.fromarray(DRAWN[name].draw(seed, index)) for index in range(count))


def say(what: str, right: np.ndarray) -> None:
    """One line: accuracy, interval, images."""
    low, high = proportion_confint(int(right.sum()), len(right), method="wilson")
    print(f"{what}: {100 * right.mean():.2f}% [{100 * low:.2f}, {100 * high:.2f}] of {len(right):,} images", flush=True)


def main() -> None:
    """Print everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=HOME)
    parser.add_argument("--data", type=Path, default=os.environ.get("ATTNDRIFT_DATA"), help="holds cifar100/")
    parser.add_argument("--objects", type=int, default=5000)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    scorer = Scorer(args.folder)
    names = list(DRAWN["objects"].class_names)
    labels = np.arange(args.objects) % len(names)
    say(
        "zero-shot, objects (test series)",
        scorer.zero_shot(_pictures("objects", TEST_SEED, args.objects), labels, names),
    )
    say("linear probe, tiles (2,000 training pictures)", scorer.probe("tiles", 2000, 1000))
    say("linear probe, critters (7,400 training pictures)", scorer.probe("critters", 7400, 1480))
    files = sorted((Path(args.data) / "cifar100" / "data").glob("test-*.parquet")) if args.data else []
    if not files:
        print("zero-shot, CIFAR-100: not measured, no images (set ATTNDRIFT_DATA or --data)")
        return
    table = pq.read_table(files[0])
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    spoken = [name.replace("_", " ") for name in features["fine_label"]["names"]]
    images = (Image.open(io.BytesIO(row["bytes"])).convert("RGB") for row in table["img"].to_pylist())
    say("zero-shot, CIFAR-100 (test)", scorer.zero_shot(images, np.asarray(table["fine_label"]), spoken))


if __name__ == "__main__":
    main()
