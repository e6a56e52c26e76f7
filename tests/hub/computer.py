"""The command line in a process of its own, on a machine that has its own caches."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

GUARD = 540
"""Seconds after which a command counts as hanging. A guard of the tests, not what they measure."""

_NOT_PASSED_ON = ("HF_", "HUGGINGFACE", "TRANSFORMERS_", "ATTNDRIFT_", "XDG_", "AWS_")


TINY_BUDGET = tuple(
    part
    for setting in (
        "epochs=1",
        "train_per_class=2",
        "test_limit=37",
        "transfer_limit=100",
        "probe_size=20",
        "monitor_zero_shot_images=0",
        "evaluations_per_epoch=1",
        "map_images=1",
        "threads=1",
    )
    for part in ("--set", setting)
)
"""What makes a study short. No option names a model or a dataset."""


def readme_command() -> list[str]:
    """The arguments of the README's study command: the line that needs a hub."""
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (line,) = [line for line in readme.splitlines() if line.startswith("attndrift run") and "from the hub" in line]
    program, *arguments = shlex.split(line, comments=True)
    assert program == "attndrift"
    return arguments


class Computer:
    """A user's machine: a home with its caches, a folder to work in, and a hub to ask."""

    def __init__(self, folder: Path, endpoint: str) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.work = folder / "work"
        self.work.mkdir(parents=True, exist_ok=True)
        self.endpoint = endpoint

    @property
    def hub_cache(self) -> Path:
        return self.home / "huggingface" / "hub"

    def environment(self, **more: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_PASSED_ON)}
        kept |= {
            "HOME": str(self.home),
            "XDG_CACHE_HOME": str(self.home),
            "HF_ENDPOINT": self.endpoint,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "OMP_NUM_THREADS": "1",
            "MPLBACKEND": "Agg",
            "COLUMNS": "200",
        }
        return kept | more

    def python(self, code: str, *arguments: str, **environment: str) -> str:
        """What a script prints; it must end well."""
        done = self._run([sys.executable, "-c", code, *arguments], environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def attndrift(self, *arguments: str, guard: float = GUARD, **environment: str) -> subprocess.CompletedProcess[str]:
        """One command, as a user gives it."""
        return self._run([sys.executable, "-m", "attndrift", *arguments], environment, guard)

    def _run(
        self, command: list[str], environment: dict[str, str], guard: float = GUARD
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.work,
            env=self.environment(**environment),
            capture_output=True,
            text=True,
            timeout=guard,
            check=False,
        )


@dataclass(frozen=True)
class FirstStudy:
    """The study of the README as it was run on a new machine."""

    computer: Computer
    requests: list[str]
    printed: str
    complaints: str
    exit_code: int

    @property
    def folder(self) -> Path:
        return self.computer.work / "studies" / "collapse-21"
