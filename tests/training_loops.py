"""A small classifier on a CLIP and its ``transformers.Trainer``, which the tests of the loops share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from attndrift.callbacks import DriftCallback


class Classifier(nn.Module):
    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.clip, self.head = clip, nn.Linear(32, 2)

    def embed(self, pixel_values: Tensor) -> Tensor:
        return self.clip.get_image_features(pixel_values=pixel_values).pooler_output  # type: ignore[operator]

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.head(self.embed(pixel_values))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def rows(images: Tensor, numbered: bool = False) -> list[dict[str, Any]]:
    plain = [{"pixel_values": image, "labels": i % 2} for i, image in enumerate(images)]
    return [row | {"index": i, "flipped": False} for i, row in enumerate(plain)] if numbered else plain


def trainer_of(model: nn.Module, images: Tensor, folder: Path, *callbacks: Any, **options: Any) -> Trainer:
    numbered = options.pop("numbered", False)
    options = {
        "per_device_train_batch_size": 4, "num_train_epochs": 2, "report_to": "none", "use_cpu": True, "seed": 0,
        "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True, "remove_unused_columns": False,
        "dataloader_pin_memory": False, "learning_rate": 1e-3,
    } | options  # fmt: skip
    data = rows(images, numbered)
    trainer = Trainer(
        model, TrainingArguments(str(folder), **options), train_dataset=data, eval_dataset=rows(images),  # type: ignore[arg-type]
    )  # fmt: skip
    for callback in callbacks:
        callback.attach(trainer) if isinstance(callback, DriftCallback) else trainer.add_callback(callback)
    trainer.remove_callback(PrinterCallback)
    return trainer


def in_processes(script: str, folder: Path, count: int = 2) -> list[dict[str, Any]]:
    """What the processes of ``torchrun tests/SCRIPT FOLDER`` left in ``FOLDER/RANK.json``."""
    here = Path(__file__).parent
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", str(here / script), str(folder)
    ]  # fmt: skip
    path = os.pathsep.join([str(here), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    folder.mkdir(exist_ok=True)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=540, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(count)]


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


class Tracker(TrainerCallback):
    """Stands where TensorBoard and its like stand: before the user's own callbacks."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, dict[str, float]]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.seen.append((state.global_step, dict(logs)))
