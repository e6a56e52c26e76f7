"""Runs of a study that keep a budget: what the guard sees, what is recorded, and what settings are refused."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from attndrift.analysis.configurations import prepare
from attndrift.cli.progress import StudyConsole
from attndrift.files import read_json
from attndrift.results.tables import Tables, read_tables
from attndrift.study.executor import Executor
from attndrift.study.loading import parse_study
from attndrift.study.resources import StudyResources
from attndrift.study.run_images import PartImages
from attndrift.study.runner import run_study
from attndrift.study.settings import RunSettings

STUDY = """
name: guarded
shared:
  model: embedded
  dataset: digits
  train_per_class: 8
  validation_per_class: 2
  probe_size: 20
  test_limit: 20
  epochs: 1
  batch_size: 16
  learning_rate: 1e-3
  transfer: [objects]
  transfer_limit: 300
  guard_probe_per_class: 2
  guard_checks_per_epoch: 2
  monitor_zero_shot_images: 0
  evaluations_per_epoch: 1
  map_images: 0
  threads: 1
  keep: best
runs:
  - {experiment: P, method: full}
  - {experiment: R, method: full, guard: retention_pct, guard_at_least: 80}
  - {experiment: C, method: lora, guard: weight_drift, guard_at_most: 1e-3}
  - {experiment: U, method: full, guard: retention_pct, guard_at_least: 150}
  - {experiment: K, method: full, guard: knn_retention_pct, guard_at_least: 80, knn_k: 10, bank_limit: 200}
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tables]:
    folder = tmp_path_factory.mktemp("study") / "guarded"
    with Executor(StudyResources(folder.parent / "cache")) as execute:
        outcome = run_study(
            parse_study(STUDY, where="study"), folder, execute, StudyConsole(console=Console(file=io.StringIO()))
        )
    assert set(outcome.statuses.values()) == {"finished"}, outcome
    return folder, read_tables(folder)


def _record(study: tuple[Path, Tables], experiment: str) -> dict[str, Any]:
    folder, tables = study
    (name,) = tables.runs.loc[tables.runs["experiment"] == experiment, "run_id"]
    return dict(read_json(folder / "runs" / name / "record.json"))


@pytest.mark.slow
@pytest.mark.ci("study")
def test_a_guarded_run_keeps_its_budget_and_records_every_check(study: tuple[Path, Tables]) -> None:
    for experiment, outcome in (("R", None), ("C", "kept"), ("U", "infeasible")):
        record = _record(study, experiment)
        told = record["guard"]
        assert record["row"]["guard_outcome"] == told["outcome"]
        assert outcome is None or told["outcome"] == outcome
        assert [event["step"] for event in told["events"]] == ([0, 2, 5] if experiment == "U" else [2, 5])
        assert told["accuracy"] is not None
    kept = _record(study, "R")["guard"]["events"][-1]["after"][0]
    assert kept["metric"] == "retention_pct"
    assert kept["bound"] >= 80
    by_neighbours = _record(study, "K")["guard"]["events"][-1]["after"][0]
    assert by_neighbours["metric"] == "knn_retention_pct"
    assert by_neighbours["bound"] >= 80
    assert 0 < _record(study, "C")["row"]["weight_drift"] <= 1e-3
    assert "guard" not in _record(study, "P")


@pytest.mark.slow
@pytest.mark.ci("study")
def test_tensorboard_has_what_the_guard_did(study: tuple[Path, Tables]) -> None:
    folder, tables = study
    (name,) = tables.runs.loc[tables.runs["experiment"] == "C", "run_id"]
    events = EventAccumulator(str(folder / "runs" / name / "tensorboard"))
    events.Reload()
    for tag in ("weight_drift", "alpha", "lr_scale"):
        assert [event.step for event in events.Scalars(f"train/guard/{tag}")] == [2, 5]


@pytest.mark.slow
@pytest.mark.ci("study")
def test_a_budget_out_of_reach_leaves_the_pretrained_encoder(study: tuple[Path, Tables]) -> None:
    row = _record(study, "U")["row"]
    assert row["weight_drift"] == row["projection_drift"] == 0.0
    assert row["transfer_objects_zero_shot_retention_pct"] == 100.0


@pytest.mark.slow
@pytest.mark.ci("study")
def test_no_run_is_evaluated_on_what_the_guards_see(study: tuple[Path, Tables]) -> None:
    folder, tables = study
    settings = RunSettings.model_validate(_record(study, "R")["settings"])
    bench = StudyResources(folder.parent / "cache")
    pretrained = bench.pretrained("embedded", torch.device("cpu"))
    (item,), _ = bench.transfer_sets(settings, bench.target(settings, pretrained), pretrained)
    assert item.guard is not None
    classes = len(item.dataset.class_names)
    assert item.guard.part.class_counts(classes) == [2] * classes
    assert not set(item.guard.part.ids) & set(item.evaluation.part.ids)
    assert len(item.evaluation.part) == 300 - 2 * classes
    assert set(tables.runs["transfer_objects_zero_shot_n"]) == {300 - 2 * classes}


@pytest.mark.slow
@pytest.mark.ci("study")
def test_no_run_is_evaluated_on_what_it_watches(study: tuple[Path, Tables]) -> None:
    """Nor does the number of watched images change the retention's images, or those of the guards."""
    folder, tables = study
    # Here nothing is watched, so that nothing is said of it: only a monitor with images of its own is a signal.
    assert tables.runs["monitor_disjoint"].isna().all()
    recorded = RunSettings.model_validate(_record(study, "R")["settings"])
    bench = StudyResources(folder.parent / "cache")
    pretrained = bench.pretrained("embedded", torch.device("cpu"))
    found = []
    for count in (0, 40, 5000):
        settings = recorded.model_copy(update={"monitor_zero_shot_images": count})
        (item,), _ = bench.transfer_sets(settings, bench.target(settings, pretrained), pretrained)
        found.append(item)
    plain, few, many = found
    assert plain.monitor is None
    assert few.guard is not None
    assert few.monitor is not None
    assert many.monitor is not None
    assert (len(few.monitor.part), len(many.monitor.part)) == (40, len(few.dataset.train))
    assert {few.monitor.part.split, many.monitor.part.split} == {few.dataset.train_split}
    assert len({item.evaluation.part.hash for item in found}) == 1
    assert len({item.guard.part.hash for item in found if item.guard is not None}) == 1
    for other in (few.evaluation, few.guard):
        shared = PartImages(replace(other.part, name="monitor"), other.store)
        with pytest.raises(ValueError, match="is in the parts"):
            replace(few, monitor=shared)


@pytest.mark.slow
@pytest.mark.ci("study")
def test_guarded_runs_are_configurations_of_their_own(study: tuple[Path, Tables]) -> None:
    prepared = prepare(study[1])
    labels = set(prepared.runs["variant"])
    assert any("guarded: retention ≥ 80" in label for label in labels), labels
    assert any("guarded: knn retention ≥ 80" in label for label in labels), labels
    assert len(labels) == 5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"guard": "retention_pct", "guard_at_least": 90}, "guard_probe_per_class"),
        (
            {"guard": "knn_retention_pct", "guard_at_least": 90},
            "`guard: knn_retention_pct` needs .*guard_probe_per_class",
        ),
        ({"guard": "linear_probe_retention_pct", "guard_at_most": 90}, "takes `guard_at_least` alone"),
        (
            {"guard": "retention_pct", "guard_at_least": 90, "guard_probe_per_class": 2, "knn_k": 5},
            "`knn_k` needs measures: knn",
        ),
        ({"guard": "cka_mean"}, "needs `guard_at_least`"),
        ({"guard_at_least": 0.9}, "need `guard`"),
        ({"guard": "cka_mean", "guard_at_least": 0.9, "method": "linear_probe"}, "cannot change"),
        ({"guard": "cka", "guard_at_least": 0.9}, "there is no metric"),
    ],
)
def test_impossible_guards_are_refused_before_anything_runs(given: dict[str, Any], message: str) -> None:
    text = "name: one\nshared: {dataset: digits, transfer: [objects]}\nruns:\n  - " + json.dumps(given)
    with pytest.raises(ValueError, match=message):
        parse_study(text, where="study")
