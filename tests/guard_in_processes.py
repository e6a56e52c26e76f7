"""Run by ``torchrun`` in the tests, and by one of them alone: a Trainer whose guard has to step in, of one process or several.

Each process writes what its guard decided and what became of the weights to ``FOLDER/RANK.json``.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, distributed, nn

from attndrift import Budget, DriftCallback, DriftMonitor, Guard
from attndrift.models import load_model
from attndrift.models.embedding import image_embeddings
from attndrift.retention.zero_shot import TextFeatures
from training_loops import Classifier, trainer_of

WAYS = {
    # In double precision the order of a sum over processes says nothing.
    "drift": torch.float64,
    "lora, retention": torch.float64,
    "single precision": torch.float32,
    "out of reach": torch.float32,
}
GLOBAL_BATCH = 8


def images(count: int, seed: int = 1) -> Tensor:
    """The same images in every process, of two classes in turn."""
    drawn = torch.randn(count, 3, 28, 28, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    drawn[1::2, 0] += 1
    return drawn


def _made(way: str) -> Classifier:
    torch.manual_seed(0)
    inner: Any = load_model("config:tiny").to(WAYS[way])
    if way.startswith("lora"):
        torch.manual_seed(4)
        targets = r".*vision_model.*\.(q_proj|v_proj)"
        inner = get_peft_model(inner, LoraConfig(r=2, target_modules=targets), autocast_adapter_dtype=False)
    return Classifier(inner).to(WAYS[way])


def _retention(model: Classifier) -> Any:
    """Nine tenths of an accuracy on classes that the pretrained model recognises: directions of its own embeddings."""
    probe = images(48, seed=2).to(WAYS["lora, retention"])
    with torch.no_grad():
        embedded = image_embeddings(model, probe)
    common = nn.functional.normalize(embedded.mean(0), dim=-1)
    rest = embedded - (embedded @ common)[:, None] * common
    features = nn.functional.normalize(rest[:12], dim=-1)
    predicted = (nn.functional.normalize(embedded, dim=-1) @ features.T).argmax(-1).numpy()
    wanted = np.where(np.arange(len(probe)) % 10 == 0, (predicted + 1) % 12, predicted)
    named = TextFeatures(features, tuple(f"class {i}" for i in range(12)), ("{class}",))
    return Budget.retention(0.9, probe, wanted, text_features=named)


def guarded(way: str, folder: Path) -> dict[str, Any]:
    """Train in one way, with a guard that was made before the trainer started the processes."""
    model, precision = _made(way), WAYS[way]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    monitor = DriftMonitor(model, images(7).to(precision))
    validation = images(40, seed=3).to(precision)

    def validate() -> float:
        with torch.no_grad():
            return float((model.head(model.embed(validation)).argmax(-1) == torch.arange(40) % 2).double().mean())

    budgets: dict[str, Any] = {
        "drift": [Budget("embedding_drift", at_most=2e-4), Budget("cka_mean", at_least=0.6)],
        "single precision": Budget("embedding_drift", at_most=2e-4),
        "lora, retention": _retention(model),
        "out of reach": Budget("embedding_drift", at_most=1e-13),
    }
    lines: list[str] = []
    guard = Guard(
        monitor, budgets[way], every=2, head=model.head, validate=validate, keep_best=way == "drift", echo=lines.append
    )
    callback = DriftCallback(monitor, every=4, guard=guard, folder=folder / way, echo=None)
    count = int(os.environ.get("WORLD_SIZE", "1"))
    options: dict[str, Any] = {"per_device_train_batch_size": GLOBAL_BATCH // count, "learning_rate": 3e-3}
    if count > 1:
        options |= {"ddp_backend": "gloo", "ddp_find_unused_parameters": True}
    trainer_of(model, images(32).to(precision), folder / "trainer", callback, **options).train()
    after = model.state_dict()
    names = list(monitor.embedding_parameters())
    return {
        "events": [asdict(event) for event in guard.events],
        "lines": lines,
        "summary": guard.summary(),
        "weights": {name: value.double().numpy().ravel().tolist() for name, value in after.items()},
        "drift": [drift.values() for _, drift in callback.drift],
        "as before": [name for name in names if torch.equal(before[name], after[name])],
        "guarded": names,
    }


def main() -> None:
    """Every way once."""
    folder, rank, count = Path(sys.argv[1]), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    found = {way: guarded(way, folder) for way in WAYS}
    assert distributed.get_world_size() == count
    (folder / f"{rank}.json").write_text(json.dumps(found))
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
