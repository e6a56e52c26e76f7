"""What is written has the permissions that the umask says: private where that is wanted, shared in a group's folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from small_study import interrupt, run, run_folder, small_study
from transformers import CLIPModel

from attndrift.cli.reporting import report_on
from attndrift.drift import DriftMonitor
from attndrift.drift.best_state import BestState
from attndrift.drift.watch import DriftWatch
from attndrift.files import new_folder, write_json
from attndrift.importing.importer import import_tables
from attndrift.process_group import Processes

MASKS = {"private": 0o077, "group writes": 0o002, "group reads": 0o027}


@pytest.fixture(params=MASKS.values(), ids=MASKS)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def _wrong(folder: Path, umask: int) -> list[str]:
    """Files and folders below ``folder`` with other permissions than ``umask`` gives."""
    found = []
    for path in folder.rglob("*"):
        wanted = (0o777 if path.is_dir() else 0o666) & ~umask
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode != wanted:
            found.append(f"{path.relative_to(folder)}: {mode:o}, not {wanted:o}")
    return found


@pytest.mark.parametrize(
    "umask",
    [0o077, *(pytest.param(MASKS[name], marks=pytest.mark.slow) for name in ("group writes", "group reads"))],
    indirect=True,
)
@pytest.mark.slow
def test_a_study_and_its_report_follow_the_umask(tiny_clip: Path, tmp_path: Path, umask: int) -> None:
    study, folder = small_study(tiny_clip), tmp_path / "study"
    interrupt(study, folder)
    states = list((run_folder(study, folder) / "resume").glob("step-*/*.safetensors"))
    assert states
    assert not _wrong(folder, umask)
    run(study, folder)
    report_on([folder], folder)
    written = {path.suffix for path in folder.rglob("*")}
    assert written >= {".json", ".jsonl", ".parquet", ".safetensors", ".npz", ".png", ".svg", ".csv", ".md", ".html"}
    assert not _wrong(folder, umask)


@pytest.mark.one_in(3)
def test_single_writers_follow_the_umask(tiny_clip: Path, tmp_path: Path, umask: int) -> None:
    clip = CLIPModel.from_pretrained(tiny_clip).eval()
    size = clip.config.vision_config.image_size
    out = tmp_path / "out"
    write_json(out / "a" / "b.json", {})
    with new_folder(out / "checkpoint") as folder:
        (folder / "deep").mkdir()
        save_file({"a": torch.zeros(1)}, folder / "deep" / "a.safetensors")
    BestState(clip, out / "best", Processes).keep(1)
    with DriftWatch(DriftMonitor(clip, torch.rand(4, 3, size, size)), 1, folder=out / "drift", echo=None) as watch:
        watch.step(1)
    pd.DataFrame({"run_id": ["a"], "method": ["full"]}).to_csv(out / "runs.csv", index=False)
    import_tables(out / "runs.csv", out / "imported")
    (out / "again").mkdir()
    import_tables(out / "runs.csv", out / "again")
    assert len(list(out.rglob("*"))) > 12
    assert not _wrong(out, umask)
