"""Faults of one machine, made for real: each ends in a clear message and a study that goes on to the same tables."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from small_study import interrupt, run, run_folder, small_study, tables_of

from attndrift.cli import main as cli
from attndrift.files import read_json
from attndrift.study.settings import Study
from attndrift.study.training import states as resume


@pytest.fixture(scope="module")
def study(tiny_clip: Path) -> Study:
    return small_study(tiny_clip)


@pytest.fixture(scope="module")
def undisturbed(study: Study, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed") / "study"
    assert run(study, folder)["status"] == "finished"
    return tables_of(folder)


@pytest.fixture(scope="module")
def interrupted(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("interrupted") / "study"
    interrupt(study, folder)
    return folder


def _possible(*command: str) -> bool:
    return (
        shutil.which(command[0]) is not None
        and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )


def _problem(study: Study, folder: Path, **options: Any) -> str:
    """What is said where a run cannot write: in its record, or, where not even that can be written, by the command."""
    try:
        record = run(study, folder, **options)
    except OSError as error:
        for path in folder.glob("runs/*/record.json"):
            assert read_json(path)["status"] == "failed"
        text = f"{error}{cli.remedy(error)}"
        assert "the same command goes on" in text
        return text
    assert record["status"] == "failed"
    return str(record["problem"])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 150 KB, which is less than a checkpoint and a state take."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if not _possible("mount", "-t", "tmpfs", "-o", "size=150k", "tmpfs", str(disk)):
        pytest.skip("a file system cannot be mounted here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_is_said_and_the_study_goes_on_when_there_is_room(
    study: Study, undisturbed: dict[str, bytes], small_disk: Path
) -> None:
    folder = small_disk / "study"
    assert "No space left on device" in _problem(study, folder)
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    assert run(study, folder)["status"] == "finished"
    assert tables_of(folder) == undisturbed


def test_a_disk_that_fills_in_the_middle_leaves_a_whole_state(
    study: Study, undisturbed: dict[str, bytes], small_disk: Path
) -> None:
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    folder = small_disk / "study"
    ballast = small_disk / "ballast"

    def fill() -> None:
        with ballast.open("wb") as file:
            while True:
                try:
                    file.write(b"\0" * 65_536)
                    file.flush()
                except OSError:
                    return

    assert "No space left on device" in _problem(study, folder, at_step=(3, fill))
    states = run_folder(study, folder) / "resume"
    assert resume.newest(states, study.runs[0].settings, pytest.fail) == states / "step-2", "the state before is whole"
    ballast.unlink()
    assert run(study, folder)["status"] == "finished"
    assert "goes on from step-2" in (run_folder(study, folder) / "log.txt").read_text()
    assert tables_of(folder) == undisturbed


@pytest.fixture
def frozen(tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """Makes a folder and all below it unchangeable, for root too."""
    probe = tmp_path / "probe"
    probe.mkdir()
    if not (_possible("chattr", "+i", str(probe)) and _possible("chattr", "-i", str(probe))):
        pytest.skip("this file system has no immutable flag")
    done: list[Path] = []

    def freeze(folder: Path) -> None:
        done.append(folder)
        subprocess.run(["chattr", "-R", "+i", str(folder)], check=True)

    yield freeze
    for folder in done:
        subprocess.run(["chattr", "-R", "-i", str(folder)], check=True)


def test_a_folder_that_becomes_read_only_is_said_and_the_study_goes_on(
    study: Study,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    frozen: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said_elsewhere: list[object] = []
    monkeypatch.setattr(threading, "excepthook", said_elsewhere.append)
    folder = tmp_path / "study"
    assert "Operation not permitted" in _problem(study, folder, at_step=(3, lambda: frozen(folder)))
    assert not said_elsewhere, "no thread says it a second time"
    again = _problem(study, folder)
    assert "Operation not permitted" in again
    assert str(folder) in again
    subprocess.run(["chattr", "-R", "-i", str(folder)], check=True)
    assert run(study, folder)["status"] == "finished"
    assert tables_of(folder) == undisturbed


@pytest.mark.one_in(3)
@pytest.mark.parametrize("harm", ["truncated", "bit flipped", "emptied"])
@pytest.mark.parametrize("which", ["newest", "all"])
def test_a_damaged_state_is_passed_over_and_the_tables_are_the_same(
    study: Study, undisturbed: dict[str, bytes], interrupted: Path, tmp_path: Path, harm: str, which: str
) -> None:
    folder = tmp_path / "study"
    shutil.copytree(interrupted, folder)
    states = sorted((run_folder(study, folder) / "resume").glob("step-*"))
    assert [state.name for state in states] == ["step-2", "step-4"]
    for state in states if which == "all" else states[-1:]:
        path = state / resume.TRAINING
        content = bytearray(path.read_bytes())
        if harm == "truncated":
            content = content[: len(content) // 2]
        elif harm == "emptied":
            content = bytearray()
        else:
            content[len(content) // 2] ^= 0x10
        path.write_bytes(content)
    assert run(study, folder)["status"] == "finished"
    log = (run_folder(study, folder) / "log.txt").read_text()
    assert "step-4 is damaged (training.pt does not have its recorded checksum); an earlier state is used" in log
    assert ("goes on from step-2" in log) == (which == "newest")
    assert tables_of(folder) == undisturbed


@pytest.mark.one_in(2)
@pytest.mark.parametrize("hours", [-1, -24 * 400, 24 * 400])
def test_nothing_depends_on_the_order_of_the_clock(
    study: Study, undisturbed: dict[str, bytes], interrupted: Path, tmp_path: Path, hours: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The clock goes back (or far ahead) between the interruption and the resumption, and the files' times with it."""
    folder = tmp_path / "study"
    shutil.copytree(interrupted, folder)
    for place, path in enumerate(sorted(folder.rglob("*"))):
        moment = time.time() + 3600 * hours - place  # later files look older
        os.utime(path, (moment, moment))
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3600 * hours)
    assert run(study, folder)["status"] == "finished"
    assert "goes on from step-4" in (run_folder(study, folder) / "log.txt").read_text()
    assert tables_of(folder) == undisturbed


def test_a_table_cut_short_is_written_again_from_the_runs(
    study: Study, undisturbed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "study"
    run(study, folder)
    path = folder / "history.parquet"
    path.write_bytes(path.read_bytes()[:100])
    monkeypatch.setattr(sys, "argv", ["attndrift", "collect", str(folder)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert tables_of(folder) == undisturbed


@pytest.mark.slow
def test_two_drivers_share_a_study_and_neither_does_the_other_s_work(tiny_clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(
        f"name: shared\nshared: {{model: '{tiny_clip}', dataset: digits, train_per_class: 4, validation_per_class: 1, "
        "probe_size: 10, test_limit: 10, epochs: 2, batch_size: 20, monitor_zero_shot_images: 0, map_images: 1, threads: 1}\n"
        "runs: [{method: full, grid: {seed: [0, 1, 2, 3, 4, 5]}}]\n"
    )
    environment = os.environ | {"ATTNDRIFT_CACHE": str(tmp_path / "cache")}

    def start(folder: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "attndrift", "run", str(path), "-o", str(folder)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def done(driver: subprocess.Popen[str]) -> str:
        said = driver.communicate(timeout=400)[0]
        assert driver.returncode == 0, said
        return said

    done(start(tmp_path / "alone"))
    drivers = [start(tmp_path / "both") for _ in range(2)]
    said = [done(driver) for driver in drivers]
    assert sum(text.count(": finished") for text in said) == 6, "each run is done once"
    done(start(tmp_path / "both"))
    assert tables_of(tmp_path / "both") == tables_of(tmp_path / "alone")
