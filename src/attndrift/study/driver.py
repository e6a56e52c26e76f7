"""Who drives a study: in an object store the one process that a marker object names, in a folder whoever holds a lock."""

from __future__ import annotations

import json
import os
import secrets
import socket
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import psutil
from filelock import FileLock, Timeout

MARKER = ".driver.json"
TAKE_OVER = "--take-over"


class StudyLocked(ValueError):
    """Another driver is at work on the study."""


class DriverReplaced(RuntimeError):
    """This process no longer drives the study, or works for a driver that no longer does: it sends nothing more."""


@dataclass(frozen=True)
class Driver:
    """A process that drives a study, as its marker names it.

    Attributes:
        host: the name of its machine.
        process: its number there.
        time: when it began to drive, UTC.
        token: random; it tells two drivers apart.
        machine: where the number means something: a boot of a machine and a namespace of processes; "" where the system
            does not say.
        created: when the process was created, in seconds since 1970: numbers are used again.
    """

    host: str = "unknown"
    process: int = 0
    time: str = "unknown"
    token: str = ""
    machine: str = ""
    created: float = 0.0

    @classmethod
    def current(cls) -> Self:
        """This process, with a new token."""
        return cls(
            host=socket.gethostname(),
            process=os.getpid(),
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            token=secrets.token_hex(16),
            machine=_machine(),
            created=psutil.Process().create_time(),
        )

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """The driver in a marker's content; an unknown one where that cannot be understood."""
        try:
            found = json.loads(content)
            process, created = int(found["process"]), float(found["created"])
            return cls(
                str(found["host"]), process, str(found["time"]), str(found["token"]), str(found["machine"]), created
            )
        except (ValueError, KeyError, TypeError):
            return cls()

    def to_bytes(self) -> bytes:
        """The content of its marker."""
        return json.dumps(asdict(self), indent=1).encode()

    def __str__(self) -> str:
        return f"host {self.host}, process {self.process}, since {self.time}"

    def has_ended(self) -> bool:
        """Whether it surely has: it was started on this machine, and no process has its number any more, or another one has."""
        if not self.machine or self.machine != _machine():
            return False
        try:
            found = psutil.Process(self.process)
            return found.status() == psutil.STATUS_ZOMBIE or abs(found.create_time() - self.created) > 1
        except psutil.NoSuchProcess:
            return True
        except (psutil.Error, ValueError):
            return False


class DriverPresence:
    """This process is seen to drive the study in ``folder`` until it closes this, or dies: it holds a file of its own locked."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / f".driver-{secrets.token_hex(8)}.lock"
        self._lock = FileLock(self._path)
        self._lock.acquire()

    def others(self) -> bool:
        """Whether other drivers are at work there; files of those that have died are removed."""
        found = False
        for path in list(self._path.parent.glob(".driver-*.lock")):
            if path == self._path:
                continue
            try:
                with FileLock(path, timeout=0):
                    path.unlink(missing_ok=True)
            except Timeout:
                found = True
        return found

    def close(self) -> None:
        """This process drives the study no longer."""
        self._lock.release()
        self._path.unlink(missing_ok=True)


def _machine() -> str:
    """This boot of this machine, and the namespace of its processes: host names of containers are not unique."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""
