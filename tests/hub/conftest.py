"""The hub's double, and machines that ask it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from computer import TINY_BUDGET, Computer, FirstStudy, readme_command
from filelock import FileLock
from hub_datasets import dataset_repositories
from hub_models import model_repositories
from hub_server import Hub


@pytest.fixture(scope="session")
def hub() -> Iterator[Hub]:
    with Hub(model_repositories() + dataset_repositories()) as running:
        yield running


@pytest.fixture
def computer(hub: Hub, tmp_path: Path) -> Computer:
    """A new machine, which has never asked a hub for anything; the hub's log begins anew."""
    hub.requests.clear()
    return Computer(tmp_path / "computer", hub.endpoint)


@pytest.fixture(scope="session")
def first_study(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> FirstStudy:
    """Made once, also where several processes share the tests. It is looked at and copied, never changed."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "first-study"
    names = ("requests", "printed", "complaints", "exit_code")
    with FileLock(f"{shared}.lock"):
        computer = Computer(shared, hub.endpoint)
        if not (shared / "exit_code").exists():
            hub.requests.clear()
            done = computer.attndrift(*readme_command(), *TINY_BUDGET)
            for name, value in zip(
                names, ("\n".join(hub.requests), done.stdout, done.stderr, str(done.returncode)), strict=True
            ):
                (shared / name).write_text(value, encoding="utf-8")
    requests, printed, complaints, exit_code = ((shared / name).read_text(encoding="utf-8") for name in names)
    return FirstStudy(computer, requests.splitlines(), printed, complaints, int(exit_code))


@pytest.fixture
def warm_computer(hub: Hub, first_study: FirstStudy, tmp_path: Path) -> Computer:
    """A machine with the caches that the first study left, and nothing else."""
    copied = Computer(tmp_path / "warm", hub.endpoint)
    shutil.copytree(first_study.computer.home, copied.home, symlinks=True)
    hub.requests.clear()
    return copied
