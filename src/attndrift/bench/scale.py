"""What a second worker is worth: a study of eight runs on Ray, with two workers of one core each and with one.

Every study is run in a fresh process, on a cluster that it starts itself and images that are ready. Timed is what the
engine does from its first task to its last table: workers starting up, ``torch`` imported in each, and eight runs.
Starting the cluster takes as long for one worker as for two, and is reported beside it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attndrift.bench.ratios import ratio_of
from attndrift.bench.result import Machine, Result

STUDY = """
name: scale
shared:
  model: embedded
  dataset: tiles
  train_per_class: {images}
  validation_per_class: 5
  probe_size: 40
  test_limit: 100
  epochs: 2
  batch_size: 16
  learning_rate: 1e-4
  evaluations_per_epoch: 2
  map_images: 0
  threads: 1
runs:
  - {{method: full, grid: {{seed: [0, 1, 2, 3, 4, 5, 6, 7]}}}}
"""
RUNS = 8
WORKERS = 2
AT_LEAST = 1.8


def measure(workers: int, images: int, folder: str) -> dict[str, float]:
    """One study in this process, with so many workers; called by :func:`scale` in a fresh one. Seconds."""
    from rich.console import Console

    from attndrift.console_table import StudyTable
    from attndrift.study.engine import run_study
    from attndrift.study.engines.ray import InRay, cluster
    from attndrift.study.loading import parse_study
    from attndrift.study.processes import Deferred

    study = parse_study(STUDY.format(images=images), where="bench scale")
    begun = time.perf_counter()
    with cluster(None, workers):
        ready = time.perf_counter()
        table = StudyTable(console=Console(file=open(os.devnull, "w", encoding="utf-8")))  # noqa: SIM115
        outcome = run_study(study, folder, Deferred(), table, engine=InRay(cpus_per_run=1))
        done = time.perf_counter()
    if outcome.count("finished") != len(study.runs):
        raise RuntimeError(f"bench scale: {outcome.statuses}; see log.txt in {folder}/runs")
    return {"seconds": done - ready, "cluster": ready - begun}


def _fresh(workers: int, images: int, folder: Path) -> dict[str, float]:
    code = (
        "import json, sys; from attndrift.bench.scale import measure; "
        "print(json.dumps(measure(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])))"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, "-c", code, str(workers), str(images), str(folder)],
        check=False, capture_output=True, text=True, env=environment,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"bench scale: {workers} workers ended with {done.returncode}: {done.stderr[-500:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def scale(*, pairs: int = 3, images: int = 40, progress: Callable[[str], object] = print) -> Result:
    """Two workers against one, pair by pair, the order turning; the tables of all must be the same bytes."""
    machine = Machine()
    seconds: dict[int, list[float]] = {1: [], WORKERS: []}
    started: list[float] = []
    tables: set[bytes] = set()
    with tempfile.TemporaryDirectory() as name:
        for place in range(pairs + 1):
            now: dict[int, dict[str, float]] = {}
            for workers in (1, WORKERS) if place % 2 else (WORKERS, 1):
                folder = Path(name) / f"{place}-{workers}"
                now[workers] = _fresh(workers, images, folder)
                tables.add((folder / "history.parquet").read_bytes())
            progress(
                f"pair {place} of {pairs}{' (thrown away)' if place == 0 else ''}: "
                + ", ".join(f"{workers} workers {now[workers]['seconds']:.1f} s" for workers in sorted(now))
            )
            if place:
                for workers, found in now.items():
                    seconds[workers].append(found["seconds"])
                    started.append(found["cluster"])
    if len(tables) != 1:
        raise RuntimeError("bench scale: studies with one worker and with two have different tables")
    ratio = ratio_of(
        f"{RUNS} runs on Ray, {WORKERS} workers of one core", "the same with one worker", seconds[WORKERS], seconds[1]
    )
    rows: list[dict[str, Any]] = [
        {
            "workers": workers,
            "runs a minute": round(60 * RUNS / sorted(times)[len(times) // 2], 2),
            "seconds": ", ".join(f"{one:.1f}" for one in times),
        }
        for workers, times in seconds.items()
    ]
    return Result(
        "scale",
        [ratio.aiming_at(1 / AT_LEAST)],
        tables={f"throughput: {1 / ratio.ratio:.2f} times that of one worker (at least {AT_LEAST})": rows},
        notes=[
            f"Starting the Ray cluster took {min(started):.1f} to {max(started):.1f} s more, with one worker as with two.",
            "The history of every study has the same bytes.",
        ],
        packages=("attndrift", "ray", "torch", "transformers", "numpy"),
        others_pct=machine.others_pct(),
    )
