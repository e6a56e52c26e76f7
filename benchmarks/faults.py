"""Kills what runs a study at random moments, and looks at what is left.

    python benchmarks/faults.py --kills 10 --minutes 30 --output benchmarks/results/faults.json
    python benchmarks/faults.py --runs trained --only "driver, in-process" --kills 5

Every kind of kill has a study of its own. It is begun again whenever its driver is gone, until its kills are spent
or the time is up, and then goes on undisturbed to its end. Its tables must then be, byte for byte, those of a study
that nothing disturbed, and at no moment may a run that was done, or a resumable state, be gone.

With ``--runs made`` (the default) training is replaced by a counter that saves a state a step, so that what is tried
is the engine and the storage, and one kill takes seconds; with ``--runs trained`` a tiny CLIP is trained.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "study"))

from made_runs import MadeRuns, study_of  # noqa: E402

from attndrift.study.settings import Study  # noqa: E402

RUNS, STEPS, PAUSE = 4, 12, 0.25
TRAINED = """
name: trained
shared: {model: "config:tiny", dataset: digits, train_per_class: 8, validation_per_class: 2, probe_size: 20, test_limit: 20,
  epochs: 2, batch_size: 8, learning_rate: 1e-3, transfer: [objects], transfer_limit: 100, monitor_zero_shot_images: 100,
  evaluations_per_epoch: 2, checkpoints_per_epoch: 5, map_images: 2, threads: 1}
runs:
  - {method: none}
  - {method: full}
  - {method: lora, lora_rank: 4}
  - {method: full, loss: "entropy_floor:0.1", gradient_accumulation: 2}
"""


# -- the driver, in a process of its own -------------------------------------------------------


def _study(runs: str) -> Study:
    from attndrift.study.loading import parse_study

    return study_of(RUNS) if runs == "made" else parse_study(TRAINED, where="faults")


def drive(runs: str, engine: str, where: str, tally: str, address: str) -> None:
    """Run the study; what is asked of this file with ``--driver``."""
    from rich.console import Console

    from attndrift.cli.run_table import StudyTable
    from attndrift.study.executor import Executor
    from attndrift.study.launchers import Options, make_engine
    from attndrift.study.runner import run_study

    options = {
        "in-process": Options(),
        "processes": Options(jobs=2),
        "ray": Options(address=address, retries=1000),
        "slurm": Options(retries=1000, scheduler=("cluster=local", "timeout_min=60")),
    }[engine]
    execute: Any = MadeRuns(Path(tally), pause=PAUSE, steps=STEPS) if runs == "made" else Executor()
    chosen = make_engine("in-process" if engine == "processes" else engine, options)
    # Not on a terminal: the table prints a line for each run that ends.
    with StudyTable(console=Console(stderr=True, force_terminal=False)) as table:
        run_study(_study(runs), where, execute, table, engine=chosen)


# -- what is killed ----------------------------------------------------------------------------


@dataclass
class Row:
    """What came of one kind of kill.

    Attributes:
        killed: what was killed.
        engine, storage: with what the study was run, and where it was kept.
        kills: how often.
        studies: how many studies they were spread over; each ended with the tables of an undisturbed one.
        starts_of_driver: how often the command was given.
        steps_again: steps that were computed more than once, of all that were; null where training is real.
        problems: what was wrong, in words; empty where nothing was.
    """

    killed: str
    engine: str
    storage: str
    runs: str
    kills: int = 0
    studies: int = 0
    starts_of_driver: int = 0
    rows_lost: int = 0
    rows_doubled: int = 0
    steps: int | None = None
    steps_again: int | None = None
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)


def _driver(process: subprocess.Popen[bytes], _: Any) -> bool:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return True


def _child(process: subprocess.Popen[bytes], _: Any) -> bool:
    """A worker process of the driver, but not Python's own tracker of resources."""
    return _kill_one(_below(process.pid, lambda words: "spawn_main" in " ".join(words), recursive=False))


def _job(process: subprocess.Popen[bytes], _: Any) -> bool:
    """The process of a job: what the controller of submitit's local executor started."""
    return _kill_one(_below(process.pid, lambda words: "submitit.core._submit" in " ".join(words), recursive=True))


def _ray_worker(_: subprocess.Popen[bytes], cluster: Any) -> bool:
    """A worker that is on a run: Ray gives it the task's name."""
    raylets = [node.all_processes["raylet"][0].process.pid for node in cluster.worker_nodes | {cluster.head_node}]
    found = []
    for pid in raylets:
        found += _below(
            pid, lambda words: words[0].startswith("ray::") and ("tiles" in words[0] or "digits" in words[0])
        )
    return _kill_one(found)


def _ray_node(_: subprocess.Popen[bytes], cluster: Any) -> bool:
    """A raylet, with everything that it started; another node joins."""
    node = random.choice(sorted(cluster.worker_nodes, key=id))
    pid = node.all_processes["raylet"][0].process.pid
    if not _below(pid, lambda words: words[0].startswith("ray::")):
        return False
    # Its workers too, at once: alone they would outlive it for some seconds, in which one may finish its run.
    everything = psutil.Process(pid).children(recursive=True)
    os.kill(pid, signal.SIGKILL)
    for process in everything:
        with suppress(psutil.Error):
            process.kill()
    with suppress(Exception):
        cluster.remove_node(node, allow_graceful=False)
    cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    return True


def _below(pid: int, wanted: Callable[[list[str]], bool], *, recursive: bool = False) -> list[psutil.Process]:
    """Processes below ``pid`` whose command line is ``wanted``; some end while they are looked at."""
    found = []
    with suppress(psutil.Error):
        for child in psutil.Process(pid).children(recursive=recursive):
            with suppress(psutil.Error):
                if wanted(child.cmdline() or [""]):
                    found.append(child)
    return found


def _kill_one(found: list[psutil.Process]) -> bool:
    if not found:
        return False
    try:
        random.choice(found).send_signal(signal.SIGKILL)
    except psutil.Error:
        return False
    return True


Strike = Callable[[subprocess.Popen[bytes], Any], bool]

KINDS: dict[str, tuple[str, str, Strike]] = {
    "driver, in-process": ("in-process", "folder", _driver),
    "driver of --jobs 2": ("processes", "folder", _driver),
    "worker process of --jobs 2": ("processes", "folder", _child),
    "driver, store": ("in-process", "S3-compatible store", _driver),
    "driver on Ray": ("ray", "folder", _driver),
    "worker on Ray": ("ray", "folder", _ray_worker),
    "node of Ray (raylet and workers)": ("ray", "folder", _ray_node),
    "worker on Ray, store": ("ray", "S3-compatible store", _ray_worker),
    "job (submitit, local executor)": ("slurm", "folder", _job),
}
"""What is killed -> engine, storage and how."""


# -- the trial ---------------------------------------------------------------------------------


class Trial:
    """One kind of kill, tried on as many studies as it takes."""

    def __init__(self, kind: str, runs: str, scratch: Path, cluster: Any, bucket: str | None, seed: int) -> None:
        self.engine, self.storage, self.strike = KINDS[kind]
        self.row = Row(kind, self.engine, self.storage, runs)
        self.runs, self.scratch, self.cluster, self.bucket = runs, scratch, cluster, bucket
        self.random = random.Random(f"{kind}{seed}")
        self.known: dict[str, int] = {}
        self.wait = (0.5, 3.0) if runs == "made" else (2.0, 20.0)

    def _begin(self) -> None:
        name = (
            f"{self.row.killed}-{self.row.studies}".replace(" ", "-").replace(",", "").replace("(", "").replace(")", "")
        )
        self.folder = self.scratch / name
        self.tally = self.scratch / f"{name}-tally"
        self.tally.mkdir()
        self.where = f"{self.bucket}/{name}" if self.storage != "folder" else str(self.folder)
        self.known = {}

    def _start(self) -> subprocess.Popen[bytes]:
        self.row.starts_of_driver += 1
        address = self.cluster.address if self.cluster is not None else ""
        command = [sys.executable, __file__, "--driver", self.runs, self.engine, self.where, str(self.tally), address]
        log = (self.scratch / "drivers.txt").open("ab")
        return subprocess.Popen(command, start_new_session=True, stdout=log, stderr=log)

    def _progress(self) -> None:
        """Records, and the newest state of each run: neither may fall."""
        now: dict[str, int] = {}
        for run in _study(self.runs).runs:
            folder = self.folder / "runs" / run.run_id
            if (folder / "record.json").exists() and json.loads((folder / "record.json").read_text())[
                "status"
            ] != "failed":
                now[run.run_id] = 10**9
                continue
            states = [int(path.name.removeprefix("step-")) for path in folder.glob("resume/step-*")]
            now[run.run_id] = max(states, default=0)
        for name, before in self.known.items():
            if now[name] < before:
                self.row.problems.append(f"progress of {name} fell from {before} to {now[name]}")
        self.known = now

    def _finish(self, expected: dict[str, bytes]) -> None:
        """Let the study go on to its end, and compare."""
        for _ in range(20):
            process = self._start()
            process.wait(timeout=1200)
            if self._over():
                break
        else:
            self.row.problems.append(f"{self.where}: not done after 20 more starts")
            return
        self._compare(expected)

    def _over(self) -> bool:
        from attndrift.study.storage_url import open_storage

        storage = open_storage(self.where)
        return all(storage.is_done(run.run_id) for run in _study(self.runs).runs)

    def _compare(self, expected: dict[str, bytes]) -> None:
        import pandas as pd

        from attndrift.study.storage_url import open_storage

        self.row.studies += 1
        storage = open_storage(self.where)
        if self.storage != "folder":
            storage.fetch(self.folder)  # type: ignore[attr-defined]
        else:
            storage.collect()
        for name, content in expected.items():
            if (self.folder / name).read_bytes() != content:
                self.row.problems.append(f"{self.where}: {name} differs from that of the undisturbed study")
        names = list(pd.read_parquet(self.folder / "runs.parquet")["run_id"])
        planned = [run.run_id for run in _study(self.runs).runs]
        self.row.rows_lost += len(set(planned) - set(names))
        self.row.rows_doubled += len(names) - len(set(names))
        computed = self.tally / "computed.txt"
        if computed.exists():
            lines = computed.read_text().splitlines()
            self.row.steps = (self.row.steps or 0) + len(lines)
            self.row.steps_again = (self.row.steps_again or 0) + len(lines) - len(set(lines))

    def run(self, kills: int, deadline: float, expected: dict[str, bytes]) -> Row:
        """Strike until ``kills`` are spent or the time is up."""
        begun = time.monotonic()
        self._begin()
        process = self._start()
        while self.row.kills < kills and time.monotonic() < deadline:
            time.sleep(self.random.uniform(*self.wait))
            if process.poll() is None and (self.tally.exists() or self.runs != "made"):
                if self.strike is not _driver or self._under_way():
                    self.row.kills += self.strike(process, self.cluster)
                self._progress()
            if process.poll() is not None:
                if self._over():
                    self._compare(expected)
                    self._begin()
                process = self._start()
        with suppress(ProcessLookupError):
            # The last one is not counted: it only ends the trial.
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self._finish(expected)
        self.row.seconds = round(time.monotonic() - begun, 1)
        return self.row

    def _under_way(self) -> bool:
        """A driver is killed when it has begun a run, and not only its imports."""
        if self.storage != "folder":
            return any(self.tally.iterdir())
        return any(self.folder.glob("runs/*"))


@contextmanager
def _ray_cluster(wanted: bool) -> Iterator[Any]:
    if not wanted:
        yield None
        return
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Its default of 15 is no processor at all on a busy machine.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": 80 * 2**20, "include_dashboard": False},
    )
    for _ in range(2):
        cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    try:
        yield cluster
    finally:
        cluster.shutdown()


@contextmanager
def _s3(wanted: bool) -> Iterator[str | None]:
    if not wanted:
        yield None
        return
    import logging

    import s3fs
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "of-nobody",
        "AWS_SECRET_ACCESS_KEY": "of-nobody",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }
    s3fs.S3FileSystem(skip_instance_cache=True).mkdir("faults")
    try:
        yield "s3://faults"
    finally:
        server.stop()


def main() -> None:
    """Parse, try, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=7, help="of each kind")
    parser.add_argument("--minutes", type=float, default=30.0, help="for all kinds together")
    parser.add_argument("--runs", choices=["made", "trained"], default="made")
    parser.add_argument("--only", action="append", choices=list(KINDS), help="a kind; repeatable")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="add the rows to this JSON file")
    parser.add_argument("--driver", nargs=5, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.driver:
        drive(*given.driver)
        return

    from attndrift.files import read_json, write_json
    from attndrift.study.record import hardware, now, versions

    kinds = given.only or list(KINDS)
    paths = [str(ROOT / "tests" / "study"), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    random.seed(given.seed)
    end = time.monotonic() + 60 * given.minutes
    with (
        tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True) as name,
        _s3(any("store" in KINDS[kind][1] for kind in kinds)) as bucket,
    ):
        scratch = Path(name)
        os.environ["ATTNDRIFT_CACHE"] = str(scratch / "cache")
        with _ray_cluster(any(KINDS[kind][0] == "ray" for kind in kinds)) as cluster:
            (scratch / "undisturbed-tally").mkdir()
            drive(given.runs, "in-process", str(scratch / "undisturbed"), str(scratch / "undisturbed-tally"), "")
            expected = {path.name: path.read_bytes() for path in (scratch / "undisturbed").glob("*.parquet")}
            for place, kind in enumerate(kinds):
                deadline = time.monotonic() + (end - time.monotonic()) / (len(kinds) - place)
                row = Trial(kind, given.runs, scratch, cluster, bucket, given.seed).run(given.kills, deadline, expected)
                print(json.dumps(asdict(row)), flush=True)
                if given.output is not None:
                    before = read_json(given.output)["rows"] if given.output.exists() else []
                    content = {
                        "rows": [*before, asdict(row)],
                        "versions": versions(),
                        "hardware": hardware("cpu", 1),
                        "written": now(),
                    }
                    write_json(given.output, content)


if __name__ == "__main__":
    main()
