"""Studies on a Ray cluster: the same tables, and deaths of workers, nodes and drivers that lose nothing."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from made_runs import STEPS, MadeRuns, study_of, tables_of
from rich.console import Console

from attndrift.cli.progress import StudyConsole
from attndrift.cli.run_table import StudyTable
from attndrift.files import read_json
from attndrift.study.executor import Executor
from attndrift.study.launchers.ray import RayLauncher
from attndrift.study.loading import parse_study
from attndrift.study.resources import StudyResources
from attndrift.study.runner import run_study
from attndrift.study.storage import LocalStorage

ray = pytest.importorskip("ray")

pytestmark = [
    pytest.mark.slow,  # clusters, servers and schedulers take their time to start
    pytest.mark.ci("ray"),
    # Ray's own sockets, processes and deprecated calls; nothing of ours.
    pytest.mark.filterwarnings("ignore"),
]


def _started(tries: int = 3) -> Any:
    """A cluster of one node with two cores. Ray gives a node 30 seconds to start, which a busy machine may exceed."""
    from ray.cluster_utils import Cluster

    for left in reversed(range(tries)):
        try:
            return Cluster(
                initialize_head=True,
                head_node_args={"num_cpus": 2, "object_store_memory": 80 * 2**20, "include_dashboard": False},
            )
        except Exception:
            if not left:
                raise
    raise AssertionError


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A cluster of one node with two cores, which tests may add others to; workers keep to one cache."""
    changed = pytest.MonkeyPatch()
    changed.setenv("RAY_USAGE_STATS_ENABLED", "0")
    # Ray gives its workers the least of a busy machine, which may be none: they would import ``torch`` for minutes.
    changed.setenv("RAY_worker_niceness", "0")
    # A node counts as dead after five looks that fail; one that is slow to answer still has ten seconds each time.
    changed.setenv("RAY_health_check_period_ms", "500")
    changed.setenv("ATTNDRIFT_CACHE", str(tmp_path_factory.mktemp("cache")))
    # Workers import what a study is run by, as they do on a cluster where it is installed.
    changed.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    # A shell has what it starts in the background ignore interruptions, and all that it starts in turn.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    made = _started()
    signal.signal(signal.SIGINT, before)
    ray.init(address=made.address, log_to_driver=False, logging_level="CRITICAL", namespace="attndrift")
    yield made
    ray.shutdown()
    made.shutdown()
    changed.undo()


def _table() -> StudyTable:
    return StudyTable(console=Console(file=io.StringIO(), width=140))


def _wait_until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)


def _undisturbed(tmp_path: Path, seeds: int, steps: int = STEPS) -> dict[str, bytes]:
    tally = tmp_path / "undisturbed-tally"
    tally.mkdir()
    run_study(study_of(seeds), tmp_path / "undisturbed", MadeRuns(tally, steps=steps), _table())
    return tables_of(tmp_path / "undisturbed")


def test_a_study_has_the_same_tables_on_ray_as_in_this_process(cluster: Any, tmp_path: Path, tiny_clip: Path) -> None:
    text = f"""
name: both
shared: {{model: {tiny_clip}, dataset: digits, train_per_class: 4, validation_per_class: 2, probe_size: 20,
  test_limit: 20, epochs: 2, batch_size: 8, learning_rate: 1e-3, transfer: [objects], transfer_limit: 100,
  monitor_zero_shot_images: 100, evaluations_per_epoch: 2, checkpoints_per_epoch: 2, map_images: 2, threads: 1}}
runs:
  - {{method: none}}
  - {{method: full}}
  - {{method: lora, lora_rank: 4}}
"""
    study = parse_study(text, where="both")
    address = cluster.address
    with Executor(StudyResources(tmp_path / "cache")) as execute:
        run_study(study, tmp_path / "here", execute, StudyConsole(console=Console(file=io.StringIO())))
    with Executor() as execute:
        outcome = run_study(study, tmp_path / "there", execute, _table(), engine=RayLauncher(address=address))
    assert outcome.count("finished") == 3
    assert tables_of(tmp_path / "there") == tables_of(tmp_path / "here")
    for weights in (tmp_path / "here").glob("runs/*/checkpoints/**/*.safetensors"):
        assert (tmp_path / "there" / weights.relative_to(tmp_path / "here")).read_bytes() == weights.read_bytes()


def test_a_run_whose_worker_dies_goes_on_from_its_last_state(cluster: Any, tmp_path: Path) -> None:
    study, runs = study_of(2), MadeRuns(tmp_path / "tally", deaths=2, pause=0.2)
    runs.tally.mkdir()
    table = _table()
    outcome = run_study(study, tmp_path / "s", runs, table, engine=RayLauncher(address=cluster.address, retries=2))
    assert outcome.count("finished") == 2
    for run in study.runs:
        assert runs.starts(run) == [0, 2, 2]
        assert table.rows[run.run_id].starts == 3
    assert tables_of(tmp_path / "s") == _undisturbed(tmp_path, 2)


def test_a_run_whose_workers_die_too_often_fails_alone_and_can_go_on(cluster: Any, tmp_path: Path) -> None:
    study, runs = study_of(2), MadeRuns(tmp_path / "tally", deaths=2)
    runs.tally.mkdir()
    engine = RayLauncher(address=cluster.address, retries=1)
    outcome = run_study(study.select([study.runs[0].run_id]), tmp_path / "s", runs, _table(), engine=engine)
    assert outcome.count("failed") == 1
    record = read_json(tmp_path / "s" / "runs" / study.runs[0].run_id / "record.json")
    assert "worker on the cluster was lost, 1 retries included" in record["problem"]
    outcome = run_study(study, tmp_path / "s", runs, _table(), engine=RayLauncher(address=cluster.address))
    assert outcome.count("finished") == 2
    assert runs.starts(study.runs[0])[-1] == 2
    assert tables_of(tmp_path / "s") == _undisturbed(tmp_path, 2)


def test_a_run_that_raises_fails_alone_and_is_not_tried_again(cluster: Any, tmp_path: Path) -> None:
    study, runs = study_of(2), MadeRuns(tmp_path, fail=(1,))
    outcome = run_study(study, tmp_path / "s", runs, _table(), engine=RayLauncher(address=cluster.address))
    assert list(outcome.statuses.values()) == ["finished", "failed"]
    assert runs.starts(study.runs[1]) == [0]
    record = read_json(tmp_path / "s" / "runs" / study.runs[1].run_id / "record.json")
    assert record["problem"] == "RuntimeError: the disk is full"


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A shell has what it starts in the background ignore interruptions, and Python leaves it at that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_study_stops_on_interruption_and_leaves_nothing_claimed(cluster: Any, tmp_path: Path) -> None:
    # A minute a run, so that none ends before the interruption, however busy the machine is.
    study, runs, stopped = study_of(3), MadeRuns(tmp_path, pause=1.0, steps=60), threading.Event()

    def interrupt() -> None:
        _wait_until(lambda: any((tmp_path / "s").glob("runs/*/resume/step-1")))
        # Python drops an exception that is raised while it frees an object: press again, as a user does.
        while not stopped.is_set():
            os.kill(os.getpid(), signal.SIGINT)
            stopped.wait(30)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        run_study(study, tmp_path / "s", runs, _table(), engine=RayLauncher(address=cluster.address))
    stopped.set()
    runs = MadeRuns(tmp_path, steps=60)
    outcome = run_study(study, tmp_path / "s", runs, _table(), engine=RayLauncher(address=cluster.address))
    assert outcome.count("finished") == 3
    assert max(start for run in study.runs for start in runs.starts(run)) > 0, "something went on where it was"
    assert tables_of(tmp_path / "s") == _undisturbed(tmp_path, 3, steps=60)


@pytest.mark.slow
def test_a_run_whose_node_dies_goes_on_elsewhere(cluster: Any, tmp_path: Path) -> None:
    node = cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    study, runs = study_of(3), MadeRuns(tmp_path, pause=0.7)
    raylet = node.all_processes["raylet"][0].process

    def runs_there() -> bool:
        pids = [int(line.split()[1]) for path in tmp_path.glob("*.txt") for line in path.read_text().splitlines()]
        return any(psutil.pid_exists(pid) and psutil.Process(pid).ppid() == raylet.pid for pid in pids)

    def kill() -> None:
        _wait_until(runs_there)
        time.sleep(1.0)
        # The whole machine: a worker that outlives its raylet for some seconds may finish its run.
        everything = psutil.Process(raylet.pid).children(recursive=True)
        raylet.kill()
        for process in everything:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    threading.Thread(target=kill).start()
    outcome = run_study(study, tmp_path / "s", runs, _table(), engine=RayLauncher(address=cluster.address))
    assert outcome.count("finished") == 3
    assert sum(len(runs.starts(run)) for run in study.runs) > 3, "the node was running nothing"
    assert tables_of(tmp_path / "s") == _undisturbed(tmp_path, 3)
    cluster.remove_node(node, allow_graceful=False)


def test_a_machine_that_does_not_see_the_study_says_so(cluster: Any, tmp_path: Path) -> None:
    from attndrift.study.launchers.remote import CANNOT, RemoteRun

    study = study_of(1)
    remote = RemoteRun.of(study.runs[0], study, LocalStorage(tmp_path / "nowhere"), MadeRuns(tmp_path))
    status, detail = remote.carry_out(lambda message: None)
    assert status == CANNOT
    assert "does not see the study" in detail
    assert not (tmp_path / "nowhere").exists()


def test_more_than_this_machine_has_is_refused_with_the_option_to_change(tmp_path: Path) -> None:
    # In a process of its own, which has no cluster yet.
    code = (
        "import sys, io; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
        "from made_runs import STEPS, MadeRuns, study_of\n"
        "from attndrift.cli.run_table import StudyTable\n"
        "from attndrift.study.runner import run_study\n"
        "from attndrift.study.launchers.ray import RayLauncher\n"
        "where = Path(sys.argv[1])\n"
        "run_study(study_of(1), where / 's', MadeRuns(where), StudyTable(), engine=RayLauncher(gpus_per_run=64))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "asks for 64 GPU, and this machine has 0; ask for less (--gpus-per-run)" in done.stderr
