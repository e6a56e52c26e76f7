"""What the analysis of a large study costs: seconds and memory in fresh processes, beside the plain way."""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
from scipy import stats

from attndrift.bench.ratios import Ratio, ratio_of
from attndrift.bench.result import TABLES, Machine, Result

SHAPES: dict[str, dict[str, Any]] = {
    # Name -> arguments of synthetic_tables for 10,000 runs; fewer datasets, then fewer seeds, below that.
    "40 configurations of 250 runs": {"datasets": 2, "rates": 10, "lora_ranks": 1, "seeds": 250},
    "2,000 configurations of 5 runs": {"datasets": 20, "rates": 10, "lora_ranks": 9, "seeds": 5},
    "10,000 configurations of one run": {"datasets": 100, "rates": 10, "lora_ranks": 9, "seeds": 1},
}

PLAIN_RUNS = 500
"""Runs of the study that the plain way is timed on: at 10,000 it takes minutes a time."""

ALLOWED_SECONDS, ALLOWED_MEGABYTES = 20.0, 2_000.0

GROWTH_PARTS = (8, 4, 2, 1)
"""Studies whose time is followed: these parts of all runs."""


def measure(what: str, folder: str) -> dict[str, Any]:
    """One analysis of the tables in ``folder`` in this process; called by :func:`analysis` in a fresh one."""
    if what == "attndrift":
        from attndrift.analysis import analyze, load_tables

        return {"runs": analyze(load_tables(folder)).data.n_analysed}
    from attndrift.bench.plain import plain_analysis

    return plain_analysis(folder)


def _fresh(what: str, folder: Path) -> dict[str, Any]:
    """What :func:`measure` says in a process of its own, with the seconds from its start to its end, and its memory."""
    code = "import json, sys; from attndrift.bench.analysis import measure; print(json.dumps(measure(*sys.argv[1:])))"
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-c", code, what, str(folder)], stdout=out, stderr=errors, text=True
        )
        peak, ended = 0.0, False
        while not ended:
            peak = max(peak, _megabytes(process.pid))
            # Seldom: reading the pages of a gigabyte takes a while itself.
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.5)
                ended = True
        seconds = time.perf_counter() - start
        out.seek(0)
        errors.seek(0)
        if process.returncode:
            told = errors.read()[-500:]
            raise RuntimeError(f"bench analysis: the process for {what} ended with {process.returncode}: {told}")
        return {"seconds": seconds, "megabytes": peak, **json.loads(out.read().splitlines()[-1])}


def _megabytes(pid: int) -> float:
    """What a process and its children hold now, pages that they share counted once (Linux; else the first alone)."""
    total = 0.0
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            with suppress(psutil.Error):
                held = one.memory_full_info()
                total += getattr(held, "pss", held.rss)
    return total / 2**20


def write_study(shape: str, folder: Path, *, runs: int = 10_000, evaluations: int = 100) -> int:
    """Write synthetic tables of about ``runs`` runs in ``shape`` (a key of SHAPES); returns how many."""
    from attndrift.analysis.synthetic import synthetic_tables
    from attndrift.tables import write_tables

    chosen = SHAPES[shape]
    configurations = chosen["rates"] * (1 + chosen["lora_ranks"])
    # Fewer runs: fewer datasets, each as it is, so that the shape stays what it is called; then fewer seeds.
    datasets = max(1, min(chosen["datasets"], runs // (configurations * chosen["seeds"])))
    seeds = max(1, min(chosen["seeds"], runs // (configurations * datasets)))
    tables = synthetic_tables(
        datasets=tuple(f"set{place:03d}" for place in range(datasets)),
        rates=chosen["rates"],
        seeds=seeds,
        lora_ranks=tuple(range(1, chosen["lora_ranks"] + 1)),
        evaluations=evaluations,
    )
    write_tables(tables, folder)
    return int((tables.runs["method"] != "none").sum())


def analysis(
    *,
    runs: int = 10_000,
    evaluations: int = 100,
    pairs: int = 3,
    shapes: list[str] | None = None,
    grows: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Result:
    """Time and memory of the analysis, and both against the plain way (:mod:`attndrift.bench.plain`), pair by pair.

    Each measurement is a process of its own, from before its imports to its result. All ``runs`` are analysed
    ``pairs`` times; the plain way is compared on a study of the same shape of at most :data:`PLAIN_RUNS` runs, in
    pairs whose order changes. The first of each, which fills the file cache, is thrown away.
    ``grows``: also measure smaller studies.
    """
    say = progress or (lambda line: None)
    machine = Machine()
    whole: list[dict[str, Any]] = []
    found: list[Ratio] = []
    for shape in shapes or list(SHAPES):
        with tempfile.TemporaryDirectory() as name:
            count = write_study(shape, Path(name), runs=runs, evaluations=evaluations)
            taken = [_fresh("attndrift", Path(name)) for _ in range(pairs + 1)][1:]
            seconds = [one["seconds"] for one in taken]
            megabytes = statistics.median(one["megabytes"] for one in taken)
            say(f"{shape}, {count:,} runs: {statistics.median(seconds):.1f} s, {megabytes:.0f} MB")
            whole.append(
                {
                    "shape": shape, "runs": count, "evaluations a run": evaluations, "s": statistics.median(seconds),
                    "from": min(seconds), "to": max(seconds), "n": pairs, "at most, s": ALLOWED_SECONDS,
                    "MB": megabytes, "at most, MB": ALLOWED_MEGABYTES,
                }
            )  # fmt: skip
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            count = write_study(shape, folder, runs=min(runs, PLAIN_RUNS), evaluations=evaluations)
            measured: list[dict[str, dict[str, Any]]] = []
            for place in range(pairs + 1):
                order = ("plain", "attndrift") if place % 2 else ("attndrift", "plain")
                measured.append({what: _fresh(what, folder) for what in order})
            kept = measured[1:]
            own, other = ([pair[what] for pair in kept] for what in ("attndrift", "plain"))
            ratio = ratio_of(
                f"all of the analysis, {count:,} runs with {evaluations} evaluations, shape of {shape}",
                "pandas read_parquet of everything and a groupby in Python, a part of the numbers, no intervals",
                [one["seconds"] for one in own], [one["seconds"] for one in other],
            )  # fmt: skip
            used = [statistics.median(one["megabytes"] for one in side) for side in (own, other)]
            found.append(replace(ratio, megabytes=used[0], megabytes_against=used[1]))
            say(f"{shape}, {count:,} runs, against the plain way: {found[-1].ratio:.3f}")
    tables = {"a large study": whole}
    if grows:
        tables |= growth(runs=runs, evaluations=evaluations, shapes=shapes, progress=progress)
    threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    return Result("analysis", found, tables, threads=threads, packages=TABLES, others_pct=machine.others_pct())


def growth(
    *,
    runs: int = 10_000,
    evaluations: int = 100,
    shapes: list[str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Seconds and memory of the analysis against the number of runs, and the exponent of each shape, as tables.

    The exponent is the slope of the logarithm of the seconds beyond those of the smallest study, most of which are
    starting and importing, over the logarithm of the runs; null where fewer than three sizes take longer than that.
    Below 500 configurations correlations are ranked anew in every resample, so that a study of many configurations
    does not grow by one power throughout; the rows are the measurement.
    """
    rows: list[dict[str, Any]] = []
    exponents: list[dict[str, Any]] = []
    for shape in shapes or list(SHAPES):
        own = []
        for size in (max(100, runs // 100), *(runs // part for part in GROWTH_PARTS)):
            with tempfile.TemporaryDirectory() as name:
                count = write_study(shape, Path(name), runs=size, evaluations=evaluations)
                done = [_fresh("attndrift", Path(name)) for _ in range(2)][-1]
            own.append({"shape": shape, "runs": count, "s": done["seconds"], "MB": done["megabytes"]})
            if progress is not None:
                progress(f"{shape}, {count:,} runs: {done['seconds']:.1f} s")
        fixed = own[0]["s"]
        beyond = [(math.log(one["runs"]), math.log(one["s"] - fixed)) for one in own[1:] if one["s"] > fixed]
        known = len({size for size, _ in beyond}) > 2
        fit = stats.linregress(*zip(*beyond, strict=True)) if known else None
        exponents.append(
            {
                "shape": shape, "exponent": None if fit is None else fit.slope,
                "standard error": None if fit is None else fit.stderr, "sizes": len(beyond),
            }
        )  # fmt: skip
        rows += own
    return {"growth with the number of runs": rows, "exponents": exponents}
