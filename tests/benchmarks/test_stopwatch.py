"""A timed process stands still while something else is measured, and no second of that is counted."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from benchmarks.stopwatch import Timed, time_process

posix = pytest.mark.skipif(not hasattr(os, "killpg"), reason="the system cannot stop a process")

# A child that counts, so that what stops the parent alone is found out.
COUNTING = """
import subprocess, sys, time
child = "import sys, time\\nfor i in range(30):\\n print(time.monotonic(), flush=True); time.sleep(0.05)"
sys.exit(subprocess.run([sys.executable, "-c", child]).returncode)
"""


def test_seconds_leave_out_the_pauses() -> None:
    assert Timed(0.0, 10.0, [], [(2.0, 3.0), (5.0, 9.0)]).seconds == 5.0
    assert Timed(0.0, 10.0, [], [(2.0, 3.0), (9.0, 12.0)]).seconds == 8.0  # the last pause outlasts the process


@pytest.mark.slow
@posix
def test_nothing_runs_while_it_stands_still() -> None:
    spans = []

    def between() -> None:
        since = time.monotonic()
        time.sleep(0.4)
        spans.append((since, time.monotonic()))

    seen: list[str] = []
    begun = time.monotonic()
    timed = time_process([sys.executable, "-c", COUNTING], os.environ, seen.append, between=between, every=0.3)
    whole = time.monotonic() - begun
    moments = [float(line) for line in timed.lines]
    assert len(moments) == 30
    assert seen == timed.lines
    assert len(spans) >= len(timed.pauses) >= 2  # one may begin as it ends
    # A line that was on its way when the signal came is not one that was printed afterwards.
    for since, until in spans:
        assert not [moment for moment in moments if since + 0.05 < moment < until]
    assert timed.seconds <= whole - 0.4 * len(spans)


@posix
def test_what_fails_in_between_ends_the_process_and_is_raised() -> None:
    def between() -> None:
        raise ValueError("no measurement")

    with pytest.raises(ValueError, match="no measurement"):
        time_process([sys.executable, "-c", "import time; time.sleep(600)"], os.environ, between=between, every=0.1)


def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import sys; print('begun'); sys.exit('out of luck')")
    with pytest.raises(RuntimeError, match=r"script.py ended with 1: out of luck"):
        time_process([sys.executable, str(script)], os.environ)
