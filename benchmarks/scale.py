"""What ``attndrift run`` does beside training, for studies of 10 to 10,000 runs: planning, claiming, collecting, watching.

The runs are made: each has a record, and seven evaluations of 12 blocks of 12 heads. Time is that of the processor.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from attndrift.formats import numbered
from attndrift.study.check import check_study
from attndrift.study.collect import collect
from attndrift.study.loading import parse_study
from attndrift.study.plan import plan
from attndrift.study.settings import Study
from attndrift.study.storage import LocalStorage, prepare_folder
from attndrift.study.watch import StudyWatch
from benchmarks.result import OtherPrograms, Output, Result, say

SIZES = (10, 100, 1_000, 10_000)
AT_MOST = {"planning": 10.0, "collecting": 60.0, "collecting again, one run changed": 5.0}
"""Seconds for 10,000 runs."""
WATCH_EVERY = 5.0
EVALUATIONS = 7


def study_of(runs: int) -> Study:
    """A study of so many seeds of the demo's kind of run."""
    text = (
        "name: many\nshared: {dataset: tiles, model: embedded, transfer: [objects]}\nruns:\n  - {grid: {seed: SEEDS}}\n"
    )
    return parse_study(text.replace("SEEDS", str(list(range(runs)))), where="many")


def history(evaluations: int) -> str:
    """The lines of a ``history.jsonl``: 216 values of layers and heads an evaluation."""
    blocks = [3.0 + block / 100 for block in range(12)]
    layers: dict[str, Any] = {
        name: {"layer": blocks} for name in ("erf95", "gini", "head_diversity", "cka", "cls_mass")
    }
    layers["entropy"] = {"layer": blocks, "head": [blocks] * 12}
    rows = [{"step": step, "epoch": step / 2, "entropy": 3.1, "layers": layers} for step in range(evaluations)]
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_runs(study: Study, folder: Path) -> None:
    """The folders of runs that have ended, an hour ago: what has just changed is read once more."""
    then = time.time() - 3600
    text = history(EVALUATIONS)
    for run in study.runs:
        own = folder / "runs" / run.run_id
        own.mkdir(parents=True, exist_ok=True)
        row = {
            "dataset": "tiles",
            "method": "full",
            "seed": run.settings.seed,
            "status": "finished",
            "test_accuracy": 0.5,
        }
        record = {"status": "finished", "run_id": run.run_id, "row": row}
        for name, content in (("history.jsonl", text), ("record.json", json.dumps(numbered("run", record)))):
            (own / name).write_text(content)
            os.utime(own / name, (then, then))


def seconds(work: Callable[[], object]) -> float:
    """Processor time of ``work``."""
    start = time.process_time()
    work()
    return time.process_time() - start


def measure(runs: int) -> dict[str, float]:
    """Processor seconds of each part for a study of so many runs."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "many"
        made: list[Study] = []

        def planned() -> None:
            made.append(study_of(runs))
            check_study(made[0], folder)
            plan(made[0])

        found["planning"] = seconds(planned)
        (study,) = made
        prepare_folder(study, folder)
        storage = LocalStorage(folder)

        def claimed() -> None:
            for run in study.runs:
                if not storage.is_done(run.run_id):
                    with storage.open_run(run.run_id) as workspace:
                        storage.require_same(run, workspace.folder)

        found["claiming"] = seconds(claimed)
        write_runs(study, folder)
        found["collecting"] = seconds(lambda: collect(folder))
        found["collecting again, nothing changed"] = seconds(lambda: collect(folder))
        changed = folder / "runs" / study.runs[runs // 2].run_id / "history.jsonl"
        changed.write_text(history(EVALUATIONS + 1))
        found["collecting again, one run changed"] = seconds(lambda: collect(folder))
        found["a look of `watch` at live runs"] = _look(study, folder)
    return found


def _look(study: Study, folder: Path) -> float:
    """The median look at runs of which a tenth wrote an evaluation since the last one."""
    for run in study.runs:
        (folder / "runs" / run.run_id / "record.json").unlink()
    line = history(1)
    times = []
    with StudyWatch(str(folder)) as watched:
        watched.read()
        for _ in range(5):
            for run in study.runs[:: max(1, min(10, len(study.runs)))]:
                with (folder / "runs" / run.run_id / "history.jsonl").open("a") as file:
                    file.write(line)
            times.append(seconds(watched.read))
    return statistics.median(times)


def scale(sizes: tuple[int, ...] = SIZES, progress: Callable[[str], object] = say) -> Result:
    """Measure all sizes; a row a part."""
    others = OtherPrograms()
    measure(min(sizes))  # imports, and what is made once a process
    of_size: dict[int, dict[str, float]] = {}
    for runs in sizes:
        of_size[runs] = measure(runs)
        progress(f"{runs:,} runs: {', '.join(f'{part} {value:.2f} s' for part, value in of_size[runs].items())}")
    rows = []
    for part in of_size[sizes[0]]:
        times = [of_size[runs][part] for runs in sizes]
        row: dict[str, Any] = {"part": part, **{f"{runs:,} runs": value for runs, value in zip(sizes, times)}}
        if len(sizes) > 1:
            row["exponent"] = math.log(times[-1] / times[-2]) / math.log(sizes[-1] / sizes[-2])
        rows.append({**row, "at most": AT_MOST.get(part) if sizes[-1] == SIZES[-1] else None})
    notes = [
        "Seconds of processor time, one round. Exponent: of the last step, 1 where twice the runs take twice the time.",
        f"`watch` looks every {WATCH_EVERY:g} s: a look at 1,000 live runs may take 0.25 s, 5% of a core.",
    ]
    return Result("scale", [], {"seconds of a study's own work": rows}, notes, others_pct=others.percent())


def main(
    runs: Annotated[list[int] | None, typer.Option(help="Sizes of the study; default: 10 to 10,000.")] = None,
    output: Output = None,
) -> None:
    """What a study costs beside its training, for 10 to 10,000 runs."""
    scale(tuple(sorted(runs)) if runs else SIZES).deliver(output)


if __name__ == "__main__":
    typer.run(main)
