"""A package outside the project, built and installed, and the environment in which a command finds it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import attndrift

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the package was installed into: built by pip, as anybody's is."""
    root = tmp_path_factory.mktemp("extension")
    # Built from a copy: setuptools leaves its own folders beside the sources.
    source = shutil.copytree(HERE / "package", root / "source")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
         "--disable-pip-version-check", "--target", root / "installed", source],
        check=True,
    )  # fmt: skip
    return root / "installed"


@pytest.fixture(scope="session")
def environment(installed: Path) -> dict[str, str]:
    """Of a process that finds the package."""
    paths = [str(installed), str(Path(attndrift.__file__).parents[1])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def command(environment: dict[str, str]) -> Command:
    """Runs ``attndrift`` with these arguments in a process of its own."""

    def run(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "attndrift", *map(str, arguments)]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture(scope="session")
def python(environment: dict[str, str]) -> Callable[[str], object]:
    """Runs a program of one's own, which prints one JSON value, in a process of its own."""

    def run(program: str) -> object:
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.fixture(scope="session")
def extended_study(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny study that was run with what the package brings."""
    folder = tmp_path_factory.mktemp("study") / "extended"
    command("run", HERE / "study.yaml", "-o", folder)
    return folder
