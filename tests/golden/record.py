"""Golden records: short runs of every method, loss and guard, with every number that they come to.

``python tests/golden/record.py`` runs the study below through the command line and writes ``records.json`` beside this
file: all columns of the history and of the run's row, the layer means after the last step, the guard's checks, and a
checksum of the trained weights. Floats are hexadecimal, so that no bit is lost.

The records in git were made at commit 17cd197, before the training loop was rewritten; the values of the zero-shot
monitor are later, as it watches images that no run is evaluated on. Checksums cover the names of tensors: they were made
anew when `clip.` became `model.`, and with the old names they are as before. Records are made anew only where
numbers are meant to change; the commit that does so says why. Where a setting or a column gets another name, the study
below takes the new name, and ``RENAMED`` says what the old one, in the records, is called now.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from attndrift.cli.main import app

RECORDS = Path(__file__).with_name("records.json")

RENAMED: dict[str, str | None] = {
    "rate": "lr_scale",
    "protocol": "selection",
    "regularizer": None,
    "regularizer_weight": None,
    "regularizer_active_fraction": "loss_active_fraction",
    "transfer_track_accuracy": "monitor_zero_shot_accuracy",
    "transfer_track_retention_pct": "monitor_zero_shot_retention_pct",
    **{
        f"transfer_objects_{end}": f"transfer_objects_zero_shot_{end}"
        for end in ("accuracy", "pretrained", "retention_pct", "n")
    },
}
"""Name in the records -> name today, of columns and of a guard's entries; None for one that is gone."""

VALUES: dict[str, str] = {
    "taken back": "rewound",
    "given up": "infeasible",
    "never needed": "inactive",
    "held": "frozen",
    "leak-free": "validation",
    "seed": "test",
}
"""Text in the records -> text today."""

STUDY = """
name: golden
shared:
  model: embedded
  dataset: tiles
  selection: validation
  train_per_class: 4
  validation_per_class: 2
  probe_size: 20
  test_limit: 40
  epochs: 2
  batch_size: 16
  learning_rate: 1e-3
  transfer: [objects]
  transfer_limit: 300
  guard_probe_per_class: 1
  guard_checks_per_epoch: 3
  monitor_zero_shot_images: 50
  evaluations_per_epoch: 2
  map_images: 0
  threads: 1
runs:
  - {experiment: none, method: none}
  - {experiment: full, method: full, weight_decay: 0.1}
  - {experiment: freeze, method: full, freeze_layers: 4, flip: false}
  - {experiment: accumulated, method: full, gradient_accumulation: 4, warmup: 0.5}
  - {experiment: text-head, method: full, head: text, clip_norm: 0}
  - {experiment: bfloat16, method: full, precision: bfloat16}
  - {experiment: one-split, method: full, selection: test, validation_per_class: null}
  - {experiment: lora, method: lora, lora_rank: 2, lora_targets: "q,v"}
  - {experiment: lora-all, method: lora, lora_rank: 4, lora_targets: "q,k,v,out", lora_dropout: 0.2}
  - {experiment: lora-frozen, method: lora, lora_rank: 4, train_projection: false}
  - {experiment: linear-probe, method: linear_probe}
  - {experiment: last-block, method: last_block}
  - {experiment: last-block-projection, method: last_block, train_projection: true}
  - {experiment: preserved, method: full, loss: "attention_preservation:10"}
  - {experiment: lora-preserved, method: lora, lora_rank: 4, loss: "attention_preservation:10", gradient_accumulation: 2}
  - {experiment: floor, method: full, loss: "entropy_floor:1", entropy_floor_fraction: 1.0}
  - {experiment: guard-drift, method: full, guard: weight_drift, guard_at_most: 0.01}
  - {experiment: guard-lora, method: lora, lora_rank: 4, guard: cka_mean, guard_at_least: 0.99997}
  - {experiment: guard-retention, method: full, guard: retention_pct, guard_at_least: 90, guard_confidence: 0.5}
  - {experiment: guard-out-of-reach, method: full, guard: retention_pct, guard_at_least: 150}
  - {experiment: diverged, method: full, learning_rate: 10, weight_decay: 1, epochs: 4}
"""


def versions() -> dict[str, str]:
    """What decides the last bits of a sum on a CPU."""
    packages = ("torch", "numpy", "transformers", "peft", "accelerate", "pillow")
    return {name: importlib.metadata.version(name) for name in packages} | {
        "machine": platform.machine(),
        "processor": _of_processor("model name"),
        # Libraries choose their kernels by what the processor can do.
        "vectors": " ".join(sorted(f for f in _of_processor("flags").split() if f.startswith(("avx", "amx", "fma")))),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def _of_processor(what: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(what)), "")


def written(value: Any) -> Any:
    """``value`` for JSON, floats in hexadecimal."""
    if isinstance(value, dict):
        return {name: written(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [written(one) for one in value]
    if hasattr(value, "item"):
        value = value.item()
    return value.hex() if isinstance(value, float) else value


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table without what is null."""
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return [{str(name): value for name, value in row.items() if value is not None} for row in rows]


def _checksum(checkpoint: Path) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(checkpoint / "model.safetensors").items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def run(folder: Path, only: Sequence[str] = ()) -> dict[str, Any]:
    """Run the study in ``folder``, or the experiments ``only`` of it, and read what it came to, by experiment."""
    study = folder / "study.yaml"
    study.write_text(STUDY, encoding="utf-8")
    command = ["run", str(study), "-o", str(folder / "study"), "--jobs", "1"]
    command += [word for name in only for word in ("--only", name)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    runs, history, layers = (pd.read_parquet(folder / "study" / f"{t}.parquet") for t in ("runs", "history", "layers"))
    found = {}
    for row in _rows(runs):
        own, identity = folder / "study" / "runs" / row["run_id"], row["run_id"]
        record = json.loads((own / "record.json").read_text(encoding="utf-8"))
        last = layers[(layers["run_id"] == identity) & layers["head"].isna()]
        last = last[last["step"] == last["step"].max()]
        events = record.get("guard", {}).get("events", [])
        weights = next(
            (own / "checkpoints" / n for n in ("final", "last-good") if (own / "checkpoints" / n).is_dir()), None
        )
        found[row["experiment"]] = {
            "row": row,
            "history": _rows(history[history["run_id"] == identity].drop(columns="run_id")),
            "layers": {metric: part["value"].tolist() for metric, part in last.groupby("metric")},
            "guard": events,
            "problem": record["problem"],
            "weights": None if weights is None else _checksum(weights),
        }
        del row["run_id"]
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        found = run(Path(name))
    content = {"versions": versions(), "runs": written(found)}
    RECORDS.write_text(json.dumps(content, indent=0, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{RECORDS.name}: {len(found)} runs, {RECORDS.stat().st_size / 1e3:.0f} KB")


if __name__ == "__main__":
    main()
