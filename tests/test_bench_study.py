"""The benchmark of whole studies: both sides are given the same images, batches, steps and settings."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from attndrift.bench.arithmetic import Arithmetic, Kind, by_phase
from attndrift.bench.reference import reference
from attndrift.bench.stopwatch import Timed
from attndrift.bench.study import _phases, reduced_study, write_images, write_reference
from attndrift.bench.study import study as measure
from attndrift.data import PixelStore
from attndrift.data.order import TrainingImages, training_loader
from attndrift.models import load_processor
from attndrift.study.images import open_dataset, splits_of
from attndrift.study.record import FORMAT
from attndrift.study.settings import Study


def test_both_sides_train_on_the_same_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    write_images(tmp_path / "images")
    study = reduced_study(tmp_path / "images", 3)
    given = json.loads(write_reference(study, tmp_path, threads=1).read_text())
    run = study.runs[2]
    settings = run.settings
    assert [one["run_id"] for one in given["runs"]] == [one.run_id for one in study.runs]
    dataset = open_dataset(settings.dataset, settings)
    part = splits_of(dataset, settings).train
    _, processor = load_processor("embedded")
    store = PixelStore.open(dataset.split(part.split), processor, indices=part.indices, cache_dir=tmp_path / "cache")
    images = TrainingImages(store, torch.from_numpy(part.labels), settings.seed, flip=settings.flip)
    loader = training_loader(images, settings.batch_size)
    loader.batch_sampler.set_epoch(1)  # type: ignore[union-attr]
    images.set_epoch(1)
    own = next(iter(loader))
    script = reference("reference_study")
    plain = given["datasets"][settings.dataset]
    theirs = script.ImageFiles(plain["train"], processor, order=plain["order"][1], flips=plain["flips"][1])
    pixels, labels = zip(*(theirs[place] for place in range(settings.batch_size)), strict=True)
    assert torch.equal(own["labels"], torch.tensor(labels))
    torch.testing.assert_close(own["pixel_values"], torch.stack(pixels), rtol=0, atol=0.06)
    assert len(given["transfer"]["files"]) == settings.transfer_limit


@pytest.fixture
def planned(tmp_path: Path) -> tuple[Study, Path]:
    """A study of two runs that train, and the file that describes it."""
    write_images(tmp_path / "images")
    study = reduced_study(tmp_path / "images", 4)
    path = tmp_path / "study.json"
    path.write_text(study.model_dump_json())
    return study, path


def test_runs_of_one_arithmetic_are_timed_once(tmp_path: Path) -> None:
    study = reduced_study(tmp_path)
    kinds = Kind.all_of(study)
    assert len(study.runs) == 23
    # Full, three depths of freezing, three ranks of LoRA, and LoRA on four targets.
    assert len(kinds) == 8


def test_the_arithmetic_of_a_study_is_its_steps_and_passes(planned: tuple[Study, Path]) -> None:
    study, _ = planned
    adapted = [run for run in study.runs if run.settings.method != "none"]
    settings = adapted[0].settings
    images = {"tiles": 10 * 48, "critters": 37 * 13}  # the last batch of an epoch counts as the part that it is
    steps = sum(images[run.settings.dataset] for run in adapted) / settings.batch_size * settings.epochs
    measured = 2 * settings.epochs * settings.probe_size
    only_steps = by_phase(study, dict.fromkeys(Kind.all_of(study), 1.0), 0.0, 0.0)
    assert only_steps == {"training": pytest.approx(steps)}
    only_passes = by_phase(study, dict.fromkeys(Kind.all_of(study), 0.0), 1.0, 0.0)
    assert only_passes["training"] == measured * len(adapted)
    assert only_passes["zero-shot transfer"] == settings.transfer_limit * len(adapted)
    # Both targets' probes, and the transfer images once.
    assert only_passes["the untouched model"] == 2 * settings.probe_size + settings.transfer_limit


def test_the_arithmetic_is_measured_in_turns(planned: tuple[Study, Path]) -> None:
    study, plan = planned
    with Arithmetic(study, plan, 1, os.environ) as arithmetic:
        arithmetic.measure_all(1)
        kinds = len(Kind.all_of(study))
        for _ in range(kinds + 1):  # all but one of the two kinds of passes
            arithmetic.measure_one(1)
        assert len(arithmetic.repeats()) == 1
        arithmetic.measure_one(1)
        first, second = arithmetic.repeats()
        assert arithmetic.phases() == pytest.approx({phase: (first[phase] + second[phase]) / 2 for phase in first})
        assert min(first.values()) > 0
    # Entered by nobody, it leaves no process behind.
    arithmetic.measure_all(1)
    assert len(arithmetic.repeats()) == 3
    assert not arithmetic._processes


def test_seconds_of_phases_leave_out_the_pauses_and_nothing_else(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    study = reduced_study(tmp_path / "images", 3)
    untouched, _, adapted = (run.run_id for run in study.runs)
    told = [
        (7, adapted, "images"), (8, adapted, "the pretrained model"), (10, adapted, "training"),
        (12, untouched, "images"), (13, untouched, "the pretrained model"), (15, untouched, None),
        (20, adapted, "test"), (21, adapted, "zero-shot transfer to objects"), (25, adapted, None),
        (26, study.runs[1].run_id, "images"), (27, study.runs[1].run_id, None),
    ]  # fmt: skip
    lines = [f"@ {json.dumps(one)}" for one in told]
    lines.insert(4, "what a library has printed")
    timed = Timed(5.0, 30.0, [*lines, "1.5"], [(2.0, 5.0), (11.0, 14.0), (28.0, 29.0)])
    for run in study.runs:
        folder = tmp_path / "study" / "runs" / run.run_id
        folder.mkdir(parents=True)
        (folder / "record.json").write_text(json.dumps({"format": FORMAT, "status": "finished"}))
    inside, outside = _phases(tmp_path / "study", study, timed, 2)
    assert inside == {
        "images": 1, "the untouched model": 2 + 0 + 1 + 1, "training": 7, "test": 1, "zero-shot transfer": 4,
    }  # fmt: skip
    # Two processes: 2 s until the first run and 2 of 3 after the last one, and 17 s in between.
    assert outside == {"starting": 4, "without a run": 2 * 17 - 17, "collecting": 4}
    assert sum(inside.values()) + sum(outside.values()) == 2 * timed.seconds
    (folder / "record.json").write_text(json.dumps({"format": FORMAT, "status": "failed", "problem": "out of luck"}))
    with pytest.raises(RuntimeError, match="did not finish: out of luck"):
        _phases(tmp_path / "study", study, timed, 2)


@pytest.mark.slow
def test_a_study_is_timed_against_its_arithmetic() -> None:
    found = measure(runs=4, epochs=1, script=False)
    whole, inside = found.ratios
    assert whole.seconds > inside.seconds > 0
    assert whole.seconds_against == inside.seconds_against > 0
    phases = {row["phase"]: row["seconds, summed over runs"] for row in found.tables["Where the time goes"]}
    assert sum(phases.values()) == pytest.approx(2 * whole.seconds, rel=1e-6)
    assert min(phases.values()) >= 0
    (known,) = found.tables["How well the arithmetic is known"]
    assert known["fastest s"] <= known["mean s"] <= known["slowest s"]


def test_a_process_that_dies_between_measurements_is_no_zero_and_holds_up_nothing(planned: tuple[Study, Path]) -> None:
    study, plan = planned
    with Arithmetic(study, plan, 2, os.environ) as arithmetic:
        arithmetic.measure_one(1)
        processes = list(arithmetic._processes)
        processes[0].kill()
        processes[0].wait()
        with pytest.raises(RuntimeError, match="the arithmetic alone could not be measured"):
            arithmetic.measure_one(1)
    assert all(process.returncode is not None for process in processes)


def test_an_arithmetic_that_cannot_be_measured_is_no_zero(planned: tuple[Study, Path], tmp_path: Path) -> None:
    study, _ = planned
    with (
        Arithmetic(study, tmp_path / "nowhere.json", 1, os.environ) as arithmetic,
        pytest.raises(RuntimeError, match="the arithmetic alone could not be measured"),
    ):
        arithmetic.measure_all(1)
