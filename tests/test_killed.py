"""A real process, really killed: the study that goes on ends in the tables of one that was not disturbed.

Runs on the CPU, in a process of its own, on generated images and a tiny CLIP made from a config.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from attndrift.results.tables import read_tables

STUDY = """
name: killed
shared:
  model: {model}
  dataset: digits
  selection: validation
  train_per_class: 8
  validation_per_class: 2
  probe_size: 20
  test_limit: 20
  epochs: 2
  batch_size: 8
  learning_rate: 1e-3
  transfer: [objects]
  transfer_limit: 100
  monitor_zero_shot_images: 100
  evaluations_per_epoch: 2
  checkpoints_per_epoch: 5
  map_images: 2
  threads: 1
runs:
  - {{method: none}}
  - {{method: full}}
  - {{method: lora, lora_rank: 4}}
  - {{method: full, loss: "attention_preservation:0.1"}}
  - {{method: full, loss: "entropy_floor:0.1", gradient_accumulation: 2}}
"""


def _start(study: Path, folder: Path, cache: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "attndrift.cli.main", "run", str(study), "--output", str(folder), *options]
    environment = os.environ | {"ATTNDRIFT_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )


def _finish(study: Path, folder: Path, cache: Path, *options: str) -> str:
    process = _start(study, folder, cache, *options)
    output = process.communicate(timeout=500)[0].decode()
    assert process.returncode == 0, output
    return output


def _progress(folder: Path) -> tuple[int, int]:
    """Finished runs, and lines of history: neither ever falls."""
    records = len(list(folder.glob("runs/*/record.json")))
    states = [int(p.name.removeprefix("step-")) for p in folder.glob("runs/*/resume/step-*")]
    return records, max(states, default=0)


@dataclass
class Undisturbed:
    """A study that ran in one process from beginning to end, and how long that took."""

    study: Path
    folder: Path
    cache: Path
    seconds: float


@pytest.fixture(scope="module")
def undisturbed(tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    root = tmp_path_factory.mktemp("killed")
    study = root / "study.yaml"
    study.write_text(STUDY.format(model=tiny_clip))
    started = time.monotonic()
    _finish(study, root / "undisturbed", root / "cache")
    return Undisturbed(study, root / "undisturbed", root / "cache", time.monotonic() - started)


def _kill_and_compare(undisturbed: Undisturbed, tmp_path: Path, kills: int, seed: int) -> int:
    """Kill a study ``kills`` times, let it go on to its end and compare; returns how often it was killed."""
    study, cache, duration = undisturbed.study, undisturbed.cache, undisturbed.seconds
    moments = random.Random(seed)
    disturbed = tmp_path / "disturbed"
    finished = 0
    struck = 0
    studies = 1
    while struck < kills:
        begun = time.monotonic()
        process = _start(study, disturbed, cache)
        # Most of the time goes into starting; a kill after that strikes while a run is under way.
        deadline = begun + moments.uniform(0.35, 0.95) * duration
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.01)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            struck += 1
        elif finished == 0:
            # The undisturbed study was slower, on a busier machine: aim earlier from now on.
            duration = min(duration, time.monotonic() - begun)
        process.communicate()
        records, _ = _progress(disturbed)
        assert records >= finished, "a finished run was lost"
        finished = records
        if finished == 5:
            # Done before all kills were spent: begin another study with what is left of them.
            _finish(study, disturbed, cache)
            _compare(undisturbed.folder, disturbed)
            disturbed, finished = tmp_path / f"disturbed-{studies}", 0
            studies += 1
    _finish(study, disturbed, cache)
    _compare(undisturbed.folder, disturbed)
    return struck


def _compare(undisturbed: Path, disturbed: Path) -> None:
    for name in ("runs", "history", "layers"):
        expected = (undisturbed / f"{name}.parquet").read_bytes()
        assert (disturbed / f"{name}.parquet").read_bytes() == expected, f"{name} differs"
    for weights in undisturbed.glob("runs/*/checkpoints/**/*.safetensors"):
        again = disturbed / weights.relative_to(undisturbed)
        assert again.read_bytes() == weights.read_bytes(), weights.name
    runs = read_tables(disturbed).runs
    assert runs["status"].tolist() == ["finished"] * 5
    assert not list(disturbed.glob("runs/*/resume/step-*")), "resumable states are removed when a run is done"


@pytest.mark.slow
@pytest.mark.ci("kill")
def test_a_study_that_was_killed_ends_in_the_same_tables(undisturbed: Undisturbed, tmp_path: Path) -> None:
    assert _kill_and_compare(undisturbed, tmp_path, kills=1, seed=0) == 1


@pytest.mark.slow
@pytest.mark.ci("kill")
def test_two_runs_at_a_time_end_in_the_same_tables_though_the_first_process_is_killed(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    folder = tmp_path / "two"
    process = _start(undisturbed.study, folder, undisturbed.cache, "--jobs", "2")
    while not list(folder.glob("runs/*/resume/step-*")):
        assert process.poll() is None, process.communicate()[0].decode()
        time.sleep(0.01)
    # That process alone: those that it started have to end by themselves, and to free their runs.
    process.kill()
    process.communicate(timeout=60)
    assert len(list(folder.glob("runs/*/record.json"))) < 5
    output = _finish(undisturbed.study, folder, undisturbed.cache, "--jobs", "2")
    assert "busy" not in output
    _compare(undisturbed.folder, folder)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_study_killed_at_ten_random_moments_ends_in_the_same_tables(undisturbed: Undisturbed, tmp_path: Path) -> None:
    assert _kill_and_compare(undisturbed, tmp_path, kills=10, seed=1) == 10
