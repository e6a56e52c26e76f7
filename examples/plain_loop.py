"""A training loop of one's own: the drift printed live, attention held back, and a stop that undoes the damage.

python examples/plain_loop.py --steps 60 --weight 1.0
"""

from __future__ import annotations

import argparse

import torch
from torch.nn.functional import cross_entropy

from attndrift import AttentionPreservation, Budget, DriftMonitor, Guard
from attndrift.data import load_dataset
from attndrift.drift import Alert, DriftWatch
from attndrift.models import load_model, load_processor

PROBE, BATCH = 64, 32  # images that the drift is measured on, and images a step


def main(arguments: list[str] | None = None) -> DriftWatch:
    """Fine-tune the embedded CLIP on generated land-use tiles; returns the watch."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--steps", type=int, default=60)
    options.add_argument("--weight", type=float, default=1.0, help="of the attention preservation, 0 for none")
    options.add_argument("--budget", type=float, help="keep the mean CKA at least this high, e.g. 0.95")
    options.add_argument("--output", help="folder for the tables, for `attndrift analyze`")
    given = options.parse_args(arguments)

    torch.manual_seed(0)
    model, (_, processor) = load_model("embedded").train(), load_processor("embedded")
    train = load_dataset("tiles").train
    head = torch.nn.Linear(model.config.projection_dim, len(train.class_names))

    def pixels(numbers: list[int]) -> torch.Tensor:
        return processor([train[number] for number in numbers], return_tensors="pt")["pixel_values"]

    monitor = DriftMonitor(model, pixels(list(range(PROBE))))
    optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], 3e-4)
    preserve = AttentionPreservation(model, weight=given.weight)
    stop = Alert("cka_mean", below=0.7, action="stop")
    guard = Guard(monitor, Budget("cka_mean", at_least=given.budget), every=10) if given.budget else None
    with DriftWatch(monitor, every=10, alerts=[stop], folder=given.output, guard=guard) as watch:
        watch.record.describe(dataset="tiles")
        for step in range(1, given.steps + 1):
            numbers = torch.randint(PROBE, len(train), (BATCH,)).tolist()
            features = model.get_image_features(pixel_values=pixels(numbers)).pooler_output
            loss = cross_entropy(head(features), torch.from_numpy(train.labels[numbers])) + preserve(model)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            watch.step(step, train_loss=loss.item())
            if watch.should_stop:
                break
    return watch


if __name__ == "__main__":
    main()
