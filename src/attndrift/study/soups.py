"""Soups: the mean weights of runs that differ in their seed or their rate alone, a row of its own, without training anew."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock
from torch import Tensor

from attndrift.files import refuse_links, write_json
from attndrift.methods.checkpoint import load_adapted
from attndrift.methods.classifier import ImageClassifier
from attndrift.study.collect import RUNS_FOLDER, SOUPS, planned_runs, read_soups
from attndrift.study.distributed import SilentReporter
from attndrift.study.execution import measured_outcome
from attndrift.study.inputs import read_inputs, refuse_changed
from attndrift.study.outcomes.registry import outcome_run
from attndrift.study.outcomes.rows import OF_THE_TRAINING
from attndrift.study.record import read_record
from attndrift.study.resolved import device_of
from attndrift.study.resources import StudyResources
from attndrift.study.run_inputs import RunInputs
from attndrift.study.settings import NamedRun, RunSettings
from attndrift.study.used_inputs import inputs_of, places_of

Over = Literal["seed", "learning_rate"]


class _Reporter(SilentReporter):
    def inputs(self, found: Any, places: Any) -> None: ...


def make_soups(
    folder: Path,
    over: Over = "seed",
    *,
    greedy: bool = False,
    resources: StudyResources | None = None,
    progress: Callable[[str], object] = lambda _: None,
) -> list[dict[str, Any]]:
    """Make and measure a soup of every set of finished runs in a study's folder that differ in ``over`` alone.

    The weights are those of the selected checkpoints, adapters merged; the classifier is averaged too. Each soup is measured
    as an outcome of the set's first run is, written into that run's folder as ``soups.json``, and is a row of the table
    ``runs`` from then on.

    Args:
        greedy: of the runs from the best validation accuracy down, only those that do not lower the soup's are stirred in.

    Raises ``ValueError`` where no two runs differ in ``over`` alone, and where images or models are no longer those of
    the runs.
    """
    refuse_links(folder)
    sets = _sets(folder, over)
    if not sets:
        raise ValueError(f"{folder}: no two finished runs differ in `{over}` alone, so there is no soup to make")
    bench = resources or StudyResources()
    made = []
    for runs in sets:
        progress(f"soup over {over}: {', '.join(runs)}")
        soup = _soup(folder, runs, over, greedy=greedy, bench=bench)
        _write(folder / RUNS_FOLDER / runs[0], soup)
        made.append(soup)
    return made


def _sets(folder: Path, over: Over) -> list[list[str]]:
    """Names of finished runs that differ in ``over`` alone, in the order of the study."""
    found: dict[str, list[str]] = {}
    for name in planned_runs(folder):
        record = read_record(folder / RUNS_FOLDER / name)
        if record is None or record["status"] != "finished":
            continue
        settings = RunSettings.model_validate(record["settings"])
        if settings.facts.adapts:
            shared = {key: value for key, value in settings.to_json().items() if key not in (over, "experiment")}
            shared["model_revision"] = record["row"].get("model_revision")
            found.setdefault(json.dumps(shared, sort_keys=True), []).append(name)
    return [names for names in found.values() if len(names) > 1]


def _soup(folder: Path, runs: list[str], over: Over, *, greedy: bool, bench: StudyResources) -> dict[str, Any]:
    records = {name: read_record(folder / RUNS_FOLDER / name) or {} for name in runs}
    first = records[runs[0]]
    settings = RunSettings.model_validate(first["settings"])
    revision = first["row"].get("model_revision")
    run = NamedRun(run_id=runs[0], settings=settings, model_revision=revision)
    inputs = RunInputs.load(run, bench, device_of(settings), _Reporter())
    refuse_changed(
        inputs_of(settings, inputs.pretrained, inputs.target, inputs.transfer),
        {name: read_inputs(folder / RUNS_FOLDER / name) for name in runs},
        places_of([inputs.target.dataset, *(item.dataset for item in inputs.transfer)]),
    )
    place = folder / RUNS_FOLDER / runs[0]
    measured = measured_outcome(inputs, place)

    def load(name: str) -> ImageClassifier:
        best, pretrained = folder / RUNS_FOLDER / name / "checkpoints" / "best", inputs.pretrained
        return load_adapted(best, base=pretrained.copy(), base_sha256=pretrained.sha256, merged=True).to(inputs.device)

    by_accuracy = sorted(runs, key=lambda name: -(records[name]["row"].get("best_val_accuracy") or 0.0))
    model, used = _stir(by_accuracy if greedy else runs, load, measured.validate if greedy else None)
    values, transfer = measured.columns(model)
    text = f"{'greedy_' if greedy else ''}soup_{over}:{len(used)}"
    own = dict.fromkeys((*OF_THE_TRAINING, "outcome_alpha")) | {over: None, "parent_run": runs[0], "outcome": text}
    return {
        "run_id": outcome_run(runs[0], text), "row": values | own, "transfer": transfer, "parents": runs, "used": used,
    }  # fmt: skip


def _stir(
    names: Iterable[str], load: Callable[[str], ImageClassifier], validate: Callable[[ImageClassifier], float] | None
) -> tuple[ImageClassifier, list[str]]:
    """The mean of the runs' weights, and which were used: all, or with ``validate`` those that do not lower it."""
    total: dict[str, Tensor] = {}
    used: list[str] = []
    best = -1.0
    model: ImageClassifier | None = None
    for name in names:
        one = load(name)
        model = one if model is None else model
        candidate = {key: p.detach().double() + total.get(key, 0.0) for key, p in one.named_parameters()}
        if validate is not None:
            _put(model, candidate, len(used) + 1)
            accuracy = validate(model)
            if used and accuracy < best:
                continue
            best = accuracy
        total = candidate
        used.append(name)
    assert model is not None
    _put(model, total, len(used))
    return model, used


@torch.no_grad()
def _put(model: ImageClassifier, total: dict[str, Tensor], count: int) -> None:
    for key, parameter in model.named_parameters():
        parameter.copy_(total[key] / count)


def _write(folder: Path, soup: dict[str, Any]) -> None:
    """Add a soup to those that are kept with a run; one of the same name is replaced."""
    with FileLock(folder / ".lock"):  # whoever has it may remove what is half written
        others = [one for one in read_soups(folder) if one["run_id"] != soup["run_id"]]
        write_json(folder / SOUPS, {"soups": [*others, soup]})
