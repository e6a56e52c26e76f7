"""What the analysis of a large study costs: seconds and memory in fresh processes, beside plain pandas."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer

from benchmarks.ratios import Ratio, ratio_of
from benchmarks.result import ROOT, OtherPrograms, Output, Pairs, Result, say

SHAPES: dict[str, dict[str, int]] = {
    # Name -> what makes 10,000 runs; fewer datasets, then fewer seeds, below that.
    "40 configurations of 250 runs": {"datasets": 2, "rates": 10, "lora_ranks": 1, "seeds": 250},
    "2,000 configurations of 5 runs": {"datasets": 20, "rates": 10, "lora_ranks": 9, "seeds": 5},
    "10,000 configurations of one run": {"datasets": 100, "rates": 10, "lora_ranks": 9, "seeds": 1},
}
BASELINE_RUNS = 500
"""Runs of the study that plain pandas is timed on; at 10,000 it takes minutes a time."""

AT_MOST_SECONDS, AT_MOST_MEGABYTES = 20.0, 2_000.0
EVALUATIONS = 100
MEBIBYTE = 2**20


def measure(what: str, folder: str) -> dict[str, Any]:
    """One analysis of the tables in ``folder``; :func:`in_fresh_process` calls it."""
    if what == "attndrift":
        from attndrift.analysis import analyze, load_tables

        return {"runs": analyze(load_tables(folder)).data.n_analysed}
    from benchmarks.pandas_baseline import pandas_analysis

    return pandas_analysis(folder)


def in_fresh_process(what: str, folder: Path) -> dict[str, Any]:
    """What :func:`measure` returns in a process of its own, with the seconds from its start to its end, and its memory."""
    code = "import json, sys; from benchmarks.analysis import measure; print(json.dumps(measure(*sys.argv[1:])))"
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-c", code, what, str(folder)], stdout=out, stderr=errors, text=True, cwd=ROOT
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
            raise RuntimeError(f"the process for {what} ended with {process.returncode}: {errors.read()[-500:]}")
        return {"seconds": seconds, "megabytes": peak, **json.loads(out.read().splitlines()[-1])}


def _megabytes(pid: int) -> float:
    """What a process and its children hold now; pages that they share are counted once (on Linux)."""
    total = 0.0
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            with suppress(psutil.Error):
                held = one.memory_full_info()
                total += getattr(held, "pss", held.rss)
    return total / MEBIBYTE


def write_study(shape: str, folder: Path, *, runs: int = 10_000, evaluations: int = EVALUATIONS) -> int:
    """Write synthetic tables of about ``runs`` runs in ``shape``, a key of SHAPES; returns how many there are."""
    from attndrift.results.tables import write_tables
    from benchmarks.synthetic import synthetic_tables

    chosen = SHAPES[shape]
    configurations = chosen["rates"] * (1 + chosen["lora_ranks"])
    # Fewer datasets come first, so that configurations keep their number of runs.
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


def _large(shape: str, runs: int, pairs: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        count = write_study(shape, Path(name), runs=runs)
        # The first fills the file cache and is thrown away.
        taken = [in_fresh_process("attndrift", Path(name)) for _ in range(pairs + 1)][1:]
    seconds = [one["seconds"] for one in taken]
    return {
        "shape": shape, "runs": count, "evaluations a run": EVALUATIONS, "s": statistics.median(seconds),
        "from": min(seconds), "to": max(seconds), "n": pairs, "at most, s": AT_MOST_SECONDS,
        "MB": statistics.median(one["megabytes"] for one in taken), "at most, MB": AT_MOST_MEGABYTES,
    }  # fmt: skip


def _against_pandas(shape: str, runs: int, pairs: int) -> Ratio:
    own, other = [], []
    with tempfile.TemporaryDirectory() as name:
        count = write_study(shape, Path(name), runs=min(runs, BASELINE_RUNS))
        for place in range(pairs + 1):
            order = ("pandas", "attndrift") if place % 2 else ("attndrift", "pandas")
            taken = {what: in_fresh_process(what, Path(name))["seconds"] for what in order}
            if place:
                own.append(taken["attndrift"])
                other.append(taken["pandas"])
    return ratio_of(
        "the whole analysis", "pandas: a part of the numbers, no intervals", own, other,
        case=f"{count:,} runs with {EVALUATIONS} evaluations, shape of {shape}",
    )  # fmt: skip


def analysis(runs: int, pairs: int, shapes: list[str] | None = None, progress: Callable[[str], object] = say) -> Result:
    """Seconds and memory of the analysis of ``runs`` runs in each shape, and its time against plain pandas."""
    others = OtherPrograms()
    rows, ratios = [], []
    for shape in shapes or SHAPES:
        rows.append(_large(shape, runs, pairs))
        progress(f"{shape}, {rows[-1]['runs']:,} runs: {rows[-1]['s']:.1f} s, {rows[-1]['MB']:.0f} MB")
        ratios.append(_against_pandas(shape, runs, pairs))
        progress(f"{ratios[-1].case}, against pandas: {ratios[-1].ratio:.3f}")
    return Result("analysis", ratios, {"a large study": rows}, others_pct=others.percent())


def main(
    runs: Annotated[int, typer.Option(min=100, help="Runs of the synthetic study.")] = 10_000,
    pairs: Pairs = 2,
    output: Output = None,
) -> None:
    """What the analysis of a large study costs, in time and memory, and against plain pandas."""
    analysis(runs, pairs).deliver(output)


if __name__ == "__main__":
    typer.run(main)
