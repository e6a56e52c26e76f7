"""The benchmark of whole studies: both sides are given the same images, batches, steps and settings."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from attndrift.cli.main import app
from attndrift.data import PixelStore, load_dataset
from attndrift.data.shuffle import TrainingImages, training_loader
from attndrift.models import load_processor
from attndrift.study.dataset_splits import OpenDatasets, splits_of
from attndrift.study.settings import Study
from benchmarks import reference_study
from benchmarks.study import IMAGES_PER_CLASS, Workload, study, write_images, write_reference
from benchmarks.study_floor import FloorMeasurement, Kind, floor_seconds


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_images(folder)
    return folder


@pytest.mark.slow
def test_both_sides_train_on_the_same_batches(images: Path, tmp_path: Path) -> None:
    study = Workload(images, 2, 3).load()
    given = json.loads(write_reference(study, tmp_path, threads=1).read_text())
    run = study.runs[2]
    settings = run.settings
    assert [one["run_id"] for one in given["runs"]] == [one.run_id for one in study.runs]
    dataset = OpenDatasets().open(settings.dataset, settings)
    part = splits_of(dataset, settings).train
    _, processor = load_processor("embedded")
    store = PixelStore.open(dataset.split(part.split), processor, indices=part.indices, cache_dir=tmp_path / "cache")
    trained = TrainingImages(store, torch.from_numpy(part.labels), settings.seed, flip=settings.flip)
    loader = training_loader(trained, settings.batch_size)
    loader.batch_sampler.set_epoch(1)  # type: ignore[union-attr]
    trained.set_epoch(1)
    own = next(iter(loader))
    plain = given["datasets"][settings.dataset]
    theirs = reference_study.ImageFiles(plain["train"], processor, order=plain["order"][1], flips=plain["flips"][1])
    pixels, labels = zip(*(theirs[place] for place in range(settings.batch_size)), strict=True)
    assert torch.equal(own["labels"], torch.tensor(labels))
    torch.testing.assert_close(own["pixel_values"], torch.stack(pixels), rtol=0, atol=0.06)
    assert len(given["transfer"]["files"]) == settings.transfer_limit


@pytest.fixture
def planned(images: Path, tmp_path: Path) -> tuple[Study, Path]:
    """A study of two runs that train, and the file that describes it."""
    study = Workload(images, 2, 4).load()
    path = tmp_path / "study.json"
    path.write_text(study.model_dump_json())
    return study, path


@pytest.mark.slow
def test_the_command_line_makes_the_study_that_is_measured(images: Path, tmp_path: Path) -> None:
    workload = Workload(images, 3, None)
    command = workload.command(tmp_path / "study", 2)
    assert command[1:3] == ["-m", "attndrift"]
    dry = CliRunner().invoke(app, [*command[3:], "--dry-run", "--json"])
    assert dry.exit_code == 0, dry.output
    planned = json.loads(dry.stdout)
    study = workload.load()
    assert len(study.runs) == 23
    assert [one["run_id"] for one in planned] == [run.run_id for run in study.runs]
    assert {run.settings.epochs for run in study.runs if run.settings.method != "none"} == {3}


def test_runs_of_one_arithmetic_are_timed_once(tmp_path: Path) -> None:
    # Full, three depths of freezing, three ranks of LoRA, and LoRA on four targets.
    assert len(Kind.all_of(Workload(tmp_path, 2, None).load())) == 8


def test_the_floor_of_a_study_is_its_steps_and_passes(tmp_path: Path) -> None:
    for name, counts in IMAGES_PER_CLASS.items():
        for split, count in zip(("train", "test"), counts, strict=True):
            for label in load_dataset(name).class_names:  # files that are counted, and never decoded
                (tmp_path / name / split / label).mkdir(parents=True)
                for index in range(count):
                    (tmp_path / name / split / label / f"{index}.jpg").touch()
    study = Workload(tmp_path, 2, 4).load()
    adapted = [run for run in study.runs if run.settings.method != "none"]
    settings = adapted[0].settings
    counts = {"tiles": 10 * 48, "critters": 37 * 13}  # the last batch of an epoch counts as the part that it is
    steps = sum(counts[run.settings.dataset] for run in adapted) / settings.batch_size * settings.epochs
    assert floor_seconds(study, dict.fromkeys(Kind.all_of(study), 1.0), 0.0) == pytest.approx(steps)
    measured = 2 * settings.epochs * settings.probe_size * len(adapted)
    transfer = settings.transfer_limit * (len(adapted) + 1)  # the pretrained model's once
    probes = 2 * settings.probe_size  # of both targets
    validated = settings.epochs * 100 * len(adapted)  # images that a run selects on, once an epoch
    expected = measured + transfer + probes + validated
    assert floor_seconds(study, dict.fromkeys(Kind.all_of(study), 0.0), 1.0) == pytest.approx(expected)


@pytest.mark.slow
def test_the_floor_is_measured_in_turns(planned: tuple[Study, Path]) -> None:
    study, plan = planned
    with FloorMeasurement(study, plan, 1, os.environ) as floor:
        floor.measure_all(1)
        for _ in Kind.all_of(study):  # all but the forward pass
            floor.measure_one(1)
        assert len(floor.repeats()) == 1
        floor.measure_one(1)
        first, second = floor.repeats()
        assert floor.seconds() == pytest.approx((first + second) / 2)
        assert min(first, second) > 0


@pytest.mark.slow
def test_a_process_that_dies_between_measurements_is_no_zero_and_holds_up_nothing(planned: tuple[Study, Path]) -> None:
    study, plan = planned
    with FloorMeasurement(study, plan, 2, os.environ) as floor:
        floor.measure_one(1)
        processes = list(floor._processes)
        processes[0].kill()
        processes[0].wait()
        with pytest.raises(RuntimeError, match="the floor of the study could not be measured"):
            floor.measure_one(1)
    assert all(process.returncode is not None for process in processes)


@pytest.mark.slow
def test_a_floor_that_cannot_be_measured_is_no_zero(planned: tuple[Study, Path], tmp_path: Path) -> None:
    study, _ = planned
    with (
        FloorMeasurement(study, tmp_path / "nowhere.json", 1, os.environ) as floor,
        pytest.raises(RuntimeError, match="the floor of the study could not be measured"),
    ):
        floor.measure_all(1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_study_is_timed_against_script_and_floor() -> None:
    found = study(rows=4, epochs=1)
    script, floor = found.ratios
    assert script.seconds == floor.seconds > 0
    assert floor.seconds_against > 0
    (known,) = found.tables["how well the floor is known"]
    assert known["fastest s"] <= known["slowest s"]
    agreed = {(row["of"], row["measure"]): row for row in found.tables["the same results"]}
    assert agreed["runs without dropout", "test accuracy"]["largest"] == 0
