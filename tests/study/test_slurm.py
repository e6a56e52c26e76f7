"""Studies as jobs, with submitit's local executor: the same tables, and jobs that are taken away or die."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import psutil
import pytest
from made_runs import MadeRuns, study_of, tables_of
from rich.console import Console

from attndrift.cli.run_table import StudyTable
from attndrift.files import read_json
from attndrift.study.launchers.slurm import SlurmLauncher
from attndrift.study.runner import run_study

pytest.importorskip("submitit")

pytestmark = [
    pytest.mark.slow,  # clusters, servers and schedulers take their time to start
    # Of submitit, which leaves its processes to the system; nothing of ours.
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)


def _local(retries: int = 3) -> SlurmLauncher:
    return SlurmLauncher(retries=retries, parameters=["cluster=local", "timeout_min=10"])


def _table() -> StudyTable:
    return StudyTable(console=Console(file=io.StringIO(), width=140))


def _undisturbed(tmp_path: Path, seeds: int) -> dict[str, bytes]:
    tally = tmp_path / "undisturbed-tally"
    tally.mkdir()
    run_study(study_of(seeds), tmp_path / "undisturbed", MadeRuns(tally), _table())
    return tables_of(tmp_path / "undisturbed")


@pytest.mark.ci("slurm")
def test_jobs_give_the_same_tables_and_those_that_die_go_on_from_their_last_state(tmp_path: Path) -> None:
    study, runs = study_of(2), MadeRuns(tmp_path, deaths=1, pause=0.1)
    table = _table()
    outcome = run_study(study, tmp_path / "s", runs, table, engine=_local())
    assert outcome.count("finished") == 2
    assert [runs.starts(run) for run in study.runs] == [[0, 2], [0, 2]]
    assert tables_of(tmp_path / "s") == _undisturbed(tmp_path, 2)
    assert (tmp_path / "s" / ".slurm").stat().st_mode & 0o077 == 0, "jobs unpickle what lies there"
    again = run_study(study, tmp_path / "s", runs, _table(), engine=_local())
    assert again.count("kept") == 2


@pytest.mark.ci("slurm")
def test_a_job_that_is_preempted_is_queued_again_and_goes_on(tmp_path: Path) -> None:
    study, runs = study_of(1), MadeRuns(tmp_path, pause=0.7)

    def preempt() -> None:
        deadline = time.monotonic() + 120
        while not any((tmp_path / "s").glob("runs/*/resume/step-2")) and time.monotonic() < deadline:
            time.sleep(0.05)
        for pid in [
            int(line.split()[1]) for path in tmp_path.glob("tiles*.txt") for line in path.read_text().splitlines()
        ]:
            if psutil.pid_exists(pid):
                # What SLURM sends before it takes a job's node away.
                os.kill(pid, signal.SIGUSR2)

    threading.Thread(target=preempt).start()
    outcome = run_study(study, tmp_path / "s", runs, _table(), engine=_local(retries=0))
    assert outcome.count("finished") == 1
    starts = runs.starts(study.runs[0])
    assert len(starts) == 2
    assert starts[1] >= 2
    assert tables_of(tmp_path / "s") == _undisturbed(tmp_path, 1)


def test_a_job_that_dies_too_often_fails_alone_with_its_number(tmp_path: Path) -> None:
    study, runs = study_of(2), MadeRuns(tmp_path, deaths=9)
    outcome = run_study(study.select([study.runs[1].run_id]), tmp_path / "s", runs, _table(), engine=_local(retries=1))
    assert outcome.count("failed") == 1
    record = read_json(tmp_path / "s" / "runs" / study.runs[1].run_id / "record.json")
    assert "its job died 2 times" in record["problem"]


def test_what_slurm_cannot_give_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--gpus-per-run 0\.5: SLURM gives whole ones"):
        SlurmLauncher(gpus_per_run=0.5)
    with pytest.raises(ValueError, match="write it as KEY=VALUE"):
        SlurmLauncher(parameters=["partition"])
    open_to_all = tmp_path / "jobs"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    engine = SlurmLauncher(parameters=["cluster=local", f"folder={open_to_all}"])
    with pytest.raises(ValueError, match="others may write there"):
        run_study(study_of(1), tmp_path / "s", MadeRuns(tmp_path), _table(), engine=engine)


@pytest.mark.slow
def test_a_study_on_a_real_slurm_and_a_job_that_it_requeues(tmp_path: Path) -> None:
    """Where one is at hand: scripts/one_node_slurm.sh starts one from Debian's packages."""
    if shutil.which("sinfo") is None or subprocess.run(["sinfo"], capture_output=True, check=False).returncode:
        pytest.skip("no SLURM answers here")
    study, runs = study_of(3), MadeRuns(tmp_path, pause=3.0)
    engine = SlurmLauncher(parameters=["timeout_min=30", "mem_gb=0"], retries=0)

    def requeue() -> None:
        deadline = time.monotonic() + 300
        while not any((tmp_path / "s").glob("runs/*/resume/step-2")) and time.monotonic() < deadline:
            time.sleep(0.1)
        run = next((tmp_path / "s").glob("runs/*/resume/step-2")).parent.parent.name
        queue = ["squeue", "-h", "-t", "R", "-n", run, "-o", "%A"]
        job = subprocess.run(queue, capture_output=True, text=True, check=True).stdout.split()[0]
        subprocess.run(["scontrol", "requeue", job], check=True)

    threading.Thread(target=requeue).start()
    outcome = run_study(study, tmp_path / "s", runs, _table(), engine=engine)
    assert outcome.count("finished") == 3
    starts = [runs.starts(run) for run in study.runs]
    assert sum(len(one) for one in starts) == 4
    assert max(max(one) for one in starts) >= 2
    assert tables_of(tmp_path / "s") == _undisturbed(tmp_path, 3)
