"""What a whole study costs: the 21 runs of `collapse-21` at a reduced budget, against the plain script and against its floor.

Both sides read the same image files, train on the same batches in the same order with the same flips, and measure after the same
steps. Each side is a fresh process, timed from its start, imports and first reading of images included. The study is the
command `attndrift run`.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attndrift.study.loading import load_study, parse_overrides, parse_replacements
from attndrift.study.settings import Study
from benchmarks.ratios import Ratio, ratio_of
from benchmarks.result import ROOT, Output, Result, say
from benchmarks.stopwatch import time_process
from benchmarks.study_floor import FloorMeasurement

if TYPE_CHECKING:
    from attndrift.data import ImageSplit

PRESET = "collapse-21"
TARGETS = {"eurosat": "tiles", "pets": "critters"}
SETTINGS = (
    # An epoch has 20 steps; those of the preset have 57 and more.
    "model=embedded", "device=cpu", "threads=1", "learning_rate_scale=30", "batch_size=24", "probe_size=50",
    "test_limit=100", "transfer=[objects]", "transfer_limit=300", "evaluations_per_epoch=2", "monitor_zero_shot_images=0",
    "evaluation_batch_size=100", "tiles.train_per_class=48", "critters.train_per_class=13",
)  # fmt: skip
REPLACED = ("freeze_layers:9=7",)  # the embedded model has 8 blocks
IMAGES_PER_CLASS = {"tiles": (50, 10), "critters": (14, 3)}
"""Generated training and held-out images that are written to files, by target."""

SCRIPT_AT_MOST = 1 / 1.2
FLOOR_AT_MOST = 1 / 0.9
STEPS_AROUND = 10
"""Of every kind, for the floor before and after a study."""
STEPS_BETWEEN = 2
"""Of one kind, in each pause of the study."""


@dataclass(frozen=True)
class Workload:
    """The study: what of the preset is reduced, and where the targets' images are.

    Attributes:
        images: the folder of the targets' image files.
        epochs: of a run.
        rows: only the first so many of the matrix; None for all 23.
    """

    images: Path
    epochs: int
    rows: int | None

    def _settings(self) -> list[str]:
        sources = [f"{name}.source={{path: {json.dumps(str(self.images / name))}}}" for name in TARGETS.values()]
        return [*SETTINGS, f"epochs={self.epochs}", *sources]

    def load(self) -> Study:
        """As the command line makes it of :meth:`options`."""
        study = load_study(
            PRESET,
            overrides=parse_overrides(self._settings()),
            datasets=TARGETS,
            replacements=parse_replacements(REPLACED),
        )
        return study.model_copy(update={"runs": study.runs[: self.rows]})

    def command(self, folder: Path, jobs: int) -> list[str]:
        """The command that runs the study in ``folder``, ``jobs`` runs at a time."""
        options = ["--output", str(folder), "--jobs", str(jobs)]
        for flag, values in (
            ("--set", self._settings()),
            ("--dataset", [f"{old}={new}" for old, new in TARGETS.items()]),
            ("--replace", REPLACED),
        ):
            options += [part for value in values for part in (flag, value)]
        if self.rows is not None:
            options += ["--limit", str(self.rows)]
        return [sys.executable, "-m", "attndrift", "run", PRESET, *options]


def _numbered(split: ImageSplit, per_class: int) -> Iterator[int]:
    taken: dict[int, int] = {}
    for index, label in enumerate(split.labels.tolist()):
        if taken.get(label, 0) < per_class:
            taken[label] = taken.get(label, 0) + 1
            yield index


def write_images(folder: Path) -> None:
    """Generate the targets' images and write them as ``DATASET/SPLIT/CLASS/NUMBER.jpg``."""
    from attndrift.data import load_dataset

    for name, counts in IMAGES_PER_CLASS.items():
        dataset = load_dataset(name)
        for split, count in ((dataset.train, counts[0]), (dataset.test, counts[1])):
            for index in _numbered(split, count):
                place = folder / name / split.name / dataset.class_names[int(split.labels[index])]
                place.mkdir(parents=True, exist_ok=True)
                split[index].save(place / f"{index:06d}.jpg", quality=95)


def write_reference(study: Study, folder: Path, threads: int) -> Path:
    """The study as the reference script reads it; its transfer images are written too. Returns the JSON file."""
    from attndrift.data import evaluation_part, load_dataset
    from attndrift.data.shuffle import epoch_order, flips
    from attndrift.models.hub import EMBEDDED
    from attndrift.study.dataset_splits import OpenDatasets, splits_of

    first = study.runs[0].settings
    datasets: dict[str, Any] = {}
    for run in study.runs:
        settings = run.settings
        if settings.dataset in datasets or settings.method == "none":
            continue
        dataset = OpenDatasets().open(settings.dataset, settings)
        splits = splits_of(dataset, settings)
        assert settings.source is not None
        root = Path(settings.source.path or "")
        n = len(splits.train)
        datasets[settings.dataset] = {
            name: [
                [str(root / part.split / one), int(label)]
                for one, label in zip(part.ids, part.labels.tolist(), strict=True)
            ]
            for name, part in splits.parts.items()
        } | {
            "class_names": list(dataset.class_names),
            "order": [epoch_order(n, settings.seed, epoch).tolist() for epoch in range(settings.epochs)],
            "flips": [flips(n, settings.seed, epoch).tolist() for epoch in range(settings.epochs)],
        }
    transfer = load_dataset(first.transfer[0])
    part, _ = evaluation_part(transfer, limit=first.transfer_limit, data_seed=first.data_seed)
    place = folder / first.transfer[0]
    place.mkdir(parents=True, exist_ok=True)
    files = []
    for index, label in zip(part.indices.tolist(), part.labels.tolist(), strict=True):
        path = place / f"{index:06d}.png"
        transfer.split(part.split)[index].save(path)
        files.append([str(path), label])
    equal = ("seed", "batch_size", "warmup", "clip_norm", "evaluations_per_epoch", "evaluation_batch_size")
    trained = next(run.settings for run in study.runs if run.settings.method != "none")
    differing = (
        "dataset", "method", "learning_rate", "weight_decay", "lora_rank", "lora_targets", "freeze_layers",
        "loss",
    )  # fmt: skip
    content = {
        "model": str(EMBEDDED),
        "threads": threads,
        "settings": {name: getattr(trained, name) for name in equal} | {"epochs": trained.epochs},
        "datasets": datasets,
        "transfer": {
            "files": files, "class_names": list(transfer.class_names), "template": first.prompts[0],
        },
        "runs": [
            {"run_id": run.run_id} | {name: getattr(run.settings, name, None) for name in differing} for run in study.runs
        ],
    }  # fmt: skip
    path = folder / "reference.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def _agreement(folder: Path, results: dict[str, Any], study: Study) -> list[dict[str, Any]]:
    """How far the results of the two sides are apart, over the adapted runs. Those without dropout differ by rounding."""
    from attndrift.results.tables import read_tables

    runs = read_tables(folder).runs.set_index("run_id")
    pretrained = results["pretrained"]["transfer_accuracy"]
    groups = {
        "runs without dropout": [run.run_id for run in study.runs if run.settings.method == "full"],
        "LoRA, whose dropout draws differ": [run.run_id for run in study.runs if run.settings.method == "lora"],
    }
    rows = []
    for group, (name, unit, ours, theirs) in itertools.product(groups, (
        ("test accuracy", "points", "test_accuracy", lambda r: 100 * r["test_accuracy"]),
        ("zero-shot retention", "points", "transfer_objects_zero_shot_retention_pct", lambda r: 100 * r["transfer_accuracy"] / pretrained),
        ("zero-shot accuracy", "points", "transfer_objects_zero_shot_accuracy", lambda r: 100 * r["transfer_accuracy"]),
        ("entropy change", "points", "entropy_change_pct", lambda r: r["entropy_change_pct"]),
        ("CKA, mean over blocks", "", "cka_mean", lambda r: r["cka_mean"]),
        ("embedding drift", "", "embedding_drift", lambda r: r["embedding_drift"]),
        ("weight drift", "", "weight_drift", lambda r: r["weight_drift"]),
    )):  # fmt: skip
        adapted = groups[group]
        if not adapted:
            continue
        values = runs[ours].to_dict()
        own = [float(values[one]) * (100 if name in ("test accuracy", "zero-shot accuracy") else 1) for one in adapted]
        if any(math.isnan(one) for one in own):  # retention of a model at chance level
            continue
        other = [float(theirs(results[one])) for one in adapted]
        differences = [a - b for a, b in zip(own, other, strict=True)]
        rows.append(
            {
                "of": group,
                "measure": name,
                "unit": unit,
                "attndrift, mean": statistics.mean(own),
                "reference, mean": statistics.mean(other),
                "range over runs": max(other) - min(other),
                "mean difference": statistics.mean(differences),
                "median absolute difference": statistics.median(abs(one) for one in differences),
                "largest": max(differences, key=abs),
                "n": len(adapted),
            }
        )
    return rows


@dataclass(frozen=True)
class Bench:
    """Both sides of the benchmark, prepared in the folder ``root``."""

    root: Path
    workload: Workload
    study: Study
    jobs: int
    with_floor: bool
    progress: Callable[[str], object]

    def ours(self, place: int) -> tuple[float, FloorTimes | None]:
        """Seconds of the study, and its floor, measured before, after and during it."""
        cold = os.environ | {"OMP_NUM_THREADS": "1", "ATTNDRIFT_CACHE": str(self.root / f"cache-{place}")}
        command = self.workload.command(self.root / f"study-{place}", self.jobs)
        if not self.with_floor:
            return time_process(command, cold).seconds, None
        plan = self.root / "study.json"
        plan.write_text(self.study.model_dump_json(), encoding="utf-8")
        with FloorMeasurement(self.study, plan, self.jobs, os.environ | {"OMP_NUM_THREADS": "1"}) as floor:
            floor.measure_all(STEPS_AROUND)
            seconds = time_process(command, cold, between=partial(floor.measure_one, STEPS_BETWEEN)).seconds
            floor.measure_all(STEPS_AROUND)
            return seconds, FloorTimes(floor.seconds(), floor.repeats())

    def script(self, place: int, plan: Path, cores: int) -> float:
        """Seconds of the plain script, which uses all cores for one run after the other."""
        command = [sys.executable, "-m", "benchmarks.reference_study", str(plan), str(self._results(place))]
        environment = os.environ | {"OMP_NUM_THREADS": str(cores), "PYTHONPATH": str(ROOT)}
        return time_process(command, environment, lambda line: self.progress(f"reference: {line}")).seconds

    def _results(self, place: int) -> Path:
        return self.root / f"reference-{place}.json"

    def agreement(self, place: int) -> list[dict[str, Any]]:
        results = json.loads(self._results(place).read_text(encoding="utf-8"))
        return _agreement(self.root / f"study-{place}", results, self.study)


@dataclass(frozen=True)
class FloorTimes:
    """The floor of a study in seconds, and that of each repeat of the measurement."""

    seconds: float
    repeats: Sequence[float]


def study(
    *,
    pairs: int = 1,
    rows: int | None = None,
    epochs: int = 2,
    script: bool = True,
    floor: bool = True,
    progress: Callable[[str], object] = say,
) -> Result:
    """Time the study against the plain script and against its floor, ``pairs`` times in changing order.

    ``rows``: only the first so many of the matrix, at least 4, as the first three train on one target alone. ``script``,
    ``floor``: what it is compared with.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_images(root / "images")
        workload = Workload(root / "images", epochs, rows)
        chosen = workload.load()
        bench = Bench(root, workload, chosen, min(cores, len(chosen.runs)), floor, progress)
        plan = write_reference(chosen, root, cores) if script else None
        own: list[float] = []
        other: list[float] = []
        floors: list[FloorTimes] = []
        for place in range(pairs):
            sides = ["attndrift", "reference"] if plan else ["attndrift"]
            for side in sides if place % 2 == 0 else reversed(sides):
                if side == "attndrift":
                    seconds, least = bench.ours(place)
                    own.append(seconds)
                    floors += [least] if least else []
                elif plan:
                    other.append(bench.script(place, plan, cores))
                progress(f"{side}: {(own if side == 'attndrift' else other)[-1]:.1f} s")
        agreement = bench.agreement(pairs - 1) if script else []
    case = (
        f"{PRESET} reduced to {epochs} epochs, {len(chosen.runs)} rows, {bench.jobs} runs at a time with 1 thread each"
    )
    return _result(case, own, other, floors, agreement, f"reference_study.py, run after run with {cores} threads")


def _result(
    case: str,
    own: Sequence[float],
    other: Sequence[float],
    floors: Sequence[FloorTimes],
    agreement: list[dict[str, Any]],
    script: str,
) -> Result:
    ratios: list[Ratio] = []
    tables: dict[str, list[dict[str, Any]]] = {}
    what = "attndrift run, from the start of the process to the tables"
    if other:
        ratios.append(ratio_of(what, script, own, other, case=case, at_most=SCRIPT_AT_MOST))
        tables["the same results"] = agreement
    if floors:
        least = [one.seconds for one in floors]
        words = "its floor: bare steps and forward passes on tensors in memory"
        ratios.append(ratio_of(what, words, own, least, case=case, at_most=FLOOR_AT_MOST))
        tables["how well the floor is known"] = [
            {
                "round": place, "mean s": one.seconds, "fastest s": min(one.repeats), "slowest s": max(one.repeats),
                "times measured": len(one.repeats),
            }
            for place, one in enumerate(floors, 1)
        ]  # fmt: skip
    notes = [
        "Both sides decode the target images within the time; attndrift also generates the transfer images, which the script reads.",
        "The floor leaves out decoding, metrics, losses of regularized runs, checkpoints, states and tables.",
        "The classifier starts alike; dropout of LoRA draws differently. The script has no debiased CKA and no resumable states.",
    ]
    return Result("study", ratios, tables, notes)


def main(
    pairs: Annotated[int, typer.Option(min=1, help="How often both sides run the whole study.")] = 1,
    rows: Annotated[int | None, typer.Option(min=4, help="Only the first so many rows of the matrix.")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of a run.")] = 2,
    script: Annotated[bool, typer.Option(help="Run the plain script, too.")] = True,
    floor: Annotated[bool, typer.Option(help="Measure the floor, too.")] = True,
    output: Output = None,
) -> None:
    """What a study of 21 runs costs, against the plain script and against its floor; minutes."""
    study(pairs=pairs, rows=rows, epochs=epochs, script=script, floor=floor).deliver(output)


if __name__ == "__main__":
    typer.run(main)
