"""LoRA with ``transformers.Trainer``: the drift from the bare model goes to the trainer's own logs.

python examples/trainer.py --steps 60
"""

from __future__ import annotations

import argparse
import tempfile

import torch
from transformers import PrinterCallback, Trainer, TrainingArguments

from attndrift import AttentionPreservation, DriftCallback, DriftMonitor
from attndrift.data import load_dataset
from attndrift.methods import AdaptationSettings, adapt
from attndrift.models import load_model, load_processor

PROBE, BATCH = 64, 32  # images that the drift is measured on, and images a step


def main(arguments: list[str] | None = None) -> DriftCallback:
    """Train adapters in the embedded CLIP on generated land-use tiles; returns the callback."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--steps", type=int, default=60)
    options.add_argument("--weight", type=float, default=1.0, help="of the attention preservation, 0 for none")
    options.add_argument("--report-to", default="none", help="tensorboard, wandb, mlflow, trackio, ...")
    given = options.parse_args(arguments)

    train, (_, processor) = load_dataset("tiles").train, load_processor("embedded")
    lora = AdaptationSettings(method="lora", lora_rank=8)
    model = adapt(load_model("embedded"), lora, len(train.class_names), seed=0)  # a peft model and a classifier on it

    def collate(numbers: list[int]) -> dict[str, torch.Tensor]:
        pixels = processor([train[number] for number in numbers], return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels, "labels": torch.from_numpy(train.labels[numbers])}

    probe_images = collate(list(range(PROBE)))["pixel_values"]
    monitor = DriftMonitor(model, probe_images)
    preserve = AttentionPreservation(model, weight=given.weight)  # the teacher: this model with its adapters off
    drift = DriftCallback(monitor, every=20, preserve=preserve)
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder, max_steps=given.steps, per_device_train_batch_size=BATCH, learning_rate=3e-3,
            report_to=given.report_to, save_strategy="no", logging_steps=20, remove_unused_columns=False, disable_tqdm=True,
        )  # fmt: skip
        numbers = list(range(PROBE, len(train)))
        trainer = Trainer(model, settings, train_dataset=numbers, data_collator=collate)
        drift.attach(trainer)
        trainer.remove_callback(PrinterCallback)  # it would print every layer
        trainer.train()
    return drift


if __name__ == "__main__":
    main()
