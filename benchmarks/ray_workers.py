"""What a second worker is worth: a study of eight runs on Ray, with two workers of one core each and with one.

Each study is the command `attndrift run --engine ray` in a fresh process, on a cluster that was started before. Workers start within
the time; that is a cost once a study.
"""

from __future__ import annotations

import os
import secrets
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.ratios import ratio_of
from benchmarks.result import Output, Pairs, Result, say
from benchmarks.stopwatch import time_process

STUDY = """
name: ray-workers
shared: {model: embedded, dataset: tiles, train_per_class: %d, validation_per_class: 5, probe_size: 40, test_limit: 100,
  epochs: 2, batch_size: 16, learning_rate: 1e-4, evaluations_per_epoch: 2, map_images: 0, threads: 1}
runs:
  - {method: full, grid: {seed: [0, 1, 2, 3, 4, 5, 6, 7]}}
"""
RUNS = 8
WORKERS = 2
# Ray gives its workers a niceness of 15 by default: next to nothing of a machine that does other work as well.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "RAY_worker_niceness": "0"}


NODE = """
import sys, ray
started = ray.init("local", num_cpus=int(sys.argv[1]), include_dashboard=False, object_store_memory=200_000_000, log_to_driver=False)
print(started.address_info["address"], flush=True)
sys.stdin.read()
"""


@contextmanager
def cluster(cores: int, environment: dict[str, str]) -> Iterator[str]:
    """A Ray node of ``cores`` cores, which a process of its own starts and ends; its address."""
    command = [sys.executable, "-c", NODE, str(cores)]
    pipe = subprocess.PIPE
    # Leaving the block closes the pipe, and with it the node.
    with subprocess.Popen(
        command, env=environment, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True
    ) as node:
        assert node.stdout is not None
        address = node.stdout.readline().strip()
        if not address:
            raise RuntimeError("no Ray node came up; try `ray start --head` by hand to see why")
        yield address


def ray_workers(pairs: int, images: int, progress: Callable[[str], object] = say) -> Result:
    """Two workers against one, pair by pair in changing order. All studies must have the same history, byte for byte."""
    seconds: dict[int, list[float]] = {1: [], WORKERS: []}
    histories: set[bytes] = set()
    with tempfile.TemporaryDirectory() as scratch:
        plan = Path(scratch) / "study.yaml"
        plan.write_text(STUDY % images, encoding="utf-8")
        # Node and driver are two processes, which need the same token: one made for this measurement.
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        environment = os.environ | ENVIRONMENT | token | {"ATTNDRIFT_CACHE": f"{scratch}/cache"}

        def run(name: str, workers: int) -> float:
            folder = Path(scratch) / name
            with cluster(workers, environment) as address:
                options = ["--engine", "ray", "--address", address, "--output", str(folder)]
                command = [sys.executable, "-m", "attndrift", "run", str(plan), *options]
                taken = time_process(command, environment).seconds
            histories.add((folder / "history.parquet").read_bytes())
            progress(f"{name}: {taken:.1f} s with {workers} worker(s)")
            return taken

        run("first", WORKERS)  # prepares the images, and is thrown away
        for place in range(pairs):
            for workers in (1, WORKERS) if place % 2 else (WORKERS, 1):
                seconds[workers].append(run(f"pair-{place}-{workers}", workers))
    if len(histories) != 1:
        raise RuntimeError("studies with one worker and with two have different histories")
    what, against = f"{RUNS} runs on Ray, {WORKERS} workers of one core", "the same with one worker"
    rows = [{"workers": one, "runs a minute": 60 * RUNS / statistics.median(of)} for one, of in seconds.items()]
    ratio = ratio_of(what, against, seconds[WORKERS], seconds[1], case="start of the workers included")
    return Result("ray_workers", [ratio], {"throughput": rows}, ["The history of every study has the same bytes."])


def main(
    pairs: Pairs = 3,
    images: Annotated[int, typer.Option(min=8, help="Training images a class: a run's length.")] = 24,
    output: Output = None,
) -> None:
    """What a second worker is worth: a study of eight runs on Ray, with two workers of one core each and with one."""
    ray_workers(pairs, images).deliver(output)


if __name__ == "__main__":
    typer.run(main)
