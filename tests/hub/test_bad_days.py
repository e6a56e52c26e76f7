"""What the study command does on a hub's bad days: it runs, or it ends with one clear message, after few requests.

No time is measured. The number of requests is bounded; and a command that hangs is ended by the guard of ``Computer``, which
fails the test.
"""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from computer import TINY_BUDGET, Computer, readme_command
from hub_models import B32, B32_CONVERSION
from hub_server import Fault, Hub

ONE_RUN = ("--limit", "1")
slow_in_ci = [pytest.mark.slow, pytest.mark.ci("hub")]
"""Of the tests that train, or begin with what the first study left."""
A_FEW = 60
"""Requests of a study that gives up: it holds one model and three datasets, and one try each has room in this."""


def run_study(computer: Computer, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return computer.attndrift(*readme_command(), *TINY_BUDGET, *more, **environment)


def the_message(done: subprocess.CompletedProcess[str]) -> str:
    """What a study that cannot run prints: a message, no traceback, and nothing twice."""
    assert done.returncode not in (0, 70, -9), done.stdout + done.stderr
    said = done.stdout + done.stderr
    assert "Traceback" not in said
    assert "None" not in said
    messages = [line for line in done.stderr.splitlines() if line.startswith("attndrift: ")]
    assert len(messages) == 1, done.stderr
    return said


def nothing_was_run(computer: Computer) -> bool:
    return not list(computer.work.glob("studies/*/runs/*/record.json"))


@dataclass(frozen=True)
class Day:
    """Faults of the hub, and what the message must say."""

    faults: tuple[Fault, ...]
    says: str
    requests: int = A_FEW


MODEL = rf"/{B32}(/|$)"
TOO_MANY = {"Retry-After": "3600"}

DAYS = {
    "gated": Day(
        (Fault(rf"{MODEL}resolve|resolve-cache/models{MODEL}", status=401, headers={"X-Error-Code": "GatedRepo"}),),
        r"(?is)clip-vit-base-patch32.*gated.*log in",
    ),
    "401": Day((Fault(".", status=401),), r"(?i)401.*log in|log in"),
    "403": Day((Fault(".", status=403),), r"(?i)403"),
    "404": Day(
        (Fault("tanganke/eurosat", status=404, headers={"X-Error-Code": "RepoNotFound"}),),
        r"(?is)tanganke/eurosat.*no such repository",
    ),
    "no such revision": Day(
        (Fault(rf"{MODEL}.*{B32_CONVERSION}", status=404, headers={"X-Error-Code": "RevisionNotFound"}),),
        r"(?is)clip-vit-base-patch32.*revision",
    ),
    "429 for an hour": Day((Fault(".", status=429, headers=TOO_MANY),), r"(?s)429.*3600"),
    "500": Day((Fault(".", status=500),), r"500"),
    "503": Day((Fault(".", status=503),), r"503"),
    "cut download": Day((Fault("GET /lfs/", "cut"),), r"(?i)clip-vit-base-patch32|eurosat"),
    "changed byte": Day((Fault("GET /lfs/", "flip"),), r"(?i)sha-?256|checksum|damaged|changed"),
    "silence": Day((Fault(".", "silence"),), r"(?i)no answer within 10 seconds", requests=10),
    "silence in the downloads": Day((Fault("GET /lfs/", "silence"),), r"(?i)10 seconds"),
}
FAST, CI = {"gated"}, {"404", "changed byte", "silence"}
"""A 429 and a 500 of the whole hub are in `test_what_the_whole_hub_refuses_is_one_reason`."""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FAST else slow_in_ci if n in CI else pytest.mark.slow) for n in DAYS]
)
def test_a_bad_day_ends_in_one_message(computer: Computer, hub: Hub, name: str) -> None:
    day = DAYS[name]
    with hub.failing(*day.faults):
        done = run_study(computer)
    print(done.stdout, done.stderr)
    assert re.search(day.says, the_message(done))
    assert nothing_was_run(computer)
    assert len(hub.requests) <= day.requests, hub.requests


PASSING = {
    "429 for a second": (Fault("GET /lfs/", status=429, headers={"Retry-After": "1"}, times=1),),
    "one 500": (Fault("GET /lfs/", status=500, times=1),),
    "one cut download": (Fault("GET /lfs/", "cut", times=1),),
    "one changed byte": (Fault("GET /lfs/", "flip", times=1),),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=slow_in_ci if n == "429 for a second" else pytest.mark.slow) for n in PASSING]
)
def test_what_passes_ends_in_a_run(computer: Computer, hub: Hub, name: str) -> None:
    """A download that broke once is completed, or a second command completes it; never is a broken file read."""
    with hub.failing(*PASSING[name]):
        done = run_study(computer, *ONE_RUN)
    print(done.stdout, done.stderr)
    if done.returncode != 0:
        the_message(done)
        done = run_study(computer, *ONE_RUN)
    assert done.returncode == 0, done.stderr
    assert not nothing_was_run(computer)


@pytest.fixture
def closed_port() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.mark.slow
@pytest.mark.ci("hub")
def test_no_route(computer: Computer, closed_port: str) -> None:
    done = run_study(computer, HF_ENDPOINT=closed_port)
    print(done.stdout, done.stderr)
    message = the_message(done)
    assert closed_port.removeprefix("http://") in message
    assert nothing_was_run(computer)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("written", ["http://LOCALHOST:{}", "http://user:secret@localhost:{}/", "localhost:{}"])
def test_another_way_to_write_the_address_is_the_same_host(computer: Computer, closed_port: str, written: str) -> None:
    address = written.format(closed_port.rpartition(":")[2])
    done = run_study(computer, "--dry-run", HF_ENDPOINT=address)
    assert "out of reach" in the_message(done)
    assert "for 4 reasons" not in done.stderr
    assert "secret" not in done.stderr
    assert not done.stdout, "no table of what is not known"


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("fault", "remedy"),
    [
        (Fault(".", status=401), "log in"),
        (Fault(".", status=429, headers={"Retry-After": "1"}), "try again in 1 second,"),
        (Fault(".", status=500), "try again later"),
    ],
    ids=["401", "429 for a second", "500"],
)
def test_what_the_whole_hub_refuses_is_one_reason(computer: Computer, hub: Hub, fault: Fault, remedy: str) -> None:
    with hub.failing(fault):
        done = run_study(computer)
    message = the_message(done)
    assert message.count(f"({fault.status})") == 1
    assert done.stderr.count(remedy) == 1
    for what in (f"model {B32}", "dataset eurosat", "dataset pets", "transfer set cifar100"):
        assert what in done.stderr
    assert nothing_was_run(computer)


@pytest.mark.slow
def test_no_route_in_a_dry_run(computer: Computer, closed_port: str) -> None:
    done = run_study(computer, "--dry-run", HF_ENDPOINT=closed_port)
    print(done.stdout, done.stderr)
    the_message(done)


def test_offline_with_an_empty_cache(computer: Computer, hub: Hub) -> None:
    done = run_study(computer, HF_HUB_OFFLINE="1")
    print(done.stdout, done.stderr)
    assert "HF_HUB_OFFLINE" in the_message(done)
    assert not hub.requests
    assert nothing_was_run(computer)


@pytest.mark.slow
@pytest.mark.ci("hub")
def test_offline_after_a_check_alone(computer: Computer) -> None:
    """A check leaves the descriptions of the datasets in the cache, and none of their images."""
    assert computer.attndrift("check", *readme_command()[1:], *TINY_BUDGET).returncode == 0
    assert list(computer.hub_cache.glob("datasets--*/snapshots/*/README.md"))
    done = run_study(computer, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE" in the_message(done)
    for what in ("dataset eurosat", "dataset pets", "transfer set cifar100"):
        assert what in done.stderr
    assert nothing_was_run(computer)


@pytest.mark.slow
@pytest.mark.ci("hub")
def test_offline_without_one_of_the_splits(warm_computer: Computer) -> None:
    for file in warm_computer.hub_cache.glob("datasets--tanganke--eurosat/snapshots/*/data/test-*"):
        file.unlink()
    done = run_study(warm_computer, HF_HUB_OFFLINE="1")
    assert "dataset eurosat" in the_message(done)
    assert "dataset pets" not in done.stderr


@pytest.mark.slow
def test_offline_with_a_warm_cache(warm_computer: Computer, hub: Hub) -> None:
    done = run_study(warm_computer, *ONE_RUN, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert not hub.requests


@pytest.mark.slow
def test_no_route_with_a_warm_cache(warm_computer: Computer, closed_port: str) -> None:
    done = run_study(warm_computer, *ONE_RUN, HF_ENDPOINT=closed_port)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_silence_with_a_warm_cache(warm_computer: Computer, hub: Hub) -> None:
    with hub.failing(Fault(".", "silence")):
        done = run_study(warm_computer, *ONE_RUN)
    assert done.returncode == 0, done.stderr
    assert len(hub.requests) <= 10


def as_older_versions_wrote(cache: Path) -> None:
    """Files in place of links (no symlinks), no list of files that are not there, and the flat cache of 2021 beside it."""
    for path in sorted(cache.rglob("*")):
        if path.is_symlink():
            content = path.read_bytes()
            path.unlink()
            path.write_bytes(content)
    for name in ("blobs", ".no_exist", "trees"):
        for folder in list(cache.rglob(name)):
            shutil.rmtree(folder)
    (cache / "version.txt").write_text("1")
    flat = cache.parent / "transformers"
    flat.mkdir()
    (flat / ("a" * 64 + "." + "b" * 64)).write_bytes(b"{}")
    (flat / ("a" * 64 + "." + "b" * 64 + ".json")).write_text('{"url": "https://hub/config.json", "etag": "b"}')


@pytest.mark.slow
@pytest.mark.ci("hub")
def test_a_cache_that_another_version_wrote(warm_computer: Computer, hub: Hub) -> None:
    as_older_versions_wrote(warm_computer.hub_cache)
    done = run_study(warm_computer, *ONE_RUN, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert not hub.requests


@pytest.mark.slow
def test_a_cache_whose_files_are_gone(warm_computer: Computer) -> None:
    """Links of which another program removed what they lead to: offline they are a message."""
    for blobs in list(warm_computer.hub_cache.rglob("blobs")):
        shutil.rmtree(blobs)
    done = run_study(warm_computer, *ONE_RUN, HF_HUB_OFFLINE="1")
    print(done.stdout, done.stderr)
    assert "HF_HUB_OFFLINE" in the_message(done)


@pytest.mark.slow
def test_a_cut_file_in_the_cache(warm_computer: Computer) -> None:
    """Weights that a full disk cut short are not read; offline they are a message."""
    (weights,) = warm_computer.hub_cache.glob(f"models--*/snapshots/{B32_CONVERSION}/model.safetensors")
    blob = weights.resolve()
    blob.write_bytes(blob.read_bytes()[:-1000])
    done = run_study(warm_computer, *ONE_RUN, HF_HUB_OFFLINE="1")
    print(done.stdout, done.stderr)
    assert B32 in the_message(done)


@pytest.mark.slow
def test_a_gated_model_of_ones_own(computer: Computer) -> None:
    done = run_study(computer, "--set", "model=made/gated")
    print(done.stdout, done.stderr)
    assert re.search("(?s)made/gated.*gated", the_message(done))
