"""The same study twice on one machine: the same tables and the same weights, byte for byte, for every method."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from attndrift.cli.progress import StudyConsole
from attndrift.files import read_json
from attndrift.study.executor import Executor
from attndrift.study.loading import load_study
from attndrift.study.resources import StudyResources
from attndrift.study.runner import run_study

STUDY = """
name: twice
shared: {{model: {model}, dataset: digits, train_per_class: 5, validation_per_class: 1, probe_size: 10, test_limit: 10,
         epochs: 2, batch_size: 20, learning_rate: 1e-3, transfer: [objects], transfer_limit: 20, monitor_zero_shot_images: 10,
         evaluations_per_epoch: 1, map_images: 1, threads: 1, keep: all}}
runs:
  - {{method: none}}
  - {{method: linear_probe}}
  - {{method: last_block}}
  - {{method: full}}
  - {{method: full, freeze_layers: 1}}
  - {{method: lora, lora_rank: 2, lora_dropout: 0.2}}
  - {{method: full, loss: "attention_preservation:1"}}
  - {{method: full, loss: "entropy_floor:1", entropy_floor_fraction: 1.0}}
  - {{method: full, gradient_accumulation: 4, head: text}}
"""


@pytest.mark.slow
def test_every_method_gives_the_same_bytes_again(tiny_clip: Path, tmp_path: Path) -> None:
    """In this process, which has computed other things before, and in a fresh one whose hashes are others."""
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.format(model=tiny_clip))
    study = load_study(path)
    with Executor(StudyResources(tmp_path / "cache")) as execute:
        outcome = run_study(study, tmp_path / "first", execute, StudyConsole(console=Console(file=io.StringIO())))
    assert set(outcome.statuses.values()) == {"finished"}
    environment = os.environ | {"ATTNDRIFT_CACHE": str(tmp_path / "other cache"), "PYTHONHASHSEED": "123"}
    command = [sys.executable, "-m", "attndrift", "run", str(path), "-o", str(tmp_path / "second")]
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert again.returncode == 0, again.stderr
    compared = 0
    for one in sorted((tmp_path / "first").rglob("*")):
        other = tmp_path / "second" / one.relative_to(tmp_path / "first")
        if one.suffix in (".parquet", ".safetensors", ".jsonl", ".npz") or one.name in (
            "splits.json",
            "checkpoint.json",
        ):
            assert other.read_bytes() == one.read_bytes(), one.name
            compared += 1
    assert compared > 60
    for run in study.runs:
        first, second = (
            read_json(tmp_path / name / "runs" / run.run_id / "record.json") for name in ("first", "second")
        )
        for record in (first, second):
            for name in ("started", "ended", "time"):
                del record[name]
        assert first == second, "but for its time, a record is the same too"
        assert first["deterministic"] is True
        assert first["determinism"]["not_bit_for_bit"] == []
        assert first["determinism"]["processes"] == 1
