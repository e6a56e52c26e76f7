"""Pictures of the pretraining in memory, and their augmentation in batches."""

from __future__ import annotations

import io
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from PIL import Image

from attndrift.data.generated import GENERATED
from pretraining.captions import search_term, spoken

SIDE = 56
MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
OBJECT_TRAIN_SEED, OBJECT_HELD_OUT_SEED = 1000, 1001
"""Series of `objects`; the package's own train and test series are 1 and 2."""
HELD_OUT_EVERY = 50
"""Every fiftieth training image of CIFAR-100 is kept out, to watch the pretraining by."""


@dataclass
class Pictures:
    """One source: uint8 images (n, 3, side, side), classes, class names, and a finer term per image."""

    images: torch.Tensor
    labels: torch.Tensor
    names: list[str]
    terms: list[str]

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, keep: torch.Tensor) -> Pictures:
        """The pictures at these positions."""
        chosen = keep.tolist()
        return Pictures(self.images[keep], self.labels[keep], self.names, [self.terms[i] for i in chosen])


def read_cifar100(data: Path, split: str) -> Pictures:
    """CIFAR-100 as the hub has it: ``data/cifar100/data/<split>-*.parquet``."""
    files = sorted((data / "cifar100" / "data").glob(f"{split}-*.parquet"))
    if not files:
        raise SystemExit(f"no CIFAR-100 under {data / 'cifar100'}; set --data or ATTNDRIFT_DATA")
    tables = [pq.read_table(file) for file in files]
    features = json.loads(tables[0].schema.metadata[b"huggingface"])["info"]["features"]
    names = [spoken(name) for name in features["fine_label"]["names"]]
    images, labels, terms = [], [], []
    for table in tables:
        for row in table.to_pylist():
            images.append(np.asarray(Image.open(io.BytesIO(row["img"]["bytes"])).convert("RGB")))
            labels.append(row["fine_label"])
            terms.append(search_term(row["image_id"]))
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return Pictures(pixels, torch.tensor(labels), names, terms)


def draw_objects(count: int, seed: int) -> Pictures:
    """The first ``count`` pictures of a series of ``objects``."""
    drawn = GENERATED["objects"]
    pixels = torch.from_numpy(np.stack([drawn.draw(seed, index) for index in range(count)]))
    labels = [drawn.label(seed, index) for index in range(count)]
    names = list(drawn.class_names)
    terms = []
    for label in labels:
        colour, pattern, shape = names[label].split(" ")
        terms.append(f"{pattern} {shape} in {colour}")
    return Pictures(pixels.permute(0, 3, 1, 2).contiguous(), torch.tensor(labels), names, terms)


def held_out(count: int) -> torch.Tensor:
    """True at the images that pretraining does not see."""
    return torch.arange(count) % HELD_OUT_EVERY == 0


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """Values of 0 to 1 to what the network takes."""
    mean = torch.tensor(MEAN).view(1, 3, 1, 1)
    return (pixels - mean) / torch.tensor(DEVIATION).view(1, 3, 1, 1)


def plain(images: torch.Tensor) -> torch.Tensor:
    """uint8 (n, 3, s, s) to the network's (n, 3, 56, 56) without augmentation."""
    resized = F.interpolate(images.float(), size=(SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True)
    return normalise(resized.round().clamp(0, 255) / 255)


def augment(images: torch.Tensor, generator: torch.Generator, *, smallest: float, jitter: float = 0.4) -> torch.Tensor:
    """Random crop of ``smallest`` to all of the area, flip, brightness, contrast and saturation.

    No change of hue: colours are words of the captions. (n, 3, s, s) uint8 to (n, 3, 56, 56) float32.
    """
    count = len(images)

    def uniform(low: float, high: float) -> torch.Tensor:
        return torch.rand(count, generator=generator) * (high - low) + low

    area = uniform(smallest, 1.0).sqrt()
    aspect = torch.exp(uniform(math.log(0.8), math.log(1.25)) / 2)
    wide, high = (area * aspect).clamp(max=1.0), (area / aspect).clamp(max=1.0)
    flip = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = wide * flip, high
    theta[:, 0, 2], theta[:, 1, 2] = uniform(-1, 1) * (1 - wide), uniform(-1, 1) * (1 - high)
    grid = F.affine_grid(theta, [count, 3, SIDE, SIDE], align_corners=False)
    pixels = F.grid_sample(images.float().div_(255), grid, mode="bilinear", padding_mode="border", align_corners=False)
    grey = pixels.mean(dim=1, keepdim=True)
    saturation = uniform(1 - jitter, 1 + jitter).view(-1, 1, 1, 1)
    pixels = grey + (pixels - grey) * saturation
    middle = grey.mean(dim=(2, 3), keepdim=True)
    contrast = uniform(1 - jitter, 1 + jitter).view(-1, 1, 1, 1)
    bright = uniform(1 - jitter, 1 + jitter).view(-1, 1, 1, 1)
    pixels = ((pixels - middle) * contrast + middle * bright).clamp_(0, 1)
    return normalise(pixels)
