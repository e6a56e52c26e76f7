"""A study that measures retention in several ways: its columns, its record, and what the dry run says of the cost."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from attndrift.cli.progress import StudyConsole
from attndrift.files import read_json
from attndrift.results.tables import read_tables
from attndrift.study.distributed import SilentReporter
from attndrift.study.executor import Executor
from attndrift.study.loading import parse_study
from attndrift.study.plan import plan
from attndrift.study.resources import StudyResources
from attndrift.study.runner import run_study
from attndrift.study.settings import NamedRun, RunSettings

STUDY = """
name: measured
shared:
  model: {model}
  dataset: digits
  train_per_class: 8
  validation_per_class: 2
  probe_size: 20
  test_limit: 20
  epochs: 1
  evaluations_per_epoch: 1
  batch_size: 16
  learning_rate: 1e-3
  transfer: [tiles]
  transfer_limit: 100
  bank_limit: 120
  measures: {measures}
  monitor_zero_shot_images: 0
  trackers: []
runs:
  - {{experiment: E1, method: none}}
  - {{experiment: E2, method: full}}
"""
MEASURES = ("zero_shot", "knn", "linear_probe")


@pytest.fixture(scope="module")
def folder(tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("measured")
    study = parse_study(STUDY.format(model=tiny_clip, measures=f"[{', '.join(MEASURES)}]"), where="study")
    with Executor(StudyResources(made / "cache")) as execute:
        outcome = run_study(study, made / "study", execute, StudyConsole(console=Console(file=io.StringIO())))
    assert set(outcome.statuses.values()) == {"finished"}, outcome
    return made / "study"


def _records(folder: Path) -> dict[str, Any]:
    found = [read_json(path) for path in sorted(folder.glob("runs/*/record.json"))]
    return {record["row"]["experiment"]: record for record in found}


@pytest.mark.parametrize("measure", MEASURES)
def test_every_measure_has_columns_of_its_own_and_says_how_it_was_made(folder: Path, measure: str) -> None:
    runs = read_tables(folder).runs.set_index("experiment")
    stem = f"transfer_tiles_{measure}"
    assert (runs[f"{stem}_n"] == 100).all()
    assert runs[f"{stem}_pretrained"].nunique() == 1
    assert runs.loc["E1", f"{stem}_accuracy"] == runs.loc["E1", f"{stem}_pretrained"]
    for experiment, record in _records(folder).items():
        detail = record["transfer"]["tiles"][measure]
        assert detail["adapted"]["accuracy"] == runs.loc[experiment, f"{stem}_accuracy"]
        if detail["retention_pct"] is None:
            assert f"{stem}_retention_pct" in record["nulls"]
        else:
            share = detail["adapted"]["accuracy"] / detail["pretrained"]["accuracy"]
            assert runs.loc[experiment, f"{stem}_retention_pct"] == pytest.approx(100 * share)
            change = detail["adapted"]["accuracy"] - detail["pretrained"]["accuracy"]
            assert runs.loc[experiment, f"{stem}_change_points"] == pytest.approx(100 * change)
    own = {"knn": {"k": 20, "temperature": 0.07, "bank": 120}, "linear_probe": {"bank": 120}}.get(measure, {})
    assert own.items() <= detail["adapted"].items()


def test_seconds_are_recorded_for_each_set_and_measure(folder: Path) -> None:
    phases = _records(folder)["E2"]["time"]["phases"]
    for label in ("zero-shot accuracy", "k-NN accuracy", "linear-probe accuracy"):
        assert {f"{label} on tiles", f"{label} on tiles, the pretrained model"} <= set(phases)


@pytest.mark.parametrize("measure", ["knn", "linear_probe"])
def test_a_model_that_is_not_trained_keeps_all_that_it_could_do(folder: Path, measure: str) -> None:
    record = _records(folder)["E1"]["transfer"]["tiles"][measure]
    assert record["retention_pct"] == 100.0
    assert record["change_points"] == 0.0
    for run in folder.glob("runs/*E1*"):
        arrays = np.load(run / f"transfer_tiles_{measure}.npz")
        assert np.array_equal(arrays["adapted"], arrays["pretrained"])


def test_the_dry_run_counts_the_bank_and_the_fits() -> None:
    def seconds(*measures: str) -> float:
        text = STUDY.format(model="config:tiny", measures=f"[{', '.join(measures)}]")
        return sum(row.seconds or 0.0 for row in plan(parse_study(text, where="study")))

    alone, by_neighbours, both = seconds("zero_shot"), seconds("zero_shot", "knn"), seconds(*MEASURES)
    assert alone < by_neighbours < both
    # The images of the bank are embedded once for both.
    assert seconds("knn", "linear_probe") < seconds("knn") + seconds("linear_probe")


@pytest.mark.parametrize("given", [{}, {"measures": ["knn", "zero_shot"]}, {"guard": "retention_pct"}])
def test_what_needs_text_is_refused_before_a_model_without_it_is_trained(given: dict[str, Any], tmp_path: Path) -> None:
    guarded = {"guard_at_least": 50, "guard_probe_per_class": 2, "measures": "knn"} if "guard" in given else {}
    settings = RunSettings(
        model="config:dinov2-tiny", dataset="digits", transfer="tiles", transfer_limit=60, bank_limit=60, epochs=1,
        train_per_class=3, validation_per_class=1, monitor_zero_shot_images=0, trackers=(), threads=1,
        **{**guarded, **given},
    )  # fmt: skip
    (tmp_path / "run").mkdir()
    with pytest.raises(
        ValueError, match=r"zero_shot needs a text tower, which `model` does not have; knn, linear_probe need none"
    ):
        Executor(StudyResources(tmp_path / "cache"))(
            NamedRun(run_id="run", settings=settings), tmp_path / "run", _Silent()
        )
    assert not list((tmp_path / "run").glob("history*"))


class _Silent(SilentReporter):
    def inputs(self, found: Any, places: Any) -> None: ...
