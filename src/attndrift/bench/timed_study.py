"""The study of ``attndrift bench study`` as a process of its own, which says what its runs are at and when.

``python -m attndrift.bench.timed_study STUDY.json FOLDER JOBS`` prints ``@ [time.monotonic(), run, phase]`` whenever a run
begins a phase, with null for the phase where it has ended; on the last line the seconds of processor time of processes that
nobody waits for. Other lines are what somebody else has printed.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import psutil

from attndrift.console import RunReporter, StudyConsole
from attndrift.study.engine import one_after_the_other, run_study
from attndrift.study.processes import Deferred, InProcesses
from attndrift.study.settings import NamedRun, Study

STAMP = "@ "


def _stamp(run_id: str, phase: str | None) -> None:
    print(STAMP + json.dumps([time.monotonic(), run_id, phase]), flush=True)


class _StampedRun(RunReporter):
    def phase(self, what: str) -> None:
        _stamp(self._name, what)
        super().phase(what)


class _Stamped(StudyConsole):
    of_run = _StampedRun

    def ended(self, run: NamedRun, status: str, detail: str) -> None:
        _stamp(run.run_id, None)
        super().ended(run, status, detail)


def _spent(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:  # it has ended, and has been counted by the system
        return 0.0
    return float(times.user + times.system + times.children_user + times.children_system)


def main(plan: str, folder: str, jobs: int) -> None:
    """Run the study in the file ``plan`` in ``folder``, ``jobs`` runs at a time."""
    study = Study.model_validate_json(Path(plan).read_text(encoding="utf-8"))
    engine = InProcesses(jobs) if jobs > 1 else one_after_the_other
    run_study(study, Path(folder), Deferred(), _Stamped(), engine=engine)
    # Of the process that the others were forked from, which lives on; those have ended, and it has counted them.
    print(sum(map(_spent, psutil.Process().children())))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
