"""The benchmark of whole studies: both sides are given the same images, batches, steps and settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from attndrift.bench.reference import reference
from attndrift.bench.study import Kind, reduced_study, write_images, write_reference
from attndrift.data import PixelStore
from attndrift.data.order import TrainingImages, training_loader
from attndrift.models import load_processor
from attndrift.study.images import open_dataset, splits_of


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


def test_runs_of_one_arithmetic_are_timed_once(tmp_path: Path) -> None:
    study = reduced_study(tmp_path)
    kinds = {Kind.of(run.settings) for run in study.runs if run.settings.method != "none"}
    assert len(study.runs) == 23
    # Full, three depths of freezing, three ranks of LoRA, and LoRA on four targets.
    assert len(kinds) == 8
