"""Timing a process that is stopped now and then, so that something else can be measured in between.

A machine's speed changes within minutes. What a process is compared with is therefore measured while the process stands
still, and no second of a pause is counted. What the process has asked of a disk goes on during a pause.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Timed:
    """How long a process took.

    Attributes:
        begun, ended: when, on the clock of ``time.monotonic``.
        lines: what it printed.
        pauses: when it stood still, from and to, on the same clock.
    """

    begun: float
    ended: float
    lines: list[str]
    pauses: list[tuple[float, float]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """From its start to its end, without the time that it stood still."""
        # The last pause may have begun as the process ended.
        return self.ended - self.begun - sum(max(0.0, min(self.ended, until) - since) for since, until in self.pauses)


def time_process(
    command: Sequence[str],
    environment: Mapping[str, str],
    say: Callable[[str], object] = lambda line: None,
    *,
    between: Callable[[], None] | None = None,
    every: float = 2.0,
) -> Timed:
    """Run ``command`` to its end; ``say`` gets each line that it prints.

    ``between``: called whenever the process has run for ``every`` seconds, while it and all that it started are stopped.
    It is called only on systems with SIGSTOP.

    Raises RuntimeError, with the end of what it wrote to standard error, where it does not end with 0.
    """
    lines = []
    with tempfile.TemporaryFile("w+") as errors:
        begun = time.monotonic()
        # Its own group, so that what it starts is stopped and ended with it. The same session: if this process dies during a
        # pause, the system wakes the group and hangs up on it.
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=dict(environment),
            process_group=0 if hasattr(os, "killpg") else None,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            try:
                with _paused_every(every, between, process) as pauses:
                    for line in process.stdout:
                        lines.append(line.rstrip())
                        say(lines[-1])
                    process.wait()
                    ended = time.monotonic()
            except BaseException:
                _signal(process, "SIGKILL")
                process.kill()
                raise
        if process.returncode:
            errors.seek(0)
            raise RuntimeError(f"{shlex.join(command)[:200]} ended with {process.returncode}: {errors.read()[-1500:]}")
    return Timed(begun, ended, lines, [pause for pause in pauses if pause[0] < ended])


def _signal(process: subprocess.Popen[str], name: str) -> bool:
    """Send a signal to a process and all that it has started; whether there was one to send it to."""
    number = getattr(signal, name, None)
    if number is None or not hasattr(os, "killpg"):
        return False
    try:
        os.killpg(process.pid, number)  # it leads its own group
    except (ProcessLookupError, PermissionError):  # none is left, or only such as have ended
        return False
    return True


@contextlib.contextmanager
def _paused_every(
    every: float, between: Callable[[], None] | None, process: subprocess.Popen[str]
) -> Iterator[list[tuple[float, float]]]:
    """Stop ``process`` each time that it has run for ``every`` seconds, and call ``between``; yields the pauses.

    What ``between`` raises ends the process, and is raised here.
    """
    pauses: list[tuple[float, float]] = []
    problems: list[BaseException] = []
    over = threading.Event()

    def take_turns() -> None:
        assert between is not None
        while not over.wait(every):
            if not _signal(process, "SIGSTOP"):
                return
            since = time.monotonic()
            try:
                between()
            except BaseException as error:
                problems.append(error)
                _signal(process, "SIGKILL")
                return
            pauses.append((since, time.monotonic()))
            _signal(process, "SIGCONT")

    thread = threading.Thread(target=take_turns, daemon=True)
    if between is not None:
        thread.start()
    try:
        yield pauses
    finally:
        over.set()
        if between is not None:
            thread.join()
    if problems:
        raise problems[0]
