"""Linear probes of the embedded model on generated sets that its pretraining never saw, for its model card.

    python scripts/score_embedded.py [FOLDER]

Prints the accuracy of a linear probe (logistic regression on image embeddings) on `tiles` and `critters`,
with the number of images and a 95% Wilson interval over images. `attndrift baseline embedded` prints the
zero-shot accuracies.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from statsmodels.stats.proportion import proportion_confint
from transformers import CLIPModel, CLIPProcessor

from attndrift.data.generated import GENERATED

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

    def probe(self, name: str, train: int, test: int) -> np.ndarray:
        """Whether a logistic regression, fitted on drawn training pictures, is right on drawn test pictures."""
        drawn = GENERATED[name]
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
    return (Image.fromarray(GENERATED[name].draw(seed, index)) for index in range(count))


def say(what: str, right: np.ndarray) -> None:
    """One line: accuracy, interval, images."""
    low, high = proportion_confint(int(right.sum()), len(right), method="wilson")
    print(f"{what}: {100 * right.mean():.2f}% [{100 * low:.2f}, {100 * high:.2f}] of {len(right):,} images", flush=True)


def main() -> None:
    """Print everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=HOME)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    scorer = Scorer(args.folder)
    say("linear probe, tiles (2,000 training pictures)", scorer.probe("tiles", 2000, 1000))
    say("linear probe, critters (7,400 training pictures)", scorer.probe("critters", 7400, 1480))


if __name__ == "__main__":
    main()
