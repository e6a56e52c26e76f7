"""What a second worker is worth: a study of eight runs on Ray, with two workers of one core each and with one.

Every study is run in a fresh process, on a cluster that it starts itself and images that are ready. Throughput counts
what the engine does from its first task to its last table, on workers that are up: processes that have imported
``torch``, as those of a cluster have that is at work. Starting them is measured as well, and a second ratio counts it;
it is a cost once a study, which weighs the less the longer the study is. Starting the cluster itself is in neither.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attndrift.bench.ratios import ratio_of
from attndrift.bench.result import Result

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
    with cluster(None, workers) as ray, tempfile.TemporaryDirectory() as meeting:
        there = time.perf_counter()
        ray.get([ray.remote(_wake).options(num_cpus=1).remote(meeting, workers) for _ in range(workers)])
        ready = time.perf_counter()
        table = StudyTable(console=Console(file=open(os.devnull, "w", encoding="utf-8")))  # noqa: SIM115
        outcome = run_study(study, folder, Deferred(), table, engine=InRay(cpus_per_run=1))
        done = time.perf_counter()
    if outcome.count("finished") != len(study.runs):
        raise RuntimeError(f"bench scale: {outcome.statuses}; see log.txt in {folder}/runs")
    return {"seconds": done - ready, "start": ready - there, "cluster": there - begun}


def _wake(meeting: str, workers: int) -> None:
    """In a worker: import what a run needs, and wait for the others, so that no worker does it twice."""
    import attndrift.study.running  # noqa: F401

    Path(meeting, str(os.getpid())).touch()
    while len(os.listdir(meeting)) < workers:
        time.sleep(0.02)


def _fresh(workers: int, images: int, folder: Path) -> dict[str, float]:
    code = (
        "import json, sys; from attndrift.bench.scale import measure; "
        "print(json.dumps(measure(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])))"
    )
    # Ray would give its workers the least of the machine's time: on one that does other things too, next to none.
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "RAY_worker_niceness": "0",
    }
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, "-c", code, str(workers), str(images), str(folder)],
        check=False, capture_output=True, text=True, env=environment,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"bench scale: {workers} workers ended with {done.returncode}: {done.stderr[-500:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def scale(*, pairs: int = 3, images: int = 24, progress: Callable[[str], object] = print) -> Result:
    """Two workers against one, pair by pair, the order turning; the tables of all must be the same bytes."""
    found: dict[int, list[dict[str, float]]] = {1: [], WORKERS: []}
    tables: set[bytes] = set()

    def study(name: str, workers: int) -> dict[str, float]:
        folder = Path(scratch) / name
        measured = _fresh(workers, images, folder)
        tables.add((folder / "history.parquet").read_bytes())
        progress(
            f"{name}: {measured['seconds']:.1f} s, after {measured['start']:.1f} s of starting {workers} worker(s) and "
            f"{measured['cluster']:.1f} s of starting the cluster"
        )
        return measured

    with tempfile.TemporaryDirectory() as scratch:
        study("thrown away (draws and prepares the images)", WORKERS)
        for place in range(1, pairs + 1):
            for workers in (1, WORKERS) if place % 2 else (WORKERS, 1):
                found[workers].append(study(f"pair {place} of {pairs}, {workers} worker(s)", workers))
    if len(tables) != 1:
        raise RuntimeError("bench scale: studies with one worker and with two have different tables")
    seconds = {workers: [one["seconds"] for one in measured] for workers, measured in found.items()}
    whole = {workers: [one["seconds"] + one["start"] for one in measured] for workers, measured in found.items()}
    what, against = f"{RUNS} runs on Ray, {WORKERS} workers of one core", "the same with one worker"
    ratio = ratio_of(what, against, seconds[WORKERS], seconds[1], case="workers that are up")
    started = ratio_of(what, against, whole[WORKERS], whole[1], case="starting the workers included")
    rows: list[dict[str, Any]] = [
        {
            "workers": workers,
            "runs a minute": round(60 * RUNS / statistics.median(times), 2),
            "seconds": ", ".join(f"{one:.1f}" for one in times),
            "start of the workers, s": ", ".join(f"{one['start']:.1f}" for one in found[workers]),
        }
        for workers, times in seconds.items()
    ]
    clusters = [one["cluster"] for measured in found.values() for one in measured]
    return Result(
        "scale",
        [ratio.aiming_at(1 / AT_LEAST), started],
        tables={f"throughput: {1 / ratio.ratio:.2f} times that of one worker (at least {AT_LEAST})": rows},
        notes=[
            "Throughput counts from the first task to the last table, on workers that are up; with their start it is "
            f"{1 / started.ratio:.2f} times that of one worker.",
            f"Starting the Ray cluster, {min(clusters):.1f} to {max(clusters):.1f} s with one worker as with two, is in neither.",
            "The history of every study has the same bytes.",
        ],
        packages=("attndrift", "ray", "torch", "transformers", "numpy"),
        # Ray's workers are not this process's children, so that they cannot be told from other programs.
        others_pct=None,
    )
