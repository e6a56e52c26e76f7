"""Studies in an object store: an S3-compatible server on this machine, and a store that cannot create on condition."""

from __future__ import annotations

import io
import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractFileSystem
from made_runs import STEPS, MadeRuns, study_of, tables_of
from rich.console import Console

from attndrift.console import StudyConsole
from attndrift.study import store as stores
from attndrift.study.engine import StudyFolderConflict, run_study
from attndrift.study.places import Busy, Folder, open_place
from attndrift.study.processes import InProcesses
from attndrift.study.store import Store

pytestmark = [
    pytest.mark.slow,  # clusters, servers and schedulers take their time to start
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


def _console() -> StudyConsole:
    return StudyConsole(console=Console(file=io.StringIO()))


def _undisturbed(tmp_path: Path, seeds: int) -> dict[str, bytes]:
    tally = tmp_path / "undisturbed-tally"
    tally.mkdir()
    run_study(study_of(seeds), tmp_path / "undisturbed", MadeRuns(tally), _console())
    return tables_of(tmp_path / "undisturbed")


def _fetched(place: Store, folder: Path) -> dict[str, bytes]:
    place.fetch(folder)
    return tables_of(folder)


def test_paths_are_folders_and_urls_are_stores(tmp_path: Path, bucket: str) -> None:
    for where in (tmp_path, str(tmp_path), f"file://{tmp_path}"):
        place = open_place(where)
        assert isinstance(place, Folder)
        assert place.folder == tmp_path
    place = open_place(f"{bucket}/a")
    assert isinstance(place, Store)
    assert place.claims == "conditional creation"
    with pytest.raises(ValueError, match="holds a password"):
        open_place("s3://me:secret@host/a")
    with pytest.raises(ValueError, match="Protocol not known"):
        open_place("nosuch://a/b")


def test_a_study_in_a_store_has_the_tables_of_one_in_a_folder(tmp_path: Path, bucket: str) -> None:
    place = Store(f"{bucket}/same", lease=6)
    outcome = run_study(study_of(2), place, MadeRuns(tmp_path / "tally"), _console())
    assert outcome.count("finished") == 2
    expected = _undisturbed(tmp_path, 2)
    assert _fetched(place, tmp_path / "fetched") == expected
    there = {name: bytes(place.fs.cat_file(place._path(name))) for name in expected}
    assert there == expected
    left = place._files(place.root)
    assert not [name for name in left if ".states" in name or name.endswith(".tar")]
    run = study_of(2).runs[0].run_id
    assert "finished" in (tmp_path / "fetched" / "runs" / run / "record.json").read_text()
    outcome = run_study(study_of(3), place, MadeRuns(tmp_path / "tally"), _console())
    assert list(outcome.statuses.values()) == ["kept", "kept", "finished"]


def test_a_run_goes_on_from_the_state_in_the_store_on_a_machine_that_has_nothing(tmp_path: Path, bucket: str) -> None:
    study, runs = study_of(2), MadeRuns(tmp_path / "tally", deaths=1)
    place = Store(f"{bucket}/on", lease=2)
    outcome = run_study(study, place, runs, _console(), engine=InProcesses(2))
    assert outcome.count("failed") == 2, "its processes were killed"
    outcome = run_study(study, place, runs, _console())
    assert outcome.count("finished") == 2
    assert [runs.starts(run) for run in study.runs] == [[0, 2], [0, 2]]
    assert _fetched(place, tmp_path / "fetched") == _undisturbed(tmp_path, 2)


def test_a_damaged_state_in_the_store_is_passed_over_for_the_one_before(tmp_path: Path, bucket: str) -> None:
    study, runs = study_of(1), MadeRuns(tmp_path / "tally", deaths=1)
    place = Store(f"{bucket}/damaged", lease=2)
    run_study(study, place, runs, _console(), engine=InProcesses(1))
    states = f"{place.root}/.states/{study.runs[0].run_id}"
    newest = max(name for name in place._names(states) if name.endswith(".tar"))
    whole = place.fs.cat_file(f"{states}/{newest}")
    place._write(f"{states}/{newest}", bytes([*whole[:-1], whole[-1] ^ 1]))
    run_study(study, place, runs, _console())
    assert runs.starts(study.runs[0]) == [0, 1]
    assert _fetched(place, tmp_path / "fetched") == _undisturbed(tmp_path, 1)


def test_two_drivers_share_a_study_and_each_run_is_done_once(tmp_path: Path, bucket: str) -> None:
    study, runs = study_of(4), MadeRuns(tmp_path / "tally", pause=0.1)
    url = f"{bucket}/shared"
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(run_study, study, Store(url, lease=6), runs, _console()) for _ in range(2)]
        outcomes = [future.result() for future in futures]
    assert sum(outcome.count("finished") for outcome in outcomes) == 4
    assert [runs.starts(run) for run in study.runs] == [[0]] * 4
    run_study(study, Store(url, lease=6), runs, _console())
    assert _fetched(Store(url), tmp_path / "fetched") == _undisturbed(tmp_path, 4)


def test_a_claim_is_made_by_one_of_many_and_let_go(bucket: str) -> None:
    place = Store(f"{bucket}/one", lease=3)

    def claim(_: int) -> bool:
        try:
            with Store(f"{bucket}/one", lease=3)._held("run"):
                time.sleep(4)
                return True
        except Busy:
            return False

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(claim, range(4))) == 1
    with place._held("run") as lease:
        assert lease.number == 2


def test_a_process_that_was_out_of_touch_has_lost_its_run_and_sends_nothing(bucket: str) -> None:
    url = f"{bucket}/lost"
    slow = Store(url, lease=1.5)
    with slow.claimed("run") as mine:
        # It stops showing signs of life, as a process does that is stopped or cut off.
        mine.lease._stop.set()  # type: ignore[attr-defined]
        with Store(url, lease=1.5).claimed("run") as theirs:
            (theirs.folder / "record.json").write_text('{"format": 1, "status": "finished", "by": "the other"}')
            theirs.finish()
            (mine.folder / "record.json").write_text('{"format": 1, "status": "finished", "by": "the slow one"}')
            with pytest.raises(Busy, match="the claim on it was lost"):
                mine.save()
            with pytest.raises(Busy, match="the claim on it was lost"):
                mine.finish()
    assert b"the other" in slow.fs.cat_file(slow._path("runs", "run", "record.json"))


def test_other_settings_are_refused_by_name(tmp_path: Path, bucket: str) -> None:
    url = f"{bucket}/refused"
    run_study(study_of(1), Store(url), MadeRuns(tmp_path / "tally"), _console())
    study = study_of(1)
    other = study.runs[0].model_copy(update={"settings": study.runs[0].settings.model_copy(update={"epochs": 5})})
    with pytest.raises(StudyFolderConflict, match=rf"{url}: run .* `epochs` was 20, now 5"):
        run_study(study.model_copy(update={"runs": (other,)}), Store(url), MadeRuns(tmp_path / "tally"), _console())
    with pytest.raises(StudyFolderConflict, match="holds the study 'made', not 'other'"):
        run_study(study_of(1, "other"), Store(url), MadeRuns(tmp_path / "tally"), _console())


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
def test_a_store_that_cannot_create_on_condition_says_so_and_serves_one_driver(
    tmp_path: Path, kind: type[AbstractFileSystem]
) -> None:
    fsspec.register_implementation(kind.protocol, kind, clobber=True)
    place = Store(f"{kind.protocol}://place/{tmp_path.name}")
    assert place.claims == "one driver at a time only: the store cannot create on condition"
    outcome = run_study(study_of(2), place, MadeRuns(tmp_path / "tally"), _console())
    assert outcome.count("finished") == 2
    assert _fetched(place, tmp_path / "fetched") == _undisturbed(tmp_path, 2)


def test_a_store_that_is_out_of_reach_for_a_while_costs_states_and_no_run(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Store(f"{bucket}/unreachable")
    send, away = Store._send, threading.Event()

    def sometimes(self: Store, file: Path, path: str) -> None:
        if away.is_set() and path.endswith(".tar"):
            raise OSError("no route to host")
        send(self, file, path)

    monkeypatch.setattr(Store, "_send", sometimes)
    away.set()
    outcome = run_study(study_of(1), place, MadeRuns(tmp_path / "tally"), _console())
    assert outcome.count("finished") == 1
    folder = tmp_path / "fetched"
    place.fetch(folder)
    log = next(folder.glob("runs/*/log.txt")).read_text()
    assert log.count("could not be sent to the study's place: no route to host") == STEPS


def test_what_a_killed_process_left_on_this_machine_is_removed(tmp_path: Path, bucket: str) -> None:
    left = tmp_path / "cache" / "places" / "run-of-the-dead"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"1")
    with stores._scratch("run"):
        assert not left.exists()
