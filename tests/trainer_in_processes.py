"""Run by ``torchrun`` in the tests: a Trainer of several processes, watched, in the ways that people train.

Each process writes what it measured, together with the others and alone on the same weights, to ``FOLDER/RANK.json``.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, distributed, nn

from attndrift.attention import find_vision_tower
from attndrift.callbacks import DriftCallback
from attndrift.drift import Alert, Drift, DriftMonitor
from attndrift.losses import AttentionPreservation
from attndrift.models import load_model
from training_loops import Classifier, trainer_of

WAYS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora, checkpointing": {"activation_checkpointing": True, "ddp_find_unused_parameters": False},
    "frozen, autocast": {"bf16": True},
    "protected": {"gradient_accumulation_steps": 2},
    "stopped": {},
}  # fmt: skip


def images(count: int) -> Tensor:
    """The same images in every process and in the test."""
    return torch.randn(count, 3, 28, 28, generator=torch.Generator().manual_seed(1))


def made(way: str) -> Classifier:
    """The model of one way, the same in every process."""
    torch.manual_seed(0)
    clip: Any = load_model("config:tiny")
    for layer in clip.vision_model.encoder.layers:
        layer.self_attn.dropout = 0.2
    if way.startswith("frozen"):
        clip.vision_model.encoder.layers[0].requires_grad_(False)
        clip.text_model.requires_grad_(False)
    torch.manual_seed(4)
    inner = copy.deepcopy(clip)
    if way.startswith("lora"):
        targets = r".*vision_model.*\.(q_proj|v_proj)"
        inner = get_peft_model(inner, LoraConfig(r=2, target_modules=targets, lora_dropout=0.1))
    model = Classifier(inner)
    model.activation_checkpointing_enable = inner.activation_checkpointing_enable  # type: ignore[assignment]
    return model


def fingerprint(model: nn.Module) -> str:
    """Of every bit of the weights."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def numbers(drift: Drift) -> dict[str, Any]:
    """Everything that was measured, for a file."""
    return {"values": drift.values(), "layers": drift.layers(), "images": drift.structure.images}


def trained(way: str, folder: Path, watched: bool) -> dict[str, Any]:
    """Train in one way, watched by a monitor that was made before the trainer started the processes, or not."""
    model = made(way)
    # An odd number: the shares are uneven.
    alone = DriftMonitor(model, images(7), distributed=False)
    together = DriftMonitor(model, images(7))
    seen: list[int] = []
    found: dict[str, Any] = {"together": [], "alone": [], "shares": []}

    def compare(step: int, epoch: float, drift: Drift) -> None:
        found["shares"].append(sum(seen))
        found["together"].append(numbers(drift))
        found["alone"].append(numbers(alone.measure()))
        seen.clear()

    def count(_: nn.Module, __: Any, kwargs: Any) -> None:
        if not torch.is_grad_enabled() and not any(part.training for part in model.modules()):
            seen.append(len(kwargs["pixel_values"]))

    find_vision_tower(model).module.register_forward_pre_hook(count, with_kwargs=True)
    seen.clear()
    callbacks = []
    if watched:
        preserve = AttentionPreservation(model, 1.0) if way == "protected" else None
        alerts = [Alert("weight_drift", above=1e-9, action="stop")] if way == "stopped" else []
        lines: list[str] = []
        callbacks = [
            DriftCallback(
                together, every=2, alerts=alerts, folder=folder / "tables" / way, preserve=preserve, on_drift=compare,
                echo=lines.append,
            )
        ]  # fmt: skip
        found["lines"] = lines
    options = {"ddp_backend": "gloo", "ddp_find_unused_parameters": True, "learning_rate": 1e-2} | WAYS[way]
    trainer = trainer_of(model, images(16), folder / "trainer", *callbacks, **options)
    assert distributed.get_world_size() == int(os.environ["WORLD_SIZE"])
    trainer.train()
    found["steps"] = trainer.state.global_step
    found["weights"] = fingerprint(model)
    found["untrained"] = fingerprint(made(way))
    return found


def main() -> None:
    """Every way once watched, and where nothing but the monitor differs, once not."""
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for way in WAYS:
        found[way] = trained(way, folder, watched=True)
        if way not in ("protected", "stopped"):
            found[way]["unwatched"] = trained(way, folder, watched=False)["weights"]
    (folder / f"{rank}.json").write_text(json.dumps(found))
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
