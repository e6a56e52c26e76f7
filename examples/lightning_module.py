"""A Lightning module whose attention is protected, with the drift in its loggers (``pip install "attndrift[lightning]"``).

python examples/lightning_module.py --steps 60
"""

from __future__ import annotations

import argparse

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from attndrift import AttentionPreservation, DriftMonitor
from attndrift.callbacks import LightningDriftCallback
from attndrift.data import load_dataset
from attndrift.models import load_model, load_processor

PROBE, BATCH = 64, 32  # images that the drift is measured on, and images a step


class Classifier(LightningModule):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.clip = load_model("embedded")
        self.head = torch.nn.Linear(self.clip.config.projection_dim, classes)
        self.preserve = AttentionPreservation(self.clip, weight=1.0)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> torch.Tensor:
        pixels, labels = batch
        features = self.clip.get_image_features(pixel_values=pixels).pooler_output
        return cross_entropy(self.head(features), labels) + self.preserve()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 3e-4)


def main(arguments: list[str] | None = None) -> LightningDriftCallback:
    """Fine-tune the module on generated land-use tiles; returns the callback."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--steps", type=int, default=60)
    given = options.parse_args(arguments)
    seed_everything(0, verbose=False)
    train, (_, processor) = load_dataset("tiles").train, load_processor("embedded")

    def collate(numbers: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = processor([train[number] for number in numbers], return_tensors="pt")["pixel_values"]
        return pixels, torch.from_numpy(train.labels[numbers])

    module = Classifier(len(train.class_names))
    drift = LightningDriftCallback(DriftMonitor(module.clip, collate(list(range(PROBE)))[0]), every=20)
    loader = DataLoader(range(PROBE, len(train)), BATCH, shuffle=True, collate_fn=collate)  # type: ignore
    Trainer(max_steps=given.steps, logger=False, enable_checkpointing=False, callbacks=[drift]).fit(module, loader)
    return drift


if __name__ == "__main__":
    main()
