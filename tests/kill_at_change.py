"""A study in a process of its own that ends itself by SIGKILL right before a chosen change to the study folder."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import peft  # noqa: F401 -- here, like all that a run imports on its way: processes are forked from one that has it
import tensorboard.summary.writer.event_file_writer  # noqa: F401
from rich.console import Console

import attndrift.results.tables  # noqa: F401
from attndrift.cli.progress import StudyConsole
from attndrift.study.executor import Executor
from attndrift.study.loading import parse_study
from attndrift.study.resources import StudyResources
from attndrift.study.runner import run_study

os.fsync = lambda descriptor: None  # a kill, unlike a power cut, loses nothing that was written
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
NATIVE = {"serialize_file", "write_end_of_file"}
"""Functions of safetensors and torch that write files without Python's knowing."""


class Changes:
    """Counts the changes to what lies below ``folder``, and kills this process before number ``kill_at``."""

    def __init__(self, folder: Path, kill_at: int | None) -> None:
        self.folder, self.kill_at, self.count = str(folder), kill_at, 0
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & WRITES:
                self._changed(path, None)
        elif event in ("os.remove", "os.rmdir"):
            self._changed(*arguments)
        elif event == "os.mkdir":
            if self._changed(arguments[0], arguments[2]):
                sys.setprofile(self._profile)  # it slows everything down, and these functions write into new folders
        elif event in ("os.rename", "os.link", "os.symlink") and self._changed(arguments[1], None):
            sys.setprofile(None)

    def _profile(self, frame: FrameType, event: str, function: Any) -> None:
        if event == "c_call" and getattr(function, "__name__", "") in NATIVE:
            self._next()

    def _changed(self, path: Any, folder: int | None) -> bool:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return False
        text = os.fsdecode(path)
        if folder is not None and folder >= 0:
            text = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), text)
        # Nothing depends on the log, which has a line for everything.
        if not text.startswith(self.folder) or text.endswith("/log.txt"):
            return False
        self._next()
        return True

    def _next(self) -> None:
        self.count += 1
        if self.count == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


def run_and_count(text: str, folder: Path, cache: Path, tally: Path, kill_at: int | None) -> None:
    """Run a study; note each step in ``tally``, at once, and the number of changes at the end."""
    study = parse_study(text, where="study.yaml")
    handle = os.open(tally, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def noting(step: Callable[[int, int], None]) -> Callable[[int, int], None]:
        def noted(done: int, total: int) -> None:
            os.write(handle, f"step {done}\n".encode())
            step(done, total)

        return noted

    with Executor(StudyResources(cache)) as execute:

        def work(run: Any, where: Path, reporter: Any) -> dict[str, Any]:
            reporter.step = noting(reporter.step)
            return execute(run, where, reporter)

        changes = Changes(folder, kill_at)
        try:
            run_study(study, folder, work, StudyConsole(console=Console(file=io.StringIO())))
        finally:
            sys.setprofile(None)
    os.write(handle, f"changes {changes.count}\n".encode())
