"""Real runs of a tiny CLIP: every method, both selections, what is recorded, and what is refused."""

from __future__ import annotations

import io
import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from attndrift.attention import observe
from attndrift.cli.progress import StudyConsole
from attndrift.files import read_json
from attndrift.methods import fingerprint_embeddings, load_adapted, weight_drift
from attndrift.models import ModelError, load_model
from attndrift.results.tables import Tables, columns_of, read_tables
from attndrift.study.collect import gather
from attndrift.study.executor import Executor
from attndrift.study.interpolation import interpolate
from attndrift.study.loading import parse_study
from attndrift.study.resources import StudyResources
from attndrift.study.runner import StudyOutcome, run_study
from attndrift.study.settings import own_fields

SHARED = """
name: {name}
shared:
  model: {model}
  dataset: digits
  train_per_class: 8
  validation_per_class: {validation}
  probe_size: 20
  test_limit: 30
  epochs: 2
  batch_size: 20
  learning_rate: 1e-3
  transfer: [objects]
  transfer_limit: 200
  monitor_zero_shot_images: 100
  evaluations_per_epoch: 2
  map_images: 2
  threads: 1
  selection: {selection}
runs:
"""

RUNS = """
  - {experiment: E1, method: none}
  - {experiment: E2, method: full}
  - {method: full, freeze_layers: 1}
  - {method: full, loss: "attention_preservation:100"}
  - {method: full, loss: "entropy_floor:1", entropy_floor_fraction: 1.0}
  - {method: full, loss: "attention_preservation:0", gradient_accumulation: 2}
  - {method: lora, lora_rank: 2}
  - {method: lora, lora_rank: 2, lora_targets: "q,k,v,out", train_projection: false}
  - {method: linear_probe}
  - {method: last_block, train_projection: true, keep: all}
  - {method: full, head: text, keep: best}
"""


def _run(text: str, folder: Path, resources: StudyResources) -> tuple[StudyOutcome, Tables]:
    console = StudyConsole(console=Console(file=io.StringIO()))
    outcome = run_study(parse_study(text, where="study"), folder, Executor(resources), console)
    return outcome, read_tables(folder)


def _text(model: Path | str, runs: str, *, selection: str = "validation", name: str = "methods") -> str:
    validation = "2" if selection == "validation" else "null"
    return SHARED.format(name=name, model=model, selection=selection, validation=validation) + runs


@pytest.fixture(scope="module")
def resources(tmp_path_factory: pytest.TempPathFactory) -> StudyResources:
    """Images, models and measurements that the tests share, as the runs of a study do."""
    return StudyResources(tmp_path_factory.mktemp("resources"))


@pytest.fixture(scope="module")
def study(tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "methods"
    outcome, _ = _run(_text(tiny_clip, RUNS), folder, StudyResources(folder.parent / "cache"))
    assert set(outcome.statuses.values()) == {"finished"}, outcome
    return folder


def _row(runs: pd.DataFrame, **wanted: Any) -> pd.Series[Any]:
    for name, value in wanted.items():
        runs = runs[runs[name] == value]
    assert len(runs) == 1, f"{len(runs)} rows with {wanted}"
    return runs.iloc[0]


# Null where a setting has no meaning for a method; everything else is filled.
NOT_FOR_ALL = {"model_revision", "outcome", "outcome_alpha", "optimisation", *own_fields(),
    "experiment", "freeze_layers", "loss", "parent_run", "training_seconds",
    "loss_active_fraction", "activation_change_mean", "activation_change_last", "guard", "guard_at_least", "guard_at_most",
    "guard_outcome", "trained_parts", "knn_accuracy", "knn_retention_pct", "text_embedding_drift", "text_weight_drift", "text_projection_drift", "logit_scale_change",
}  # fmt: skip
NOT_FOR_NONE = {
    "head",
    "learning_rate", "epochs", "batch_size", "weight_decay", "train_projection", "selected_epoch", "n_train",
    "n_validation", "n_test", "best_val_accuracy", "test_accuracy",
}  # fmt: skip


# The pretrained model is at chance: nothing can be retained.
NOT_FOR_ALL |= {
    f"transfer_objects_zero_shot_{name}"
    for name in (
        "retention_pct",
        "retention_low_pct",
        "retention_high_pct",
        "change_points",
        "change_low_points",
        "change_high_points",
    )
}


def test_every_column_that_applies_is_filled(study: Path) -> None:
    runs = read_tables(study).runs
    names = [column.name for column in columns_of("runs", runs)]
    for _, row in runs.iterrows():
        expected = set(names) - NOT_FOR_ALL - (NOT_FOR_NONE if row["method"] == "none" else set())
        empty = {name for name in expected if pd.isna(row[name])}
        assert not empty, f"{row['run_id']}: {empty}"
    assert _row(runs, loss="entropy_floor:1")["loss_active_fraction"] > 0
    losses = read_tables(study).losses.set_index("loss")
    assert losses.loc["entropy_floor", "weight"] == 1
    assert losses.loc["entropy_floor", "active_fraction"] == _row(runs, loss="entropy_floor:1")["loss_active_fraction"]
    assert set(losses.loc["attention_preservation", "weight"]) == {0, 100}


def test_the_untouched_model_is_a_row_without_drift(study: Path) -> None:
    row = _row(read_tables(study).runs, method="none")
    assert row["entropy_change_pct"] == row["embedding_drift"] == row["weight_drift"] == 0.0
    assert row["cka_mean"] == pytest.approx(1.0)
    assert row["transfer_objects_zero_shot_accuracy"] == row["transfer_objects_zero_shot_pretrained"]


def test_the_frozen_parts_do_not_drift_and_the_trained_ones_do(study: Path) -> None:
    runs = read_tables(study).runs
    probe = _row(runs, method="linear_probe")
    assert probe["weight_drift"] == probe["projection_drift"] == probe["embedding_drift"] == 0.0
    assert probe["entropy_change_pct"] == 0.0
    for run in ("digits_lora-r2_qkvo_frozen-projection_lr0.001_s42",):
        row = _row(runs, run_id=run)
        assert row["weight_drift"] > 0
        assert row["projection_drift"] == 0.0
    full = _row(runs, experiment="E2")
    assert full["weight_drift"] > 0
    assert full["projection_drift"] > 0
    assert 0 < full["embedding_drift"] < 2


def test_a_loss_of_weight_zero_is_no_loss(tiny_clip: Path, study: Path) -> None:
    """Also under accumulation: two half batches make the step of a whole one, but for rounding."""
    runs = read_tables(study).runs
    plain, zero = _row(runs, experiment="E2"), _row(runs, loss="attention_preservation:0")
    assert zero["entropy_final"] == pytest.approx(plain["entropy_final"], rel=1e-4)
    assert zero["weight_drift"] == pytest.approx(plain["weight_drift"], rel=2e-2)


def test_attention_preservation_preserves_attention(study: Path) -> None:
    layers = read_tables(study).layers

    def distance(run: str) -> float:
        entropy = layers[(layers["run_id"] == run) & (layers["metric"] == "entropy") & layers["head"].notna()]
        steps = {step: frame["value"].to_numpy() for step, frame in entropy.groupby("step")}
        return float(np.abs(steps[max(steps)] - steps[0]).mean())

    assert distance("digits_full_attention-preservation100_lr0.001_s42") < 0.5 * distance("E2_digits_full_lr0.001_s42")


def test_history_has_step_0_and_about_as_many_rows_as_asked(study: Path) -> None:
    tables = read_tables(study)
    history = tables.history[tables.history["run_id"] == "E2_digits_full_lr0.001_s42"]
    assert history["step"].tolist() == [0, 2, 4, 6, 8]
    assert history["epoch"].tolist() == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert history["val_accuracy"].notna().tolist() == [False, False, True, False, True]
    assert history["monitor_zero_shot_accuracy"].notna().tolist() == [True, False, True, False, True]
    assert tables.runs.set_index("run_id").loc["E2_digits_full_lr0.001_s42", "monitor_disjoint"]
    assert history["train_loss"].notna().tolist() == [False, True, True, True, True]
    row = _row(tables.runs, experiment="E2")
    assert row["best_val_accuracy"] == history["val_accuracy"].max()
    first = history.iloc[0]
    assert first["entropy"] == row["entropy_baseline"]
    assert first["entropy_change_pct"] == 0.0


def test_layers_hold_every_layer_and_head(study: Path) -> None:
    layers = read_tables(study).layers
    one = layers[(layers["run_id"] == "E2_digits_full_lr0.001_s42") & (layers["step"] == 8)]
    for metric in ("entropy", "erf95", "gini", "head_diversity", "cls_mass"):
        values = one[one["metric"] == metric]
        assert len(values) == 3 + 3 * 4
        means = values[values["head"].isna()].set_index("layer")["value"]
        by_head = values[values["head"].notna()].groupby("layer")["value"].mean()
        np.testing.assert_allclose(means, by_head, rtol=1e-12)
    assert one[one["metric"] == "cka"]["layer"].tolist() == [1, 2, 3]


def test_the_record_has_what_repeats_the_run(study: Path) -> None:
    record = read_json(study / "runs" / "E2_digits_full_lr0.001_s42" / "record.json")
    assert {"settings", "versions", "hardware", "hashes", "time", "data", "preprocessing", "transfer"} <= set(record)
    evidence = record["transfer"]["objects"]["zero_shot"]["adapted"]
    assert evidence["templates"] == ["a photo of a {class}."]
    assert len(evidence["class_names"]) == 100
    assert {"split", "dataset", "preprocessing", "embeddings_moved_mean"} <= set(evidence)
    assert evidence["embeddings_moved_mean"] > 0
    text = json.dumps(record)
    assert str(Path.home()) not in text
    splits = read_json(study / "runs" / "E2_digits_full_lr0.001_s42" / "splits.json")
    parts = splits["parts"]
    assert [parts[name]["n"] for name in ("train", "validation", "test", "probe")] == [80, 20, 30, 20]
    ids = [set(parts[name]["ids"]) for name in ("train", "validation", "probe")]
    assert not ids[0] & ids[1]
    assert not ids[0] & ids[2]
    assert not ids[1] & ids[2]


def test_the_log_says_who_gets_how_many_images(study: Path) -> None:
    log = (study / "runs" / "E2_digits_full_lr0.001_s42" / "log.txt").read_text()
    assert "digits: 80 images train, 20 validate, 20 are the probe, 30 test" in log


def test_checkpoints_are_kept_to_the_budget(study: Path) -> None:
    def kept(run: str) -> set[str]:
        return {p.name for p in (study / "runs" / run / "checkpoints").iterdir()}

    assert kept("E2_digits_full_lr0.001_s42") == {"best", "final"}
    assert kept("digits_last-block_projection_lr0.001_s42") == {"best", "final", "epoch-1", "epoch-2"}
    names = [p.name for p in (study / "runs").iterdir() if p.name.startswith("digits_full_text-head_lr0.001_s42")]
    assert kept(names[0]) == {"best"}
    assert not list(study.glob("runs/*/resume"))


def test_a_kept_checkpoint_is_the_model_that_was_reported(study: Path) -> None:
    folder = study / "runs" / "digits_lora-r2_lr0.001_s42"
    model = load_adapted(folder / "checkpoints" / "best")
    row = _row(read_tables(study).runs, run_id=folder.name)
    recorded = read_json(folder / "record.json")["settings"]["model"]
    assert weight_drift(model, load_model(recorded)) == pytest.approx(row["weight_drift"], rel=1e-9)


def test_maps_are_those_of_the_probe_images(study: Path) -> None:
    with np.load(study / "runs" / "E2_digits_full_lr0.001_s42" / "maps.npz") as maps:
        assert maps["images"].shape == (2, 28, 28, 3)
        assert maps["before"].shape == maps["after"].shape == (2, 3, 4, 16)
        np.testing.assert_allclose(maps["after"].sum(-1), 1.0, atol=1e-5)
        assert not np.allclose(maps["before"], maps["after"], atol=1e-6)
        assert maps["grid"].tolist() == [4, 4]


def test_tensorboard_has_scalars_per_layer(study: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(study / "runs" / "E2_digits_full_lr0.001_s42" / "tensorboard"))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert "train/drift_entropy/layer_03" in tags
    assert "train/val_accuracy" in tags
    assert [event.step for event in events.Scalars("train/drift_entropy/layer_03")] == [0, 2, 4, 6, 8]


@pytest.mark.parametrize("run", ["E2_digits_full_lr0.001_s42", "digits_lora-r2_lr0.001_s42"])
def test_interpolation_starts_at_the_pretrained_and_ends_at_the_adapted_model(study: Path, run: str) -> None:
    bench = StudyResources(study.parent / "cache")
    points = interpolate(study / "runs" / run, (0.0, 0.5, 1.0), resources=bench)
    row = _row(read_tables(study).runs, run_id=run)
    first, middle, last = points
    assert first["embedding_drift"] == pytest.approx(0.0, abs=1e-12)
    assert first["weight_drift"] == first["entropy_change_pct"] == 0.0
    assert first["transfer_objects_zero_shot_accuracy"] == row["transfer_objects_zero_shot_pretrained"]
    assert first["transfer_objects_zero_shot_agreement"] == 1.0
    # No more right answers can have been lost than answers were changed.
    for point in points:
        lost = first["transfer_objects_zero_shot_accuracy"] - point["transfer_objects_zero_shot_accuracy"]
        assert abs(lost) <= 1 - point["transfer_objects_zero_shot_agreement"] + 1e-12
    assert last["transfer_objects_zero_shot_agreement"] < 1
    (alone,) = interpolate(study / "runs" / run, (0.5,), resources=bench)
    assert alone == middle, "without alpha 0 the pretrained predictions are made for themselves"
    assert last["test_accuracy"] == row["test_accuracy"]
    assert last["weight_drift"] == pytest.approx(row["weight_drift"], rel=1e-4)
    assert last["embedding_drift"] == pytest.approx(row["embedding_drift"], rel=1e-3)
    assert middle["weight_drift"] == pytest.approx(0.5 * last["weight_drift"], rel=1e-4)
    interpolate(study / "runs" / run, (0.0, 0.5, 1.0), resources=bench)
    tables, _ = gather(study)
    sweep = tables.interpolation[tables.interpolation["run_id"] == run]
    assert sweep["alpha"].tolist() == [0.0, 0.5, 1.0]
    (study / "runs" / run / "interpolation.json").unlink()


def test_what_the_untouched_model_makes_of_a_probe_is_kept_for_that_probe_alone(
    tiny_clip: Path, tmp_path: Path
) -> None:
    described = "".join(f"\n  - {{method: full{more}}}" for more in ("", ", data_seed: 9", ", map_images: 1"))
    runs = parse_study(_text(tiny_clip, described), where="study").runs
    bench = StudyResources(tmp_path / "cache")
    pretrained = bench.pretrained(runs[0].settings.model, torch.device("cpu"))
    found = []
    for run in runs:
        target = bench.target(run.settings, pretrained)
        results = bench.results(run.settings, target, pretrained)
        fingerprint, maps = results.fingerprint(), results.maps()
        assert bench.results(run.settings, target, pretrained).fingerprint() is fingerprint
        assert torch.equal(fingerprint.pixels, target.probe.fetch(range(8)))
        assert torch.equal(fingerprint.embeddings, fingerprint_embeddings(pretrained.model, fingerprint.pixels))
        with observe(pretrained.model) as seen, torch.no_grad():
            pretrained.embed(target.probe.fetch(range(run.settings.map_images)))
        assert np.array_equal(maps, torch.stack(list(seen.attention), dim=1).numpy())
        found.append(fingerprint)
    assert not torch.equal(found[0].pixels, found[1].pixels), "another split has another probe"
    assert found[0] is found[2]


def test_what_cannot_be_interpolated_says_so(study: Path) -> None:
    with pytest.raises(ValueError, match="nothing to interpolate"):
        interpolate(study / "runs" / "E1_digits_none")
    with pytest.raises(ValueError, match="they lie in"):
        interpolate(study / "runs" / "E2_digits_full_lr0.001_s42", (2.0,))


def test_selection_test_selects_and_reports_on_one_split(
    tiny_clip: Path, tmp_path: Path, resources: StudyResources
) -> None:
    text = _text(tiny_clip, "  - {experiment: E2, method: full}\n", selection="test", name="seed")
    _, tables = _run(text, tmp_path / "s", resources)
    row = tables.runs.iloc[0]
    assert row["test_accuracy"] == row["best_val_accuracy"]
    splits = read_json(tmp_path / "s" / "runs" / row["run_id"] / "splits.json")["parts"]
    assert (
        splits["validation"]["hash"] == splits["test"]["hash"] or splits["validation"]["ids"] == splits["test"]["ids"]
    )
    last = tables.history.iloc[-1]
    assert row["entropy_final"] == pytest.approx(last["entropy"], rel=1e-9), "measured after the last epoch"


def test_a_run_that_diverges_is_recorded_and_the_study_goes_on(
    tiny_clip: Path, tmp_path: Path, resources: StudyResources
) -> None:
    """Rate 10 with decay 1 multiplies every weight by -9 a step: soon nothing is a number."""
    runs = "  - {method: full, learning_rate: 10, weight_decay: 1, epochs: 8, checkpoints_per_epoch: 4}\n"
    text = _text(tiny_clip, runs + "  - {method: none}\n", name="explosive")
    outcome, tables = _run(text, tmp_path / "s", resources)
    assert list(outcome.statuses.values()) == ["diverged", "finished"]
    row = tables.runs.iloc[0]
    assert row["status"] == "diverged"
    assert pd.isna(row["test_accuracy"])
    assert row["entropy_baseline"] > 0
    folder = tmp_path / "s" / "runs" / row["run_id"]
    assert re.search(r"is (nan|inf) after step|not finite", read_json(folder / "record.json")["problem"])
    weights = load_file(folder / "checkpoints" / "last-good" / "model.safetensors")
    assert all(bool(torch.isfinite(value).all()) for value in weights.values())
    assert len(tables.history[tables.history["run_id"] == row["run_id"]]) >= 1
    again, _ = _run(text, tmp_path / "s", resources)
    assert again.statuses[row["run_id"]] == "kept", "a diverged run is done"


def test_an_absent_transfer_set_is_null_with_a_reason(
    tiny_clip: Path, tmp_path: Path, resources: StudyResources
) -> None:
    """CIFAR-10 can only come from the hub here, which the tests never reach."""
    text = _text(tiny_clip, "  - {method: none, transfer: [cifar10, objects], missing_sets: skip}\n", name="absent")
    outcome, tables = _run(text, tmp_path / "s", resources)
    assert set(outcome.statuses.values()) == {"finished"}
    row = tables.runs.iloc[0]
    assert pd.isna(row["transfer_cifar10_zero_shot_accuracy"])
    assert row["transfer_objects_zero_shot_accuracy"] >= 0
    record = read_json(tmp_path / "s" / "runs" / row["run_id"] / "record.json")
    assert "out of reach" in record["nulls"]["transfer_cifar10_zero_shot_accuracy"]
    assert list(record["absent"]) == ["cifar10"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("transfer: [nowhere]", "nowhere"),
        ("train_per_class: 10000", "there are"),
        ("source: {path: /nonexistent}", "does not exist"),
    ],
)
def test_what_is_missing_is_said_before_training(
    tiny_clip: Path, tmp_path: Path, resources: StudyResources, change: str, problem: str
) -> None:
    text = _text(tiny_clip, f"  - {{method: full, {change}}}\n", name="missing")
    outcome, _ = _run(text, tmp_path / "s", resources)
    assert set(outcome.statuses.values()) == {"failed"}
    folder = next((tmp_path / "s" / "runs").iterdir())
    assert problem in read_json(folder / "record.json")["problem"]
    assert not (folder / "history.jsonl").exists()


def test_a_model_that_is_not_there_ends_the_study_before_its_first_run(tiny_clip: Path, tmp_path: Path) -> None:
    text = _text(tiny_clip, "  - {method: full, model: /nonexistent}\n", name="missing")
    with pytest.raises(ModelError, match="/nonexistent: not a folder here"):
        _run(text, tmp_path / "s", StudyResources(tmp_path / "cache"))
    assert not (tmp_path / "s").exists()


def test_a_transfer_set_of_the_targets_own_images_is_refused(
    tiny_clip: Path, tmp_path: Path, resources: StudyResources
) -> None:
    from PIL import Image
    from sklearn.datasets import load_digits

    for split in ("train", "test"):
        for index, (image, label) in enumerate(zip(*load_digits(return_X_y=True), strict=True)):
            if index >= 100:
                break
            folder = tmp_path / "mine" / split / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray((image.reshape(8, 8) * 15).astype(np.uint8)).save(folder / f"{index}.png")
    runs = (
        f"  - {{method: full, dataset: mine, source: {{path: '{tmp_path / 'mine'}', origin: optdigits}}, "
        "train_per_class: 2, validation_per_class: 1, probe_size: 10, transfer: [digits]}\n"
    )
    _run(_text(tiny_clip, runs, name="own"), tmp_path / "s", resources)
    record = read_json(next((tmp_path / "s" / "runs").iterdir()) / "record.json")
    assert record["status"] == "failed"
    assert "drawn from one source" in record["problem"]


@pytest.mark.data
def test_the_real_images_go_through(tiny_clip: Path, tmp_path: Path) -> None:
    import os

    if not os.environ.get("ATTNDRIFT_DATA"):
        pytest.skip("ATTNDRIFT_DATA is not set: EuroSAT and CIFAR-100 are not at hand")
    text = _text(tiny_clip, "  - {method: full, epochs: 1}\n  - {method: none}\n", name="real")
    text = text.replace("dataset: digits", "dataset: eurosat").replace("[objects]", "[cifar100]")
    outcome, tables = _run(text, tmp_path / "s", StudyResources(tmp_path / "cache"))
    assert set(outcome.statuses.values()) == {"finished"}
    assert tables.runs["transfer_cifar100_zero_shot_n"].tolist() == [200, 200]


def _coloured(folder: Path, brightness: int) -> Path:
    """Noise in three classes; the file names, and so the ids, are the same for every brightness."""
    from PIL import Image

    noise = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 2)):
        for label in "xyz":
            (folder / split / label).mkdir(parents=True)
            for index in range(count):
                pixels = (noise.random((28, 28, 3)) * brightness).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / label / f"{index}.png")
    return folder


def test_datasets_with_equal_ids_share_no_measurement(tiny_clip: Path, tmp_path: Path) -> None:
    """Baseline and pretrained attention are of the run's own images, whatever the files are called."""
    sizes = "train_per_class: 3, validation_per_class: 1, probe_size: 6, transfer: [], epochs: 1"
    sets = {
        name: f"  {name}: {{source: {{path: '{_coloured(tmp_path / name, brightness)}'}}, {sizes}}}\n"
        for name, brightness in (("bright", 255), ("dark", 40))
    }
    # Trained by next to nothing, so that a run ends where the pretrained model is.
    run = "  - {{method: full, loss: attention_preservation:1, learning_rate: 1e-9, grid: {{dataset: [{}]}}}}\n"

    def rows(name: str, datasets: list[str], cache: str) -> pd.DataFrame:
        described = "datasets:\n" + "".join(sets[dataset] for dataset in datasets)
        text = _text(tiny_clip, run.format(", ".join(datasets)) + described, name=name)
        _, tables = _run(text, tmp_path / name, StudyResources(tmp_path / cache))
        return tables.runs.set_index("dataset")

    both, alone = rows("both", ["bright", "dark"], "cache"), rows("alone", ["dark"], "another-cache")
    assert both.loc["dark", "entropy_baseline"] == alone.loc["dark", "entropy_baseline"]
    assert both.loc["bright", "entropy_baseline"] != both.loc["dark", "entropy_baseline"]
    assert both["cka_mean"].to_list() == pytest.approx([1.0, 1.0], abs=1e-4)
    assert len(list((tmp_path / "cache" / "attention").glob("*.npy"))) == 2, "one a dataset, with both orientations"


def test_pretrained_attention_that_was_cut_short_is_measured_again(tiny_clip: Path, tmp_path: Path) -> None:
    text = _text(tiny_clip, "  - {method: full, epochs: 1, loss: attention_preservation:1}\n", name="cut")
    _, first = _run(text, tmp_path / "first", StudyResources(tmp_path / "cache"))
    kept = sorted((tmp_path / "cache" / "attention").glob("*.npy"))
    whole = [path.read_bytes() for path in kept]
    kept[0].write_bytes(whole[0][: len(whole[0]) // 2])
    outcome, second = _run(text, tmp_path / "second", StudyResources(tmp_path / "cache"))
    assert set(outcome.statuses.values()) == {"finished"}
    assert [path.read_bytes() for path in kept] == whole
    pd.testing.assert_frame_equal(first.runs, second.runs)


def test_weights_that_are_no_numbers_are_never_the_last_good_state(
    tiny_clip: Path, tmp_path: Path, resources: StudyResources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """States are saved more often than the structure is measured, so a bad step may come to be saved first."""
    step, done = torch.optim.AdamW.step, itertools.count(1)

    def breaking(optimizer: torch.optim.AdamW, closure: Any = None) -> Any:
        found = step(optimizer, closure)
        if next(done) == 4:
            with torch.no_grad():
                optimizer.param_groups[0]["params"][0].fill_(torch.nan)
        return found

    monkeypatch.setattr(torch.optim.AdamW, "step", breaking)
    change = "epochs: 1, batch_size: 10, checkpoints_per_epoch: 4, evaluations_per_epoch: 1"
    text = _text(tiny_clip, f"  - {{method: full, {change}}}\n", name="unseen")
    _, tables = _run(text, tmp_path / "s", resources)
    assert tables.runs["status"].to_list() == ["diverged"]
    folder = next((tmp_path / "s" / "runs").iterdir())
    weights = load_file(folder / "checkpoints" / "last-good" / "model.safetensors")
    assert all(bool(torch.isfinite(value).all()) for value in weights.values())
    record = read_json(folder / "record.json")
    assert "is not finite after step 4" in record["problem"]
    assert record["last_good_step"] == 2


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("device: cuda", "it has cpu"),
        ("device: mps", "it has cpu"),
        ("precision: float16", "it is float32 or bfloat16"),
    ],
)
def test_a_machine_that_cannot_do_what_is_asked_says_so(
    tiny_clip: Path,
    tmp_path: Path,
    resources: StudyResources,
    change: str,
    problem: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """float16 on a CPU would train in float32 and be recorded as float16."""
    for device in ("cuda", "backends.mps"):
        monkeypatch.setattr(f"torch.{device}.is_available", lambda: False)
    text = _text(tiny_clip, f"  - {{method: full, {change}}}\n", name="machine")
    outcome, _ = _run(text, tmp_path / "s", resources)
    assert set(outcome.statuses.values()) == {"failed"}
    assert problem in read_json(next((tmp_path / "s" / "runs").iterdir()) / "record.json")["problem"]


@pytest.mark.one_in(2)
@pytest.mark.parametrize("keep", ["best", "all"])
def test_what_a_killed_process_left_half_written_is_removed(
    tiny_clip: Path, tmp_path: Path, resources: StudyResources, keep: str
) -> None:
    text = _text(tiny_clip, f"  - {{method: linear_probe, epochs: 1, keep: {keep}}}\n", name="left")
    checkpoints = tmp_path / "s" / "runs" / "digits_linear-probe_lr0.001_s42" / "checkpoints"
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "study.json").write_text('{"format": 2, "name": "left", "description": "", "runs": []}')
    (checkpoints / ".best-1a2b3c").mkdir(parents=True)
    (checkpoints / ".best-1a2b3c" / "model.safetensors").write_bytes(b"half")
    _run(text, tmp_path / "s", resources)
    assert {path.name for path in checkpoints.iterdir()} == {"best"} | (
        {"final", "epoch-1"} if keep == "all" else set()
    )


@pytest.mark.one_in(2)
@pytest.mark.parametrize("stopped_at", [1, 2])
def test_tensorboard_of_a_resumed_run_has_every_step_once(
    tiny_clip: Path, tmp_path: Path, resources: StudyResources, monkeypatch: pytest.MonkeyPatch, stopped_at: int
) -> None:
    """Stopped while validating, when the epoch's drift is logged and its state is not saved yet."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from attndrift.study import evaluation as running

    text = _text(tiny_clip, "  - {method: full}\n", name="stopped")
    real, calls = running.split_accuracy, []

    def stop(*arguments: Any) -> float:
        calls.append(1)
        if len(calls) == stopped_at:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(running, "split_accuracy", stop)
    with pytest.raises(KeyboardInterrupt):
        _run(text, tmp_path / "s", resources)
    _run(text, tmp_path / "s", resources)
    events = EventAccumulator(str(next((tmp_path / "s" / "runs").iterdir()) / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/drift_entropy/layer_03")] == [0, 2, 4, 6, 8]


@pytest.mark.one_in(2)
@pytest.mark.parametrize("removed", [False, True])
def test_a_damaged_checkpoint_of_an_interrupted_run_is_trained_again(
    removed: bool, tiny_clip: Path, tmp_path: Path, resources: StudyResources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test's accuracy is the second that is measured: training is over then, and the run is not."""
    from attndrift.study import evaluation as running

    text = _text(tiny_clip, "  - {method: full, epochs: 1}\n", name="damaged")
    _, undisturbed = _run(text, tmp_path / "undisturbed", resources)
    real, calls = running.split_accuracy, []

    def stop(*arguments: Any) -> float:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(running, "split_accuracy", stop)
    with pytest.raises(KeyboardInterrupt):
        _run(text, tmp_path / "s", resources)
    weights = next((tmp_path / "s").glob("runs/*/checkpoints/best/model.safetensors"))
    if removed:
        # Of the last epoch too, whose checkpoint is copied where the selected one is there.
        assert undisturbed.runs["selected_epoch"].tolist() == [1]
        shutil.rmtree(weights.parent)
    else:
        damaged = bytearray(weights.read_bytes())
        damaged[-1] ^= 1
        weights.write_bytes(damaged)
    outcome, _ = _run(text, tmp_path / "s", resources)
    assert set(outcome.statuses.values()) == {"failed"}
    assert "trained anew" in read_json(next((tmp_path / "s" / "runs").iterdir()) / "record.json")["problem"]
    _, tables = _run(text, tmp_path / "s", resources)
    pd.testing.assert_frame_equal(tables.runs, undisturbed.runs)
