"""A file reaches the disk before its name does: else a power cut leaves a name without its content."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from attndrift.drift.recording import write_parquet
from attndrift.files import new_folder, write_bytes, write_json, write_text
from attndrift.results.tables import Tables, write_tables
from attndrift.study.settings import RunSettings
from attndrift.study.training import states as resume
from attndrift.study.training.metric_buffer import Progress


def _tables(folder: Path) -> None:
    runs = pd.DataFrame(
        {"run_id": ["a"], "dataset": ["tiles"], "method": ["full"], "seed": [1], "entropy_final": [1.0]}
    )
    losses = pd.DataFrame({"run_id": ["a"], "loss": ["l2_sp"], "weight": [0.1]})
    write_tables(Tables(runs=runs, losses=losses), folder)


def _folder(folder: Path) -> None:
    with new_folder(folder / "checkpoint") as temporary:
        (temporary / "adapter").mkdir()
        for name in ("model.safetensors", "adapter/adapter_config.json"):
            (temporary / name).write_text(name)


def _state(folder: Path) -> None:
    weights = {"weight": torch.zeros(2)}
    resume.write_tensors(folder / ".state", weights, {"optimizer": weights})
    resume.publish(folder / ".state", folder / "resume", 3, Progress(), RunSettings(dataset="digits"))


WRITERS: dict[str, tuple[Callable[[Path], Any], int]] = {
    "tables": (_tables, 4),
    "a record": (lambda folder: write_json(folder / "record.json", {"status": "finished"}), 1),
    "a history": (lambda folder: write_text(folder / "history.jsonl", "{}\n"), 1),
    "arrays": (lambda folder: write_bytes(folder / "maps.npz", np.arange(9).tobytes()), 1),
    "a checkpoint": (_folder, 1),
    "a state": (_state, 3),
    "alerts": (lambda folder: write_parquet(pa.table({"step": [1]}), folder / "alerts.parquet"), 1),
}


@pytest.mark.parametrize("what", WRITERS)
def test_every_file_is_synced_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    synced: set[int] = set()
    renamed: list[str] = []
    replace = os.replace

    def checked(source: str | Path, target: str | Path) -> None:
        path = Path(source)
        for file in [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]:
            assert file.stat().st_ino in synced, f"{file.name} of {target} is not on the disk yet"
        renamed.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.add(os.fstat(descriptor).st_ino))
    monkeypatch.setattr(os, "replace", checked)
    write, count = WRITERS[what]
    write(tmp_path)
    assert len(renamed) >= count, renamed
