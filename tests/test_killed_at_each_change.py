"""A process killed right before each change that a run makes to the study folder: what is lost, and what is left behind.

Runs on the CPU, in processes of their own, on generated images and a tiny CLIP made from a config.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from kill_at_change import run_and_count

SHARED = """
name: killed
shared: {model: '%s', dataset: digits, train_per_class: 4, validation_per_class: 1, probe_size: 10, test_limit: 10, epochs: 3,
         batch_size: 20, learning_rate: 1e-3, monitor_zero_shot_images: 0, evaluations_per_epoch: 1, map_images: 1, threads: 1,
         transfer: [objects], transfer_limit: 40}
runs:
  - %s
"""

RUNS = {
    "finished": "{method: lora, lora_rank: 2, keep: best, transfer: []}",
    "finished, all kept": "{method: linear_probe, keep: all}",
    "diverged": "{method: full, learning_rate: 10, weight_decay: 1, epochs: 8, keep: best, transfer: []}",
    "pretrained": "{method: none}",
}
INTERVAL = 2
"""Steps between two resumable states: one an epoch."""

TAIL = 15
"""Changes at the end of a run that CI tries: its record, and what is removed after it. The slow group tries all."""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks processes, and looks into /proc")


@dataclass
class Undisturbed:
    """A study that ran in one process from beginning to end."""

    text: str
    folder: Path
    cache: Path
    steps: list[int]
    changes: int


def _process(text: str, folder: Path, cache: Path, tally: Path, kill_at: int | None = None) -> int:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["attndrift.study.forkserver_preload", "kill_at_change"])
    process = context.Process(target=run_and_count, args=(text, folder, cache, tally, kill_at))
    process.start()
    process.join(300)
    code = process.exitcode
    process.close()
    assert code is not None, "it hangs"
    return code


def _steps(tally: Path) -> list[int]:
    lines = tally.read_text().splitlines() if tally.exists() else []
    return [int(line.split()[1]) for line in lines if line.startswith("step ")]


def _undisturbed(root: Path, model: Path, run: str) -> Undisturbed:
    text = SHARED % (model, RUNS[run])
    assert _process(text, root / "warm", root / "cache", root / "warm.txt") == 0, "the caches are filled once"
    assert _process(text, root / "study", root / "cache", root / "tally.txt") == 0
    changes = int((root / "tally.txt").read_text().split()[-1])
    return Undisturbed(text, root / "study", root / "cache", _steps(root / "tally.txt"), changes)


def _files(folder: Path) -> set[str]:
    """All files and folders, but those of TensorBoard, of which each process has one."""
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if "tfevents" not in p.name}


def _kill_and_compare(study: Undisturbed, root: Path, kill_at: int) -> None:
    folder, tally = root / "study", root / "tally.txt"
    code = _process(study.text, folder, study.cache, tally, kill_at)
    assert code == -signal.SIGKILL, f"change {kill_at} did not come"
    left = sorted(_files(folder)) if folder.exists() else []
    assert _process(study.text, folder, study.cache, tally) == 0, f"killed before change {kill_at}, which left {left}"
    where = f"killed before change {kill_at} of {study.changes}, which left {left}"
    again = len(_steps(tally)) - len(study.steps)
    assert again <= INTERVAL, f"{again} steps were computed again: {where}"
    assert _files(folder) == _files(study.folder), where
    for path in study.folder.glob("*.parquet"):
        assert (folder / path.name).read_bytes() == path.read_bytes(), f"{path.name} differs: {where}"
    shutil.rmtree(root)


@pytest.mark.slow
@pytest.mark.ci("kill")
@pytest.mark.parametrize("run", ["finished", "diverged"])
def test_a_kill_at_the_end_of_a_run_costs_one_interval_and_leaves_nothing(
    run: str, tiny_clip: Path, tmp_path: Path
) -> None:
    study = _undisturbed(tmp_path, tiny_clip, run)
    for kill_at in range(max(1, study.changes - TAIL), study.changes + 1):
        (tmp_path / str(kill_at)).mkdir()
        _kill_and_compare(study, tmp_path / str(kill_at), kill_at)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("run", RUNS)
def test_a_kill_at_any_change_costs_one_interval_and_leaves_nothing(run: str, tiny_clip: Path, tmp_path: Path) -> None:
    study = _undisturbed(tmp_path, tiny_clip, run)
    every = int(os.environ.get("ATTNDRIFT_KILL_EVERY", "1"))
    for kill_at in range(1, study.changes + 1, every):
        (tmp_path / str(kill_at)).mkdir()
        _kill_and_compare(study, tmp_path / str(kill_at), kill_at)
