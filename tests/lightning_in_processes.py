"""Run by ``torchrun`` in the tests: Lightning's DDP of several processes, alone, watched and guarded."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, distributed, nn
from torch.utils.data import DataLoader, TensorDataset

from attndrift import Budget, DriftMonitor, Guard
from attndrift.callbacks import LightningDriftCallback
from attndrift.models import load_model


class Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.clip, self.head = load_model("config:tiny"), nn.Linear(32, 2)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        pixels, labels = batch
        embedded = self.clip.get_image_features(pixel_values=pixels).pooler_output
        return nn.functional.cross_entropy(self.head(embedded), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 3e-3)


def trained(way: str) -> dict[str, Any]:
    """Two epochs in one way; what was measured and decided, and a fingerprint of the weights."""
    seed_everything(0, verbose=False)
    module, images = Module(), torch.randn(32, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    callbacks, lines, guard = [], list[str](), None
    if way != "alone":
        monitor = DriftMonitor(module.clip, images[:7])
        if way == "guarded":
            guard = Guard(monitor, Budget("embedding_drift", at_most=2e-4), every=2, head=module.head, echo=None)
        callbacks = [LightningDriftCallback(monitor, every=2, guard=guard, echo=lines.append)]
    trainer = Trainer(
        max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        accelerator="cpu", devices=int(os.environ["WORLD_SIZE"]), strategy="ddp_find_unused_parameters_true", callbacks=callbacks,
    )  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(images, torch.arange(32) % 2), 4, shuffle=True))
    bits = b"".join(value.detach().numpy().tobytes() for value in module.state_dict().values())
    return {
        "weights": hashlib.sha256(bits).hexdigest(),
        "drift": [drift.values() for _, drift in callbacks[0].watch.drift] if callbacks else [],
        "events": [] if guard is None else [event.to_json() for event in guard.events],
        "lines": len(lines),
    }


def main() -> None:
    """Every way once."""
    torch.set_num_threads(1)
    found = {way: trained(way) for way in ("alone", "watched", "guarded")}
    (Path(sys.argv[1]) / f"{os.environ['RANK']}.json").write_text(json.dumps(found))
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
