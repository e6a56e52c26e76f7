"""A study folder that somebody else has prepared: nothing in it is ever unpickled, whichever engine goes on with it."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import attndrift
from attndrift.cli.run_table import StudyTable
from attndrift.study.launchers.private_folder import NotPrivate, private_folder
from attndrift.study.launchers.slurm import SlurmLauncher
from attndrift.study.runner import run_study

sys.path.append(str(Path(__file__).parent.parent / "study"))
from made_runs import MadeRuns, study_of


class Bomb:
    """Unpickled, it writes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def _numbers() -> range:
    """Those of the processes that start next, by which submitit's local executor names its jobs."""
    return range(os.getpid() + 1, os.getpid() + 4000)


def _results(folder: Path, bomb: bytes) -> None:
    for number in _numbers():
        (folder / str(number)).mkdir(parents=True)
        (folder / str(number) / f"{number}_0_result.pkl").write_bytes(bomb)


def _as_jobs(jobs: Path, bomb: bytes, run: str) -> None:
    _results(jobs, bomb)


def _of_an_earlier_driver(jobs: Path, bomb: bytes, run: str) -> None:
    _results(jobs / "driver-abcd1234" / f"{run}-0", bomb)


def _submitted(jobs: Path, bomb: bytes, run: str) -> None:
    for number in _numbers():
        (jobs / str(number)).mkdir(parents=True)
        (jobs / str(number) / f"{number}_submitted.pkl").write_bytes(bomb)


def _behind_a_link(jobs: Path, bomb: bytes, run: str) -> None:
    inside = jobs.parent / "runs" / run
    _results(inside / "jobs", bomb)
    jobs.symlink_to(inside / "jobs")


def _progress(jobs: Path, bomb: bytes, run: str) -> None:
    jobs.mkdir()
    (jobs / f"{run}.json").write_text(json.dumps({"messages": [["__init__", None]], "begun": None}))
    _results(jobs / "deep" / run, bomb)


@pytest.mark.slow
@pytest.mark.ci("slurm")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("plant", [_as_jobs, _of_an_earlier_driver, _submitted, _behind_a_link, _progress])
def test_results_that_were_planted_are_not_those_of_a_job(
    tmp_path: Path, plant: Callable[[Path, bytes, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent / "study"), prepend=os.pathsep)
    study, marker, tally = study_of(1), tmp_path / "code-ran", tmp_path / "tally"
    tally.mkdir()
    table = StudyTable(console=Console(file=io.StringIO(), width=140))
    with pytest.raises(KeyboardInterrupt):
        run_study(study, tmp_path / "s", _interrupted, table)
    plant(tmp_path / "s" / ".slurm", pickle.dumps(("success", Bomb(marker))), study.runs[0].run_id)
    engine = SlurmLauncher(parameters=["cluster=local", "timeout_min=10"], retries=1)
    # A job that dies writes no result of its own; under SLURM one that is there ends the wait for the job at once.
    outcome = run_study(study, tmp_path / "s", MadeRuns(tally, deaths=1), table, engine=engine)
    assert not marker.exists()
    assert outcome.count("finished") == 1
    assert MadeRuns(tally).starts(study.runs[0]) == [0, 2], "the job itself has run"


def _interrupted(*_: object) -> dict[str, Any]:
    raise KeyboardInterrupt


FOREIGN = 12345
"""A user and a group that are not ours."""

OPEN: dict[str, Callable[[Path], None]] = {
    "others may write": lambda jobs: jobs.chmod(0o707),
    "others may write, sticky": lambda jobs: jobs.chmod(0o1777),
    "a group may write": lambda jobs: (os.chown(jobs, -1, FOREIGN), jobs.chmod(0o770))[1],
    "belongs to another user": lambda jobs: os.chown(jobs, FOREIGN, -1),
    "study folder open to others": lambda jobs: jobs.parent.chmod(0o777),
    "study folder open to a group": lambda jobs: (os.chown(jobs.parent, -1, FOREIGN), jobs.parent.chmod(0o2775))[1],
    "study folder of another user": lambda jobs: os.chown(jobs.parent, FOREIGN, -1),
    "folder of studies open to others": lambda jobs: jobs.parent.parent.chmod(0o777),
}


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="gives folders to other users")
@pytest.mark.parametrize("how", OPEN)
def test_jobs_are_not_kept_where_others_could_put_theirs(tmp_path: Path, how: str) -> None:
    jobs = tmp_path / "studies" / "mine" / ".slurm"
    jobs.mkdir(parents=True)
    OPEN[how](jobs)
    with pytest.raises(NotPrivate, match=r"--scheduler folder=PATH"):
        private_folder(jobs)
    link = tmp_path / "link"
    link.symlink_to(jobs)
    with pytest.raises(NotPrivate):
        private_folder(link)


def test_every_driver_has_a_folder_of_its_own(tmp_path: Path) -> None:
    made = [private_folder(tmp_path / "jobs") for _ in range(3)]
    assert len({*made}) == 3
    assert [folder.stat().st_mode & 0o077 for folder in (tmp_path / "jobs", *made)] == [0] * 4


def test_no_reader_takes_pickles() -> None:
    """Every call that could unpickle is told not to; one reads what the driver has pickled for its own workers."""
    found = []
    for path in sorted(Path(attndrift.__file__).parent.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if "load" not in text and "pickle" not in text.lower():
            continue
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            if "load" not in name and "pickle" not in name.lower():
                continue
            options = {word.arg: ast.unparse(word.value) for word in node.keywords}
            reads = name.endswith(("pickle.load", "pickle.loads", "joblib.load", "Unpickler", "read_pickle"))
            reads |= name == "torch.load" and options.get("weights_only") != "True"
            reads |= name in ("np.load", "numpy.load") and options.get("allow_pickle") != "False"
            if reads:
                found.append(f"{path.name}: {name}")
    assert found == ["remote.py: pickle.loads"]
