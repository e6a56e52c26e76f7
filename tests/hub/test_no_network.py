"""`attndrift demo` needs no network: with every connection off this machine refused and noted, it runs to its report."""

from __future__ import annotations

from pathlib import Path

import pytest
from computer import Computer

# Python imports this module at the start of every process, also of those that a study starts.
CUT = """
import os, socket

_connect, _getaddrinfo = socket.socket.connect, socket.getaddrinfo


def _note(what):
    with open(os.environ["CONNECTIONS"], "a") as log:
        log.write(f"{what}\\n")
    raise OSError(101, "Network is unreachable")


def connect(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6):
        _note(f"connect {address}")
    return _connect(self, address)


def getaddrinfo(host, *more, **options):
    _note(f"look up {host}")


socket.socket.connect, socket.socket.connect_ex = connect, connect
socket.getaddrinfo = getaddrinfo
"""

ASK = "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9')"


@pytest.fixture
def cut(tmp_path: Path) -> dict[str, str]:
    """What is added to a process's environment."""
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "sitecustomize.py").write_text(CUT)
    return {"CONNECTIONS": str(tmp_path / "connections"), "PYTHONPATH": str(tmp_path / "cut")}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_demo_runs_with_the_network_cut(tmp_path: Path, cut: dict[str, str]) -> None:
    computer = Computer(tmp_path / "computer", "http://hub.invalid")
    inherited = computer.environment().get("PYTHONPATH")
    cut["PYTHONPATH"] += f":{inherited}" if inherited else ""
    with pytest.raises(AssertionError, match="Network is unreachable"):
        computer.python(ASK, **cut)
    connections = Path(cut["CONNECTIONS"])
    assert connections.read_text()
    connections.unlink()
    done = computer.attndrift("demo", guard=1700, **cut)
    assert done.returncode == 0, done.stderr
    assert not connections.exists(), connections.read_text()
    assert (computer.work / "studies" / "demo" / "report.html").stat().st_size > 100_000
