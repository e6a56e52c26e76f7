"""`benchmarks/gpu.sh`: its arithmetic, its drivers, and the whole script in its tiny form."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.gpu import compared, difference, within
from benchmarks.gpu_driver import TINY, Steps, measure
from benchmarks.result import ROOT

CPU = torch.device("cpu")


def test_rows_are_compared_round_by_round() -> None:
    (row,) = compared(
        {"step": {"base": [1.0, 2.0, 4.0], "new": [2.0, 2.0, 6.0]}, "only base": {"base": [1.0], "new": []}}
    )
    assert (row["base ms"], row["new ms"], row["n"]) == (2000.0, 2000.0, 3)
    assert (row["new / base"], row["low"], row["high"]) == (1.5, 1.0, 2.0)


def test_rows_of_the_new_commit_are_compared_with_each_other() -> None:
    rows = {
        name: {"base": [9.0], "new": [seconds]}
        for name, seconds in {"step": 2.0, "step, observed": 3.0, "step, CUDA graph": 1.0}.items()
    }
    (found,) = within(rows)
    assert (found["what"], found["ratio"], found["at most"]) == ("step, observed", 1.5, 1.05)


def test_the_largest_difference_of_checkpoints(tmp_path: Path) -> None:
    for name, value in (("one", 1.0), ("other", 1.25)):
        folder = tmp_path / name / "runs" / "run" / "checkpoints" / "final"
        folder.mkdir(parents=True)
        save_file({"weight": torch.tensor([1.0, value])}, folder / "model.safetensors")
    assert difference(tmp_path / "one", tmp_path / "one") == "1 files, largest difference 0"
    assert difference(tmp_path / "one", tmp_path / "other") == "1 files, largest difference 0.25"
    assert (
        difference(tmp_path / "one", tmp_path / "absent") == "checkpoints cannot be compared: 0 of 1 files are in both"
    )


def test_the_drivers_measure_every_row() -> None:
    found = measure(TINY, CPU)
    assert {"forward", "forward, observed", "step", "step, observed", "drift"} <= set(found)
    assert {row for row in found if "APR" in row or "floor" in row} == set(Steps(TINY, CPU).losses())
    assert min(found.values()) > 0


def test_a_python_without_torch_is_named_first(tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -I "$@"\n')
    bare.chmod(0o755)
    command = [str(ROOT / "benchmarks" / "gpu.sh")]
    done = subprocess.run(command, env=os.environ | {"PYTHON": str(bare)}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "has no torch" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_script_in_its_tiny_form(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHON": sys.executable, "GPU_SH_TINY": "1", "OUT": str(tmp_path)}
    command = [str(ROOT / "benchmarks" / "gpu.sh"), str(ROOT), str(ROOT)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert done.returncode == 0, found["checks"]
    assert "largest difference 0" in found["checks"]["resumed run (new)"]
    assert {"step", "whole run, a step"} <= {row["row"] for row in found["compared"]}
