"""Several processes train each run together: two of them under ``torchrun``, with gloo, on a tiny CLIP."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from attndrift.files import read_json
from attndrift.results.tables import read_tables

STUDY = """
name: together
shared:
  model: {model}
  dataset: digits
  train_per_class: 7
  validation_per_class: 2
  probe_size: 21
  test_limit: 33
  epochs: 2
  batch_size: 23
  learning_rate: 1e-3
  transfer: [objects]
  transfer_limit: 51
  monitor_zero_shot_images: 25
  evaluations_per_epoch: 2
  checkpoints_per_epoch: 3
  map_images: 2
  threads: 1
runs:
"""

# 70 images in batches of 23: the last has one image, which leaves a process without any. The images of
# `broken` cannot be read, which fails in both processes; it is the first of the runs, so that the others go on after it.
RUNS = """
  - {method: full, dataset: broken, source: {path: broken}}
  - {method: none}
  - {method: full}
  - {method: lora, lora_rank: 4, lora_dropout: 0.0}
  - {method: full, loss: "attention_preservation:1+l2_sp:1+embedding_cosine:1+reference_distillation:1", reference: tiles, reference_images: 20}
  - {method: full, batch_size: 24, loss: "entropy_floor:1", entropy_floor_fraction: 1.0, gradient_accumulation: 2}
"""

WITH_DROPOUT = """
  - {method: lora, lora_rank: 4, epochs: 6}
  - {method: full, loss: "entropy_floor:1", entropy_floor_fraction: 1.0}
"""


def _study(tmp_path: Path, model: Path, runs: str) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.format(model=model) + runs)
    return path


def _start(tmp_path: Path, output: str, *, processes: int, **environment: str) -> subprocess.Popen[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] * (processes > 1)
    command = [sys.executable, *launcher, "-m", "attndrift", "run", "study.yaml", "--output", output]
    known = os.environ | {"ATTNDRIFT_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"} | environment
    return subprocess.Popen(
        command, cwd=tmp_path, env=known, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _run(tmp_path: Path, output: str, *, processes: int, **environment: str) -> tuple[int, str]:
    process = _start(tmp_path, output, processes=processes, **environment)
    said = process.communicate(timeout=400)[0]
    return process.returncode, said


def _differences(left: pd.DataFrame, right: pd.DataFrame) -> dict[str, float]:
    """Largest absolute difference of every numeric column; all others must be equal."""
    assert list(left.columns) == list(right.columns)
    found = {}
    for name in left.columns:
        if pd.api.types.is_numeric_dtype(left[name].dtype) and not pd.api.types.is_bool_dtype(left[name].dtype):
            a, b = (frame[name].astype("Float64").to_numpy(dtype=float, na_value=np.nan) for frame in (left, right))
            np.testing.assert_array_equal(np.isnan(a), np.isnan(b), err_msg=name)
            found[name] = float(np.nanmax(np.abs(a - b), initial=0.0))
        else:
            pd.testing.assert_series_equal(left[name], right[name])
    return found


@pytest.mark.slow
@pytest.mark.ci("torchrun")
def test_two_processes_make_the_run_of_one(tiny_clip: Path, tmp_path: Path) -> None:
    _study(tmp_path, tiny_clip, RUNS)
    for name in (f"{split}/{label}/{i}.png" for split in ("train", "test") for label in "ab" for i in range(40)):
        (tmp_path / "broken" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "broken" / name).write_bytes(b"no image")
    code, said = _run(tmp_path, "one", processes=1)
    assert code == 1, said
    code, said = _run(tmp_path, "two", processes=2)
    assert code == 1, said
    assert said.count("1 failed, 5 finished") == 1, "the main process alone reports"
    one, two = read_tables(tmp_path / "one"), read_tables(tmp_path / "two")
    for name in ("runs", "history", "layers"):
        for column, difference in _differences(getattr(one, name), getattr(two, name)).items():
            # The values themselves to 1e-6, the training loss to 1e-4; a change in percent magnifies its difference.
            # An effective rank is near ten, and small singular values count in it; a residual is a square root.
            wide = "loss" in column or column.endswith("_pct") or column.startswith("procrustes")
            wide = wide or column.startswith("effective_rank")
            allowed = 1e-3 if column == "effective_rank_change_pct" else 1e-4 if wide else 1e-6
            assert difference <= allowed, f"{name}.{column} differs by {difference}"
    for run in (tmp_path / "one" / "runs").iterdir():
        again = tmp_path / "two" / "runs" / run.name
        ours, theirs = ({p.relative_to(f) for f in [r] for p in r.rglob("*")} for r in (run, again))
        assert {p for p in ours if "events" not in p.name} == {p for p in theirs if "events" not in p.name}
        record = read_json(again / "record.json")
        if record["status"] == "finished":
            assert record["processes"] == 2
            assert read_json(run / "record.json")["processes"] == 1
            events = list((again / "tensorboard").glob("*"))
            assert len(events) == len(list((run / "tensorboard").glob("*"))), "one process writes them"
    failed = read_json(tmp_path / "two" / "runs" / "broken_full_lr0.001_s42" / "record.json")
    assert "cannot be read" in failed["problem"] or "unreadable" in failed["problem"], failed["problem"]


def _children(parent: int) -> dict[int, int]:
    """Process by rank among the children of a launcher."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                words = dict(w.partition("=")[::2] for w in (folder / "environ").read_text().split("\0"))
                found[int(words["RANK"])] = int(folder.name)
        except (OSError, KeyError, ValueError):
            continue
    return found


@pytest.fixture(scope="module")
def undisturbed(tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study with dropout that two processes ran from beginning to end."""
    folder = tmp_path_factory.mktemp("together")
    _study(folder, tiny_clip, WITH_DROPOUT)
    code, said = _run(folder, "undisturbed", processes=2)
    assert code == 0, said
    return folder / "undisturbed"


@pytest.mark.slow
@pytest.mark.ci("torchrun")
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the processes in /proc")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_all_and_the_run_goes_on_where_it_was(
    undisturbed: Path, tiny_clip: Path, tmp_path: Path, rank: int
) -> None:
    _study(tmp_path, tiny_clip, WITH_DROPOUT)
    process = _start(tmp_path, "disturbed", processes=2)
    deadline = time.monotonic() + 300
    while not list((tmp_path / "disturbed").glob("runs/*lora*/resume/step-*")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.005)
    os.kill(_children(process.pid)[rank], signal.SIGKILL)
    said = process.communicate(timeout=200)[0]
    assert process.returncode != 0
    assert "Signal 9 (SIGKILL)" in said, said
    assert not list((tmp_path / "disturbed").glob("runs/*/record.json")), "no half run is recorded"
    code, said = _run(tmp_path, "disturbed", processes=2)
    assert code == 0, said
    assert "goes on from step-" in (next((tmp_path / "disturbed").glob("runs/*lora*/log.txt"))).read_text()
    for name in ("runs", "history", "layers"):
        again = (tmp_path / "disturbed" / f"{name}.parquet").read_bytes()
        assert again == (undisturbed / f"{name}.parquet").read_bytes(), f"{name} differs"


BROKEN = """
import datetime, importlib, os

if os.environ.get("RANK") == "1":
    def broken(self, *args, **kwargs):
        raise MemoryError("no memory left for this batch")

    importlib.import_module("attndrift.study.training.loss").TrainingLoss.__call__ = broken
    importlib.import_module("attndrift.study.distributed").PATIENCE = datetime.timedelta(seconds=2)
"""


@pytest.mark.slow
def test_a_process_that_fails_alone_ends_all_with_its_message(tiny_clip: Path, tmp_path: Path) -> None:
    _study(tmp_path, tiny_clip, RUNS.replace("  - {method: full, dataset: broken, source: {path: broken}}\n", ""))
    (tmp_path / "sitecustomize.py").write_text(BROKEN)
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    code, said = _run(tmp_path, "study", processes=2, PYTHONPATH=paths)
    assert code != 0
    assert "process 1 of 2: MemoryError: no memory left for this batch" in said, said
    assert "the same command goes on" in said
    records = [read_json(path)["status"] for path in (tmp_path / "study").glob("runs/*/record.json")]
    assert records == ["finished"], "the pretrained model, which trains nothing"
    code, said = _run(tmp_path, "study", processes=1)
    assert code == 0, said
