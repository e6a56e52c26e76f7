"""What a whole study costs: the 21 runs at a reduced budget, against the plain script and against the bare arithmetic.

Both sides read the same image files, train on the same batches in the same order with the same flips, and measure
after the same steps. Each side is a fresh process, timed from its start, imports and first reading of images included.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attndrift.bench.arithmetic import TRANSFER, UNTOUCHED, Arithmetic
from attndrift.bench.devices import device_named
from attndrift.bench.ratios import ratio_of
from attndrift.bench.reference import reference_path
from attndrift.bench.result import Machine, Result
from attndrift.bench.stopwatch import Timed, time_process
from attndrift.bench.timed_study import STAMP
from attndrift.study.loading import load_study
from attndrift.study.processes import usable_cores
from attndrift.study.settings import DatasetSource, Study

if TYPE_CHECKING:
    import torch

    from attndrift.data import ImageSplit

TARGETS = {"eurosat": "tiles", "pets": "critters"}
TARGET_FLOOR = 0.9
STEPS_TIMED = 10
"""Of every kind, for the bare arithmetic before and after a study."""
STEPS_BETWEEN = 2
"""Of one kind, each time that the study stands still for it. Often and for short: all runs are met alike, by whose lengths
those that are left are divided."""


@dataclass(frozen=True)
class Budget:
    """What is reduced of the preset ``collapse-21`` on a kind of device; everything else is as there.

    Attributes:
        model: as :func:`attndrift.models.load_clip` takes it.
        settings: of the runs, as ``--set`` has them.
        images_per_class: drawn images of a class that are written to files, training and held-out ones, by target.
        jobs: runs at a time; None for one a core.
        target: of the ratio against the script.
    """

    model: str
    settings: Mapping[str, Any]
    images_per_class: Mapping[str, tuple[int, int]]
    jobs: int | None
    target: float


BUDGETS = {
    # An epoch has 20 steps; those of the preset have 57 and more.
    "cpu": Budget(
        "embedded",
        {
            "learning_rate_scale": 30, "epochs": 2, "batch_size": 24, "threads": 1, "probe_size": 50,
            "test_limit": 100, "transfer": ["objects"], "transfer_limit": 300, "evaluations_per_epoch": 2, "track_size": 0,
            "evaluation_batch_size": 100, "tiles.train_per_class": 48, "critters.train_per_class": 13, "device": "cpu",
        },
        {"tiles": (50, 10), "critters": (14, 3)},
        None,
        1 / 1.2,
    ),
    # A full-size model at the batch size of the preset: an epoch has 20 steps.
    "cuda": Budget(
        "config:vit-base-patch32",
        {
            "learning_rate_scale": 1, "epochs": 2, "threads": 2, "probe_size": 50,
            "test_limit": 150, "transfer": ["objects"], "transfer_limit": 300, "evaluations_per_epoch": 2, "track_size": 0,
            "tiles.train_per_class": 128, "critters.train_per_class": 34, "device": "cuda",
        },
        {"tiles": (132, 15), "critters": (35, 4)},
        1,
        1 / 3,
    ),
}  # fmt: skip
"""By kind of device."""


def reduced_study(
    images: Path,
    runs: int | None = None,
    epochs: int | None = None,
    budget: Budget = BUDGETS["cpu"],
    *,
    source: str | None = None,
    layers: int = 8,
) -> Study:
    """The 21 runs and the untouched model at ``budget``, their targets read from the files below ``images``.

    ``source``: what the model is loaded from, if not by the budget's name. ``layers``: of the model; one of 8 has 7 frozen
    where one of 12 has 9.
    """
    overrides = {**budget.settings, "model": source or budget.model} | ({} if epochs is None else {"epochs": epochs})
    replacements = [] if layers > 9 else [("freeze_layers", 9, layers - 1)]
    study = load_study("collapse-21", overrides=overrides, datasets=TARGETS, replacements=replacements)
    chosen = [
        run.model_copy(
            update={"settings": run.settings.model_copy(
                update={"source": DatasetSource.model_validate({"path": str(images / run.settings.dataset)})}
            )}
        )
        for run in study.runs
    ]  # fmt: skip
    return study.model_copy(update={"name": "bench", "runs": tuple(chosen[:runs])})


def model_folder(source: str, folder: Path) -> tuple[str, int]:
    """What a study and the script both load ``source`` from, and its number of blocks. A model made from a configuration is
    saved in ``folder``, random weights and all."""
    from attndrift.models import load_clip
    from attndrift.models.load import load_config, load_processor

    blocks = int(load_config(source).vision_config.num_hidden_layers)
    if not source.startswith("config:"):
        return source, blocks
    load_clip(source).save_pretrained(folder)
    for part in load_processor(source):
        part.save_pretrained(folder)
    return str(folder), blocks


def precision_words(study: Study, device: torch.device) -> str:
    """How the runs of ``study`` are trained."""
    from attndrift.training.fit import precision_of

    trained = precision_of(study.runs[0].settings, device)
    return "float32" if trained == "float32" else f"{trained} autocast"


def _numbered(split: ImageSplit, per_class: int) -> Iterator[int]:
    taken: dict[int, int] = {}
    for index, label in enumerate(split.labels.tolist()):
        if taken.get(label, 0) < per_class:
            taken[label] = taken.get(label, 0) + 1
            yield index


def write_images(folder: Path, budget: Budget = BUDGETS["cpu"]) -> None:
    """Draw the targets' images and write them as ``DATASET/SPLIT/CLASS/NUMBER.jpg``."""
    from attndrift.data import load_dataset

    for name, counts in budget.images_per_class.items():
        dataset = load_dataset(name)
        for split, count in ((dataset.train, counts[0]), (dataset.test, counts[1])):
            for index in _numbered(split, count):
                place = folder / name / split.name / dataset.class_names[int(split.labels[index])]
                place.mkdir(parents=True, exist_ok=True)
                split[index].save(place / f"{index:06d}.jpg", quality=95)


def write_reference(study: Study, folder: Path, threads: int, workers: int = 0) -> Path:
    """The study as the reference script reads it; its transfer images are written too. Returns the JSON file."""
    from attndrift.data import evaluation_part, load_dataset
    from attndrift.data.order import epoch_order, flips
    from attndrift.models.load import EMBEDDED
    from attndrift.study.images import open_dataset, splits_of

    first = study.runs[0].settings
    datasets: dict[str, Any] = {}
    for run in study.runs:
        settings = run.settings
        if settings.dataset in datasets or settings.method == "none":
            continue
        dataset = open_dataset(settings.dataset, settings)
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
        "regularizer", "regularizer_weight",
    )  # fmt: skip
    content = {
        "model": str(EMBEDDED) if first.model == "embedded" else first.model,
        "device": first.device,
        "workers": workers,
        "threads": threads,
        "settings": {name: getattr(trained, name) for name in equal} | {"epochs": trained.epochs},
        "datasets": datasets,
        "transfer": {
            "files": files, "class_names": list(transfer.class_names), "template": first.prompts[0],
        },
        "runs": [
            {"run_id": run.run_id} | {name: getattr(run.settings, name) for name in differing} for run in study.runs
        ],
    }  # fmt: skip
    path = folder / "reference.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


# ------------------------------------------------------------------------------------------------- the outcome


def _phases(folder: Path, study: Study, timed: Timed, jobs: int) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds that the runs of a finished study spent in each phase, summed over runs; and those without a run, over processes."""
    from attndrift.study.collect import RUNS_FOLDER
    from attndrift.study.record import read_record

    stamps: dict[str, list[tuple[float, str | None]]] = {}
    told = [line.removeprefix(STAMP) for line in timed.lines if line.startswith(STAMP)]
    for moment, run_id, phase in map(json.loads, told):
        stamps.setdefault(run_id, []).append((moment, phase))
    found: dict[str, float] = {}
    for run in study.runs:
        record = read_record(folder / RUNS_FOLDER / run.run_id)
        if record is None or record["status"] != "finished":
            problem = "it has no record" if record is None else record.get("problem")
            raise RuntimeError(f"bench study: {run.run_id} did not finish: {problem}")
        for (begun, phase), (ended, _) in itertools.pairwise(stamps[run.run_id]):
            assert phase is not None
            if run.settings.method == "none" or phase == "the pretrained model":
                name = UNTOUCHED
            else:
                name = TRANSFER if phase.startswith(TRANSFER) else phase
            found[name] = found.get(name, 0.0) + timed.moved(begun, ended)
    first, *_, last = sorted(moment for of_run in stamps.values() for moment, _ in of_run)
    return found, {
        "starting": jobs * timed.moved(timed.begun, first),
        "without a run": jobs * timed.moved(first, last) - sum(found.values()),
        "collecting": jobs * timed.moved(last, timed.ended),
    }


def _agreement(folder: Path, results: dict[str, Any], study: Study) -> list[dict[str, Any]]:
    """How far the two sides' results are from each other, over the adapted runs; those without dropout differ by rounding."""
    from attndrift.tables import read_tables

    runs = read_tables(folder).runs.set_index("run_id")
    pretrained = results["pretrained"]["transfer_accuracy"]
    groups = {
        "runs without dropout": [run.run_id for run in study.runs if run.settings.method == "full"],
        "LoRA, whose dropout draws differ": [run.run_id for run in study.runs if run.settings.method == "lora"],
    }
    rows = []
    for group, (name, unit, ours, theirs) in itertools.product(groups, (
        ("test accuracy", "points", "test_accuracy", lambda r: 100 * r["test_accuracy"]),
        ("zero-shot kept", "points", "transfer_objects_retention_pct", lambda r: 100 * r["transfer_accuracy"] / pretrained),
        ("zero-shot accuracy", "points", "transfer_objects_accuracy", lambda r: 100 * r["transfer_accuracy"]),
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
        if any(math.isnan(one) for one in own):  # of a model that is no better than chance nothing is kept
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
                "correlation over runs": _correlation(own, other),
                "n": len(adapted),
            }
        )
    return rows


def _correlation(own: Sequence[float], other: Sequence[float]) -> float | None:
    """Pearson's; None of fewer than two runs, or where one side is the same in all."""
    if len(own) < 2 or len(set(own)) == 1 or len(set(other)) == 1:
        return None
    return statistics.correlation(own, other)


def study(
    *,
    pairs: int = 1,
    runs: int | None = None,
    epochs: int | None = None,
    script: bool = True,
    device: str = "cpu",
    model: str | None = None,
    jobs: int | None = None,
    workers: int = 0,
    bare: bool = True,
    progress: Callable[[str], None] | None = None,
) -> Result:
    """Time a whole study of 21 runs against the plain script and against its own arithmetic, and compare results.

    ``pairs``: how often both sides are run, in changing order. ``runs``: only the first so many, for trying it out; at
    least 4, as the first three train on one target alone. ``epochs``: of a run, instead of those of the budget.
    ``script``: whether the plain script is run, too; without it, the study is compared with its arithmetic alone.
    ``device``: see :mod:`attndrift.bench.devices`; its kind decides on the budget, of :data:`BUDGETS`. ``model``, ``jobs``:
    instead of the budget's. ``workers``: processes that read images for the script.
    ``bare``: whether the study's arithmetic alone is measured, too.
    """
    say = progress or (lambda line: None)
    cores = usable_cores()
    where = device_named(device)
    budget = BUDGETS[where.type]
    machine = Machine()
    plain = reference_path("reference_study")
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_images(root / "images", budget)
        source, layers = model_folder(model or budget.model, root / "model")
        chosen = reduced_study(root / "images", runs, epochs, budget, source=source, layers=layers)
        rows = len(chosen.runs)
        jobs = min(jobs or budget.jobs or cores, rows)
        plan = root / "study.json"
        plan.write_text(chosen.model_dump_json(), encoding="utf-8")
        given = write_reference(chosen, root, cores, workers) if script else None
        single = os.environ | {"OMP_NUM_THREADS": "1"}
        measured: dict[str, list[float]] = {}
        floors: list[dict[str, float]] = []
        repeats: list[list[float]] = []
        phases: list[dict[str, float]] = []
        around: list[dict[str, float]] = []
        for place in range(pairs):
            # A cold cache each time: images are read, and pretrained attention computed, within the time.
            own = [sys.executable, "-m", "attndrift.bench.timed_study"]
            own += [str(plan), str(root / f"study-{place}"), str(jobs)]
            other = [sys.executable, str(plain), str(given), str(root / f"reference-{place}.json")]
            cold = single | {"ATTNDRIFT_CACHE": str(root / f"cache-{place}")}

            def ours(
                command: Sequence[str] = own, environment: dict[str, str] = cold, folder: Path = root / f"study-{place}"
            ) -> float:
                if not bare:
                    timed = time_process(command, environment)
                else:
                    arithmetic = Arithmetic(chosen, plan, jobs, single)
                    with arithmetic if where.type == "cpu" else nullcontext():
                        # Before, after, and in between: the machine's own speed wanders. Of an accelerator nothing is taken
                        # while the study is there.
                        between = partial(arithmetic.measure_one, STEPS_BETWEEN) if where.type == "cpu" else None
                        arithmetic.measure_all(STEPS_TIMED)
                        timed = time_process(command, environment, between=between)
                        arithmetic.measure_all(STEPS_TIMED)
                    floors.append(arithmetic.phases())
                    repeats.append([sum(one.values()) / jobs for one in arithmetic.repeats()])
                    say(f"bare arithmetic {sum(floors[-1].values()) / jobs:.1f} s")
                machine.count(float(timed.lines[-1]))
                inside, outside = _phases(folder, chosen, timed, jobs)
                phases.append(inside)
                around.append(outside)
                return timed.seconds

            def theirs(command: Sequence[str] = other) -> float:
                run = itertools.count(1)
                every = os.environ | {"OMP_NUM_THREADS": str(cores)}
                return time_process(
                    command, every, lambda line: say(f"reference, row {next(run)} of {rows}: {line}")
                ).seconds

            sides: dict[str, Callable[[], float]] = {"attndrift": ours}
            if script:
                sides["reference"] = theirs
            for side in sides if place % 2 == 0 else reversed(sides):
                measured.setdefault(side, []).append(sides[side]())
                say(f"{side} {measured[side][-1]:.1f} s")
        tables: dict[str, list[dict[str, Any]]] = {}
        if script:
            results = json.loads((root / f"reference-{pairs - 1}.json").read_text())
            tables["The same results"] = _agreement(root / f"study-{pairs - 1}", results, chosen)
    alone = {phase: statistics.median(one[phase] for one in floors) for phase in floors[0]} if floors else {}
    spent = {phase: statistics.median(one.get(phase, 0.0) for one in phases) for phase in phases[-1]}
    least = [sum(one.values()) / jobs for one in floors]
    own_side = measured["attndrift"]
    in_runs = [sum(one.values()) / jobs for one in phases]
    floor_words = "its arithmetic alone: bare steps and forward passes on tensors in memory"
    first = next(run.settings for run in chosen.runs if run.settings.method != "none")
    what = (
        f"collapse-21 at a reduced budget of {first.epochs} epochs, {len(chosen.runs)} rows, {jobs} "
        f"{'run' if jobs == 1 else 'runs'} at a time with {first.threads} {'thread' if first.threads == 1 else 'threads'} each"
    )
    if (model or budget.model) != BUDGETS["cpu"].model:
        what += f", {(model or budget.model).removeprefix('config:')}, {precision_words(chosen, where)}"
    ratios = []
    if script:
        words = f"reference_study.py, run after run with {cores} threads"
        words += f", {workers} processes reading images" if workers else ""
        ratios.append(ratio_of(what, words, own_side, measured["reference"]).aiming_at(budget.target))
    ratios += (
        []
        if not floors
        else [
            ratio_of(f"{part}, {span}", floor_words, seconds, least).aiming_at(1 / TARGET_FLOOR)
            for part, span, seconds in (
                ("the same" if script else what, "from the start of the process to the tables", own_side),
                ("the same", "everything inside its runs", in_runs),
            )
        ]
    )
    table = [
        {
            "phase": phase,
            "seconds, summed over runs": seconds,
            "arithmetic alone": alone.get(phase),
            "reached, %": 100 * alone[phase] / seconds if phase in alone else None,
        }
        for phase, seconds in sorted(spent.items(), key=lambda item: -item[1])
    ]
    table += [
        {
            "phase": f"{what_else} (of {jobs} processes)",
            "seconds, summed over runs": statistics.median(one[what_else] for one in around),
        }
        for what_else in around[0]
    ]
    if floors:
        tables["How well the arithmetic is known"] = [
            {
                "round": place,
                "mean s": least[place - 1],
                "fastest s": min(seconds),
                "slowest s": max(seconds),
                "times measured": len(seconds),
            }
            for place, seconds in enumerate(repeats, 1)
        ]
    return Result(
        "study",
        ratios,
        {"Where the time goes": table, **tables},
        [
            "Both sides: same target images as files, splits, batches, flips, steps, evaluations; images decoded within the "
            "time. Transfer images are the same pixels, which attndrift draws within its time and the reference reads as PNG. "
            + (
                "The arithmetic alone: steps as if no run were regularized, no metric, no LoRA forward twice. "
                if floors
                else ""
            )
            + "The classifier starts alike; dropout of LoRA draws differently. The reference computes no debiased CKA, "
            "keeps no resumable states and proves no checkpoint.",
        ],
        device=str(where),
        threads=cores,
        others_pct=machine.others_pct(),
    )
