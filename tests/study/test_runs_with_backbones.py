"""Runs on backbones other than CLIP: found by the config of a folder, trained, resumed, measured by k-NN."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from attndrift.analysis.configurations import prepare
from attndrift.analysis.interpolation import interpolation_tables
from attndrift.analysis.settings import AnalysisSettings
from attndrift.cli.progress import StudyConsole
from attndrift.methods import load_adapted
from attndrift.models.load import load_model, load_processor, load_shape
from attndrift.results.tables import read_tables
from attndrift.study.collect import collect
from attndrift.study.distributed import SilentReporter
from attndrift.study.executor import Executor
from attndrift.study.interpolation import interpolate
from attndrift.study.loading import parse_study
from attndrift.study.record import read_record
from attndrift.study.resources import StudyResources
from attndrift.study.runner import run_study
from attndrift.study.settings import NamedRun, RunSettings

SETTINGS: dict[str, Any] = {
    "dataset": "digits", "train_per_class": 3, "validation_per_class": 1, "probe_size": 20, "test_limit": 20,
    "epochs": 2, "batch_size": 15, "learning_rate": 1e-3, "evaluations_per_epoch": 1, "map_images": 0, "threads": 1,
    "trackers": (), "transfer": ("tiles",), "measures": ("knn",), "transfer_limit": 20, "bank_limit": 20,
}  # fmt: skip


class _Reporter(SilentReporter):
    def __init__(self, *, stops: bool = False) -> None:
        self.stops = stops

    def inputs(self, found: Any, places: Any) -> None: ...

    def evaluated(self, step: int, total: int, values: object) -> None: ...

    def saved(self, step: int) -> None:
        if self.stops:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose config has positions for 28 pixels, and whose image processor makes images of 42."""
    folder = tmp_path_factory.mktemp("models") / "dinov2"
    load_model("config:dinov2-tiny").save_pretrained(folder)
    _, processor = load_processor("config:dinov2-tiny")
    processor.size, processor.crop_size = {"shortest_edge": 42}, {"height": 42, "width": 42}
    processor.save_pretrained(folder)
    return folder


def test_a_model_without_text_tower_is_trained_measured_and_resumed(dinov2: Path, tmp_path: Path) -> None:
    resources = StudyResources(tmp_path / "cache")

    def execute(folder: Path, reporter: _Reporter) -> Any:
        run = NamedRun(run_id="run", settings=RunSettings(model=str(dinov2), method="full", **SETTINGS))
        folder.mkdir(exist_ok=True)
        return Executor(resources)(run, folder, reporter)

    whole = execute(tmp_path / "whole", _Reporter())
    with pytest.raises(KeyboardInterrupt):
        execute(tmp_path / "run", _Reporter(stops=True))
    resumed = execute(tmp_path / "run", _Reporter())
    assert load_shape(dinov2).image_size == 42
    weights = [tmp_path / name / "checkpoints" / "best" / "model.safetensors" for name in ("whole", "run")]
    first, second = map(load_file, weights)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert whole["row"] == resumed["row"]
    assert whole["row"]["weight_drift"] > 0
    assert whole["row"]["transfer_tiles_knn_accuracy"] is not None
    model = load_adapted(weights[0].parent)  # which proves the fingerprint
    assert model.embed(torch.zeros(1, 3, 42, 42)).shape == (1, 32)


def test_the_weights_between_are_measured_by_every_measure_of_the_run(tmp_path: Path) -> None:
    shared = SETTINGS | {"model": "config:dinov2-tiny", "epochs": 1, "measures": ["knn", "linear_probe"]}
    study = parse_study(json.dumps({"name": "s", "shared": shared, "runs": [{"method": "full"}]}), where="study")
    resources = StudyResources(tmp_path / "cache")
    with Executor(resources) as execute:
        run_study(study, tmp_path / "s", execute, StudyConsole(console=Console(file=io.StringIO())))
    (run,) = (tmp_path / "s" / "runs").iterdir()
    row = (read_record(run) or {})["row"]
    (alone,) = interpolate(run, [1.0], resources=resources)
    start, end = interpolate(run, [0.0, 1.0], resources=resources)
    for stem in ("transfer_tiles_knn", "transfer_tiles_linear_probe"):
        assert (start[f"{stem}_accuracy"], start[f"{stem}_agreement"]) == (row[f"{stem}_pretrained"], 1.0)
        assert end[f"{stem}_accuracy"] == row[f"{stem}_accuracy"]
        assert alone[f"{stem}_agreement"] == end[f"{stem}_agreement"]
    collect(tmp_path / "s")
    tables = read_tables(tmp_path / "s")
    swept, _ = interpolation_tables(prepare(tables), tables.interpolation, AnalysisSettings(), [])
    assert swept.rows[0]["transfer_tiles_knn_agreement"] == 1.0
    assert any(column.label == "tiles linear-probe accuracy" for column in swept.columns)
