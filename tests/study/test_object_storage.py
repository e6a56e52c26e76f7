"""Studies in an object store: an S3-compatible server on this machine, and a store that cannot create on condition."""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractFileSystem
from made_runs import STEPS, MadeRuns, study_of, tables_of
from rich.console import Console

from attndrift.cli.progress import StudyConsole
from attndrift.cli.run_table import StudyTable
from attndrift.study import object_storage
from attndrift.study.driver import MARKER, Driver, DriverReplaced, StudyLocked
from attndrift.study.launchers.processes import ProcessLauncher
from attndrift.study.launchers.slurm import SlurmLauncher
from attndrift.study.object_storage import ObjectStorage
from attndrift.study.objects import ObjectStore
from attndrift.study.runner import StudyFolderConflict, run_study
from attndrift.study.storage import LocalStorage, RunLocked
from attndrift.study.storage_url import open_storage

pytestmark = [
    pytest.mark.slow,  # clusters, servers and schedulers take their time to start
    pytest.mark.ci("s3"),
    # Of botocore and the server; nothing of ours.
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket of an S3-compatible server on the loopback."""
    server = pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    changed = pytest.MonkeyPatch()
    changed.setenv("AWS_ACCESS_KEY_ID", "of-nobody")
    changed.setenv("AWS_SECRET_ACCESS_KEY", "of-nobody")
    changed.setenv("AWS_DEFAULT_REGION", "us-east-1")
    changed.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    s3fs.S3FileSystem(skip_instance_cache=True).mkdir("studies")
    yield "s3://studies"
    changed.undo()
    running.stop()


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNDRIFT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tally").mkdir()
    # Workers import what a study is run by, as they do on a cluster where it is installed.
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    monkeypatch.setenv("RAY_worker_niceness", "0")


def _console() -> StudyConsole:
    return StudyConsole(console=Console(file=io.StringIO()))


def _undisturbed(tmp_path: Path, seeds: int) -> dict[str, bytes]:
    tally = tmp_path / "undisturbed-tally"
    tally.mkdir()
    run_study(study_of(seeds), tmp_path / "undisturbed", MadeRuns(tally), _console())
    return tables_of(tmp_path / "undisturbed")


def _fetched(storage: ObjectStorage, folder: Path) -> dict[str, bytes]:
    storage.fetch(folder)
    return tables_of(folder)


def test_paths_are_local_and_urls_are_object_storage(tmp_path: Path, bucket: str) -> None:
    for where in (tmp_path, str(tmp_path), f"file://{tmp_path}"):
        storage = open_storage(where)
        assert isinstance(storage, LocalStorage)
        assert storage.folder == tmp_path
    storage = open_storage(f"{bucket}/a")
    assert isinstance(storage, ObjectStorage)
    with pytest.raises(ValueError, match="holds a password"):
        open_storage("s3://me:secret@host/a")
    with pytest.raises(ValueError, match="Protocol not known"):
        open_storage("nosuch://a/b")


def test_a_study_in_a_store_has_the_tables_of_one_in_a_folder(tmp_path: Path, bucket: str) -> None:
    storage = ObjectStorage(f"{bucket}/same")
    outcome = run_study(study_of(2), storage, MadeRuns(tmp_path / "tally"), _console())
    assert outcome.count("finished") == 2
    expected = _undisturbed(tmp_path, 2)
    assert _fetched(storage, tmp_path / "fetched") == expected
    there = {name: bytes(storage.store.fs.cat_file(storage.store.path(name))) for name in expected}
    assert there == expected
    left = storage.store.files(storage.store.root)
    assert not [name for name in left if name.startswith(".")], "states, workers and the driver's marker are gone"
    run = study_of(2).runs[0].run_id
    assert "finished" in (tmp_path / "fetched" / "runs" / run / "record.json").read_text()
    outcome = run_study(study_of(3), storage, MadeRuns(tmp_path / "tally"), _console())
    assert list(outcome.statuses.values()) == ["kept", "kept", "finished"]


def test_a_run_goes_on_from_the_state_in_the_store_on_a_machine_that_has_nothing(tmp_path: Path, bucket: str) -> None:
    study, runs = study_of(2), MadeRuns(tmp_path / "tally", deaths=1)
    storage = ObjectStorage(f"{bucket}/on")
    outcome = run_study(study, storage, runs, _console(), engine=ProcessLauncher(2))
    assert outcome.count("failed") == 2, "its processes were killed"
    outcome = run_study(study, storage, runs, _console())
    assert outcome.count("finished") == 2
    assert [runs.starts(run) for run in study.runs] == [[0, 2], [0, 2]]
    assert _fetched(storage, tmp_path / "fetched") == _undisturbed(tmp_path, 2)


def test_jobs_of_a_scheduler_work_for_the_driver_and_go_on_from_the_store(tmp_path: Path, bucket: str) -> None:
    pytest.importorskip("submitit")
    study, runs = study_of(2), MadeRuns(tmp_path / "tally", deaths=1)
    storage = ObjectStorage(f"{bucket}/jobs")
    engine = SlurmLauncher(retries=1, parameters=["cluster=local", "timeout_min=10"])
    outcome = run_study(study, storage, runs, StudyTable(console=Console(file=io.StringIO())), engine=engine)
    assert outcome.count("finished") == 2
    assert [runs.starts(run) for run in study.runs] == [[0, 2], [0, 2]]
    assert _fetched(storage, tmp_path / "fetched") == _undisturbed(tmp_path, 2)


def test_a_damaged_state_in_the_store_is_passed_over_for_the_one_before(tmp_path: Path, bucket: str) -> None:
    study, runs = study_of(1), MadeRuns(tmp_path / "tally", deaths=1)
    storage = ObjectStorage(f"{bucket}/damaged")
    run_study(study, storage, runs, _console(), engine=ProcessLauncher(1))
    states = f"{storage.store.root}/.states/{study.runs[0].run_id}"
    newest = max(name for name in storage.store.files(states) if name.endswith(".tar"))
    whole = storage.store.fs.cat_file(f"{states}/{newest}")
    storage.store.write(f"{states}/{newest}", bytes([*whole[:-1], whole[-1] ^ 1]))
    run_study(study, storage, runs, _console())
    assert runs.starts(study.runs[0]) == [0, 1]
    assert _fetched(storage, tmp_path / "fetched") == _undisturbed(tmp_path, 1)


DRIVER = """
import sys
from pathlib import Path
from attndrift.cli import main as cli
from attndrift.study import executor
from made_runs import MadeRuns

tally, gate = Path(sys.argv.pop(1)), sys.argv.pop(1)
runs = MadeRuns(tally, gate=Path(gate) if gate else None)
executor.Executor = lambda: runs
cli.main()
"""
"""The command line, with counting for training."""

STUDY = """
name: made
shared: {dataset: tiles, threads: 1}
runs:
  - grid: {seed: [0, 1]}
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `attndrift run` on the study of two seeds, in a process of its own.

    With ``gate`` its runs save a first state, and go on when that file is there.
    """
    (tmp_path / "study.yaml").write_text(STUDY)
    begun = []

    def start(url: str, *options: str, gate: Path | None = None) -> subprocess.Popen[str]:
        arguments = [
            str(tmp_path / "tally"),
            str(gate or ""),
            "run",
            str(tmp_path / "study.yaml"),
            "--output",
            url,
            *options,
        ]
        process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, *arguments],
            cwd=Path(__file__).parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        begun.append(process)
        return process

    yield start
    for process in begun:
        process.kill()
        process.wait()
        process.stdout.close()


def _until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _until_a_state(storage: ObjectStorage, process: subprocess.Popen[str]) -> None:
    states = storage.store.path(".states")
    _until(lambda: any(name.endswith(".json") for name in storage.store.files(states)), process)


def _driver(storage: ObjectStorage) -> dict[str, Any]:
    """What the marker says of the driver; nothing where there is none."""
    return dict(json.loads(storage.store.read(storage.store.path(MARKER)) or b"{}"))


def _as_one_line(said: str) -> str:
    return " ".join(said.split())


LAUNCHERS = {
    "one process": [],
    "two processes": ["--jobs", "2"],
    "ray": ["--engine", "ray", "--retries", "0"],
    "slurm": ["--engine", "slurm", "--retries", "0", "--scheduler", "cluster=local", "--scheduler", "timeout_min=10"],
}
PACKAGES = {"ray": "ray", "slurm": "submitit"}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_second_driver_is_refused_and_one_that_takes_over_stops_the_first(
    tmp_path: Path, bucket: str, start: Callable[..., subprocess.Popen[str]], launcher: str
) -> None:
    if launcher in PACKAGES:
        pytest.importorskip(PACKAGES[launcher])
    storage = ObjectStorage(f"{bucket}/over-{launcher.replace(' ', '-')}")
    gate = tmp_path / "gate"
    first = start(storage.url, *LAUNCHERS[launcher], gate=gate)
    _until_a_state(storage, first)
    marker = _driver(storage)
    assert (marker["host"], marker["process"]) == (socket.gethostname(), first.pid)
    second = start(storage.url)
    said = _as_one_line(second.communicate(timeout=300)[0])
    assert second.returncode == 1
    for word in (f"host {marker['host']}", f"process {first.pid}", f"since {marker['time']}", "--take-over"):
        assert word in said, said
    assert first.poll() is None, "a driver that was refused disturbs nobody"
    third = start(storage.url, "--take-over")
    _until(lambda: _driver(storage).get("process") != first.pid, first)
    gate.touch()  # the first one goes on, while the third is at work
    said = _as_one_line(third.communicate(timeout=300)[0])
    assert third.returncode == 0, said
    assert f"takes the study over; the one before (host {marker['host']}, process {first.pid}" in said
    said = _as_one_line(first.communicate(timeout=300)[0])
    assert first.returncode == 1, said
    assert "no longer drives the study" in said
    assert said.count("Traceback") == 0
    assert "failed" not in said
    assert _fetched(storage, tmp_path / "fetched") == _undisturbed(tmp_path, 2)
    starts = [MadeRuns(tmp_path / "tally").starts(run) for run in study_of(2).runs]
    assert max(map(max, starts)) > 0, "the new driver went on from the states of the old one"
    assert storage.store.read(storage.store.path(MARKER)) is None


def test_a_killed_driver_is_followed_at_once_on_its_machine_and_on_request_elsewhere(
    tmp_path: Path, bucket: str, start: Callable[..., subprocess.Popen[str]]
) -> None:
    storage = ObjectStorage(f"{bucket}/killed")
    first = start(storage.url, gate=tmp_path / "never")
    _until_a_state(storage, first)
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=60)
    marker = storage.store.path(MARKER)
    left = json.loads(storage.store.fs.cat_file(marker))
    storage.store.write(marker, json.dumps(left | {"host": "elsewhere", "machine": "another"}).encode())
    runs = MadeRuns(tmp_path / "tally")
    with pytest.raises(StudyLocked, match=rf"host elsewhere, process {first.pid}, since .* --take-over"):
        run_study(study_of(2), storage, runs, _console())
    storage.store.write(marker, json.dumps(left).encode())
    said = io.StringIO()
    outcome = run_study(study_of(2), storage, runs, StudyConsole(console=Console(file=said)))
    assert outcome.count("finished") == 2
    assert f"process {first.pid}" in said.getvalue()
    assert "ended without removing its marker" in _as_one_line(said.getvalue())
    assert _fetched(storage, tmp_path / "fetched") == _undisturbed(tmp_path, 2)


def test_a_number_that_another_process_has_got_since_is_no_driver() -> None:
    here = Driver.current()
    assert not here.has_ended()
    assert replace(here, created=here.created - 3600).has_ended()
    assert not replace(here, created=here.created - 3600, machine="another").has_ended()
    assert not replace(here, machine="").has_ended()


def test_one_of_many_that_start_at_once_becomes_the_driver(bucket: str) -> None:
    begin, answered = threading.Barrier(4), threading.Barrier(4, timeout=120)

    def drive(_: int) -> bool:
        storage = ObjectStorage(f"{bucket}/one")
        begin.wait()
        try:
            with storage.driver(print):
                answered.wait()
                return True
        except StudyLocked:
            answered.wait()
            return False

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(drive, range(4))) == 1
    with ObjectStorage(f"{bucket}/one").driver(print):
        pass  # it has been let go


def test_a_marker_that_cannot_be_understood_is_that_of_another_driver(bucket: str) -> None:
    storage = ObjectStorage(f"{bucket}/damaged-marker")
    storage.store.write(storage.store.path(MARKER), b'{"host": "elsew')
    with pytest.raises(StudyLocked, match=r"host unknown.*--take-over"), storage.driver(print):
        pass
    with storage.driver(print, take_over=True):
        assert Driver.parse(storage.store.fs.cat_file(storage.store.path(MARKER))).token == storage.token


def test_a_worker_that_was_given_up_or_whose_driver_was_replaced_sends_nothing(bucket: str) -> None:
    driver = ObjectStorage(f"{bucket}/lost")

    def end(workspace: Any, who: str) -> None:
        (workspace.folder / "record.json").write_text(
            json.dumps({"format": 2, "status": "finished", "row": {}, "by": who})
        )
        workspace.finish()

    with driver.driver(print):
        # As Ray has it: a worker has the driver's token, and is out of touch while another one begins the same run.
        mine, theirs = (pickle.loads(pickle.dumps(driver)) for _ in range(2))
        with mine.open_run("run") as slow, theirs.open_run("run") as other:
            with pytest.raises(RunLocked, match="given this worker up"):
                slow.save()
            end(other, "the other")
            with pytest.raises(RunLocked, match="given this worker up"):
                end(slow, "the slow one")
        with mine.open_run("next") as late:
            with ObjectStorage(driver.url).driver(print, take_over=True):
                with pytest.raises(DriverReplaced, match=rf"another driver \(host {re.escape(socket.gethostname())}"):
                    end(late, "the replaced one")
                with pytest.raises(DriverReplaced), mine.open_run("third"):
                    pass
            with pytest.raises(DriverReplaced, match="has been removed"):
                late.save()
    there = driver.store.files(driver.store.path("runs"))
    assert there == ["run/record.json"]
    assert b"the other" in driver.store.fs.cat_file(driver.store.path("runs", "run", "record.json"))


def test_a_local_folder_has_nothing_to_take_over(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--take-over is for studies in an object store"):
        run_study(study_of(1), tmp_path / "s", MadeRuns(tmp_path / "tally"), _console(), take_over=True)


def test_other_settings_are_refused_by_name(tmp_path: Path, bucket: str) -> None:
    url = f"{bucket}/refused"
    run_study(study_of(1), ObjectStorage(url), MadeRuns(tmp_path / "tally"), _console())
    study = study_of(1)
    other = study.runs[0].model_copy(update={"settings": study.runs[0].settings.model_copy(update={"epochs": 5})})
    with pytest.raises(StudyFolderConflict, match=rf"{url}: run .* `epochs` was 20, now 5"):
        run_study(
            study.model_copy(update={"runs": (other,)}), ObjectStorage(url), MadeRuns(tmp_path / "tally"), _console()
        )
    with pytest.raises(StudyFolderConflict, match="holds the study 'made', not 'other'"):
        run_study(study_of(1, "other"), ObjectStorage(url), MadeRuns(tmp_path / "tally"), _console())


class _Plain(AbstractFileSystem):
    """A store whose creation is not conditional: it looks first, and writes then."""

    protocol = "plain"
    cachable = False

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.memory = MemoryFileSystem()

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        return self.memory._open(path, mode=mode)

    def __getattribute__(self, name: str) -> Any:
        if name in ("ls", "info", "modified", "rm_file", "makedirs", "mkdir", "exists"):
            return getattr(super().__getattribute__("memory"), name)
        return super().__getattribute__(name)


class _Deaf(MemoryFileSystem):
    """A store that takes no notice of the condition."""

    protocol = "deaf"
    cachable = False

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        super().pipe_file(path, value, mode="overwrite", **options)


@pytest.mark.parametrize("kind", [_Plain, _Deaf])
def test_a_store_that_cannot_create_on_condition_serves_one_driver(
    tmp_path: Path, kind: type[AbstractFileSystem]
) -> None:
    fsspec.register_implementation(kind.protocol, kind, clobber=True)
    storage = ObjectStorage(f"{kind.protocol}://place/{tmp_path.name}")
    with storage.driver(print), pytest.raises(StudyLocked):
        run_study(study_of(2), ObjectStorage(storage.url), MadeRuns(tmp_path / "tally"), _console())
    outcome = run_study(study_of(2), storage, MadeRuns(tmp_path / "tally"), _console())
    assert outcome.count("finished") == 2
    assert _fetched(storage, tmp_path / "fetched") == _undisturbed(tmp_path, 2)


def test_a_store_that_is_out_of_reach_for_a_while_costs_states_and_no_run(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = ObjectStorage(f"{bucket}/unreachable")
    send, away = ObjectStore.send, threading.Event()

    def sometimes(self: ObjectStore, file: Path, path: str) -> None:
        if away.is_set() and path.endswith(".tar"):
            raise OSError("no route to host")
        send(self, file, path)

    monkeypatch.setattr(ObjectStore, "send", sometimes)
    away.set()
    outcome = run_study(study_of(1), storage, MadeRuns(tmp_path / "tally"), _console())
    assert outcome.count("finished") == 1
    folder = tmp_path / "fetched"
    storage.fetch(folder)
    log = next(folder.glob("runs/*/log.txt")).read_text()
    assert log.count("could not be sent to the study's storage: no route to host") == STEPS


def test_what_a_killed_process_left_on_this_machine_is_removed(tmp_path: Path, bucket: str) -> None:
    left = tmp_path / "cache" / "object-storage" / "run-of-the-dead"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"1")
    with object_storage._scratch("run"):
        assert not left.exists()
