"""A stand-in for training that saves resumable states and goes on from them, and may be told to die on the way."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attndrift.study.loading import parse_study
from attndrift.study.settings import NamedRun, Study

STEPS = 5


def study_of(seeds: int, name: str = "made") -> Study:
    """A study of one run a seed, each of one thread."""
    text = (
        f"name: {name}\nshared: {{dataset: tiles, threads: 1}}\nruns:\n  - {{grid: {{seed: {list(range(seeds))}}}}}\n"
    )
    return parse_study(text, where="made")


@dataclass(frozen=True)
class MadeRuns:
    """Counts, keeping what it has with every step.

    Attributes:
        tally: a folder in which every start is noted, with the step that it went on from.
        deaths: how many starts of each run end by SIGKILL in its third step.
        fail: seeds that raise.
        pause: seconds a step.
        gate: a file that must be there before the second step begins.
        steps: that a run has.
    """

    tally: Path
    deaths: int = 0
    fail: tuple[int, ...] = ()
    pause: float = 0.0
    gate: Path | None = None
    steps: int = STEPS

    def __call__(self, run: NamedRun, folder: Path, reporter: Any) -> dict[str, Any]:
        state = folder / "resume" / "step-0" / "sum.json"
        known = sorted((folder / "resume").glob("step-*"), key=lambda p: int(p.name.removeprefix("step-")))
        history = json.loads((known[-1] / "sum.json").read_text()) if known else []
        starts = self.tally / f"{run.run_id}.txt"
        with starts.open("a") as file:
            file.write(f"{len(history)} {os.getpid()}\n")
        if run.settings.seed in self.fail:
            raise RuntimeError("the disk is full")
        reporter.phase("counting")
        for step in range(len(history) + 1, self.steps + 1):
            time.sleep(self.pause)
            if step == 2:
                self._wait_for_gate()
            if step == 3 and len(starts.read_text().splitlines()) <= self.deaths:
                os.kill(os.getpid(), signal.SIGKILL)
            with (self.tally / "computed.txt").open("a") as file:
                file.write(f"{run.run_id} {step}\n")
            history.append({"step": step, "epoch": step / self.steps, "entropy": step * 0.5 + run.settings.seed})
            state = folder / "resume" / f"step-{step}" / "sum.json"
            state.parent.mkdir(parents=True, exist_ok=True)
            state.write_text(json.dumps(history))
            reporter.step(step, self.steps)
            reporter.saved(step)
        (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in history))
        row = {"dataset": "tiles", "method": "full", "seed": run.settings.seed, "status": "finished"}
        return {"status": "finished", "run_id": run.run_id, "row": row}

    def _wait_for_gate(self) -> None:
        # Not for ever: who should open it may have failed, and nobody else ends the job of a scheduler.
        deadline = time.monotonic() + 300
        while self.gate is not None and not self.gate.exists() and time.monotonic() < deadline:
            time.sleep(0.05)

    def starts(self, run: NamedRun) -> list[int]:
        """The step that each start of a run went on from."""
        path = self.tally / f"{run.run_id}.txt"
        return [int(line.split()[0]) for line in path.read_text().splitlines()] if path.exists() else []


def tables_of(folder: Path) -> dict[str, bytes]:
    """The bytes of the tables in a folder."""
    return {path.name: path.read_bytes() for path in folder.glob("*.parquet")}
